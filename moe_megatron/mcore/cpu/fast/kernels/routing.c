/* Softmax and top-k over router logits: fp32 [rows, width], one row per token, one column per expert.
 *
 * Experts are few, so a row is only a handful of numbers. LANES rows are therefore transposed and
 * processed together, each in one lane of the processor's vectors. Built and called by routing.py.
 */

#include "arithmetic.h"
#include <math.h>

#define LANES 16

/* columns[i][lane] = rows[lane][i], for `count` rows; unused lanes repeat the first row. */
static inline void transpose(const float *restrict rows, float (*restrict columns)[LANES], int64_t count,
                        int64_t width) {
    for (int64_t lane = 0; lane < LANES; lane++)
        for (int64_t i = 0; i < width; i++)
            columns[i][lane] = rows[(lane < count ? lane : 0) * width + i];
}

static inline void transpose_back(float (*restrict columns)[LANES], float *restrict rows, int64_t count,
                             int64_t width) {
    for (int64_t lane = 0; lane < count; lane++)
        for (int64_t i = 0; i < width; i++)
            rows[lane * width + i] = columns[i][lane];
}

static inline int64_t lanes_of(int64_t row, int64_t rows) {
    return rows - row < LANES ? rows - row : LANES;
}

#define EACH_LANE _Pragma("omp simd") for (int64_t lane = 0; lane < LANES; lane++)

/* scores = softmax(logits); logsumexp = ln(sum of e^logits). */
void softmax(const float *restrict logits, float *restrict scores, float *restrict logsumexp,
             int64_t rows, int64_t width) {
#pragma omp parallel for
    for (int64_t row = 0; row < rows; row += LANES) {
        int64_t count = lanes_of(row, rows);
        float x[width][LANES], highest[LANES], sum[LANES];
        transpose(logits + row * width, x, count, width);
        EACH_LANE highest[lane] = x[0][lane];
        for (int64_t i = 1; i < width; i++)
            EACH_LANE highest[lane] = x[i][lane] > highest[lane] ? x[i][lane] : highest[lane];
        EACH_LANE sum[lane] = 0.0f;
        for (int64_t i = 0; i < width; i++)
            EACH_LANE sum[lane] += x[i][lane] = exponential(x[i][lane] - highest[lane]);
        for (int64_t i = 0; i < width; i++)
            EACH_LANE x[i][lane] /= sum[lane];
        transpose_back(x, scores + row * width, count, width);
        for (int64_t lane = 0; lane < count; lane++)
            logsumexp[row + lane] = highest[lane] + logf(sum[lane]);
    }
}

/* d_logits = scores * (d_scores - sum over the row of scores * d_scores). Where the softmax was taken
 * over part of a row, scores and hence gradients are zero elsewhere. */
void softmax_backward(const float *restrict scores, const float *restrict d_scores,
                      float *restrict d_logits, int64_t rows, int64_t width) {
#pragma omp parallel for
    for (int64_t row = 0; row < rows; row++) {
        const float *restrict score = scores + row * width;
        const float *restrict d_score = d_scores + row * width;
        float *restrict d_logit = d_logits + row * width;
        float mean = 0.0f;
#pragma omp simd reduction(+ : mean)
        for (int64_t i = 0; i < width; i++)
            mean += score[i] * d_score[i];
        for (int64_t i = 0; i < width; i++)
            d_logit[i] = score[i] * (d_score[i] - mean);
    }
}

/* Top-k: at the `chosen_count` highest logits of each row, `chosen` is 1 and `weights` is the softmax
 * over just these logits; both are 0 elsewhere. Of equal logits the first wins; a NaN is higher than
 * any number, as in torch.topk. */
void choose(const float *restrict logits, uint8_t *restrict chosen, float *restrict weights,
            int64_t rows, int64_t width, int64_t chosen_count) {
#pragma omp parallel for
    for (int64_t row = 0; row < rows; row += LANES) {
        int64_t count = lanes_of(row, rows);
        /* Sorted, highest first: the logit (later its weight), and the expert it belongs to. */
        float x[width][LANES], best[chosen_count][LANES], sum[LANES];
        int32_t expert[chosen_count][LANES];
        transpose(logits + row * width, x, count, width);
        for (int64_t j = 0; j < chosen_count; j++)
            EACH_LANE best[j][lane] = -INFINITY, expert[j][lane] = -1;
        for (int32_t i = 0; i < width; i++) {
            int32_t own[LANES];
            EACH_LANE own[lane] = i;
            for (int64_t j = 0; j < chosen_count; j++)
                EACH_LANE {
                    float here = x[i][lane], there = best[j][lane];
                    int32_t mine = own[lane], its = expert[j][lane];
                    int goes = here > there || (here != here && there == there) || its < 0;
                    best[j][lane] = goes ? here : there;
                    expert[j][lane] = goes ? mine : its;
                    x[i][lane] = goes ? there : here;
                    own[lane] = goes ? its : mine;
                }
        }
        float highest[LANES];
        EACH_LANE highest[lane] = best[0][lane], sum[lane] = 0.0f;
        for (int64_t j = 0; j < chosen_count; j++)
            EACH_LANE sum[lane] += best[j][lane] = exponential(best[j][lane] - highest[lane]);
        memset(chosen + row * width, 0, count * width);
        memset(weights + row * width, 0, count * width * sizeof *weights);
        for (int64_t j = 0; j < chosen_count; j++)
            for (int64_t lane = 0; lane < count; lane++) {
                int64_t entry = (row + lane) * width + expert[j][lane];
                chosen[entry] = 1;
                weights[entry] = best[j][lane] / sum[lane];
            }
    }
}
