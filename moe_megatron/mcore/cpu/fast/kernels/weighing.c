/* bf16 rows times one fp32 weight each, forward and backward. Built and called by weighing.py. */

#include "arithmetic.h"

/* product[row] = weight[row] * rows[row] */
void weigh(const bf16 *restrict rows, const float *restrict weights, bf16 *restrict product,
           int64_t count, int64_t width) {
#pragma omp parallel for
    for (int64_t row = 0; row < count; row++) {
#pragma omp simd
        for (int64_t i = row * width; i < (row + 1) * width; i++)
            product[i] = rounded(weights[row] * widened(rows[i]));
    }
}

/* d_rows[row] = weight[row] * d_product[row]; d_weight[row] = d_product[row] . rows[row] */
void weigh_backward(const bf16 *restrict d_product, const bf16 *restrict rows,
                    const float *restrict weights, bf16 *restrict d_rows,
                    float *restrict d_weights, int64_t count, int64_t width) {
#pragma omp parallel for
    for (int64_t row = 0; row < count; row++) {
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = row * width; i < (row + 1) * width; i++) {
            float d = widened(d_product[i]);
            sum += d * widened(rows[i]);
            d_rows[i] = rounded(weights[row] * d);
        }
        d_weights[row] = sum;
    }
}
