/* SwiGLU in bf16, forward and backward, each in one pass over memory.
 *
 * A row of `both` holds gate and up, each `width` long. All arithmetic is in fp32; only results are
 * rounded. Built and called by swiglu.py.
 */

#include "arithmetic.h"

static inline float sigmoid(float x) {
    return 1.0f / (1.0f + exponential(-x));
}

/* product = silu(gate) * up */
void swiglu(const bf16 *restrict both, bf16 *restrict product, int64_t rows, int64_t width) {
#pragma omp parallel for
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *restrict gates = both + row * 2 * width;
        const bf16 *restrict ups = gates + width;
        bf16 *restrict products = product + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            float gate = widened(gates[i]);
            products[i] = rounded(gate * sigmoid(gate) * widened(ups[i]));
        }
    }
}

/* d_up = d * silu(gate); d_gate = d * up * silu'(gate); and `product` once more, which the gradient
 * of the next matrix needs. */
void swiglu_backward(const bf16 *restrict both, const bf16 *restrict d_product,
                     bf16 *restrict d_both, bf16 *restrict product, int64_t rows, int64_t width) {
#pragma omp parallel for
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *restrict gates = both + row * 2 * width;
        const bf16 *restrict ups = gates + width;
        const bf16 *restrict d_products = d_product + row * width;
        bf16 *restrict d_gates = d_both + row * 2 * width;
        bf16 *restrict d_ups = d_gates + width;
        bf16 *restrict products = product + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            float gate = widened(gates[i]);
            float up = widened(ups[i]);
            float d = widened(d_products[i]);
            float share = sigmoid(gate);
            float silu = gate * share;
            products[i] = rounded(silu * up);
            d_ups[i] = rounded(d * silu);
            d_gates[i] = rounded(d * up * (share + silu * (1.0f - share)));
        }
    }
}
