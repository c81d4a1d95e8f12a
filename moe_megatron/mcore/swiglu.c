/* SwiGLU of bf16 numbers, forward and backward, each in one pass over memory.
 *
 * A row of `both` holds gate and up, each `width` long. All arithmetic is in fp32, and only results
 * are rounded. Loops are written for the compiler to vectorize on any processor, hence an
 * exponential of our own: libm's is one number at a time.
 *
 * Built and called by swiglu.py. The threads are those of torch, which loads OpenMP's library.
 */

#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

static inline float of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float widened(bf16 value) {
    return of_bits((uint32_t)value << 16);
}

/* To the nearest, ties to even. A NaN stays one: those that come here are of operands in bf16 or of
 * the processor, and end with sixteen zeros, from which the addition carries nothing upwards. */
static inline bf16 rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

/* e^x to 1e-5 of it; below -87 what it is there, above 88.4 infinity. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 89.0f ? 89.0f : x;
    float power = x * 1.44269504f; /* of two */
    float whole = __builtin_rintf(power);
    float rest = power - whole; /* -0.5 to 0.5 */
    /* 2^rest by the Taylor series of e^(rest * ln 2). */
    float series = 1.3333558e-3f;
    series = series * rest + 9.6181291e-3f;
    series = series * rest + 5.5504109e-2f;
    series = series * rest + 2.4022651e-1f;
    series = series * rest + 6.9314718e-1f;
    series = series * rest + 1.0f;
    return series * of_bits((uint32_t)((int32_t)whole + 127) << 23);
}

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

/* The gradients of gate and up; and product again, which its reader needs now. */
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
