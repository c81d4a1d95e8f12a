/* bf16 conversions and an exponential, in a form that compilers vectorize on any processor. */

#ifndef MOE_MEGATRON_ARITHMETIC_H
#define MOE_MEGATRON_ARITHMETIC_H

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

/* Rounds to nearest, ties to even. A NaN stays one: it loses what does not fit, and is made quiet,
 * since the addition would carry into its sign and what is left might be an infinity. */
static inline bf16 rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bf16 nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    bf16 quiet = (bits >> 16) | 0x40;
    return (bits & 0x7fffffff) > 0x7f800000 ? quiet : nearest;
}

/* e^x with a relative error of 1e-6 between -10 and 10 and 1e-5 beyond; x below -87 counts as -87,
 * and above 88.4 the result is infinity. libm's expf takes one number at a time. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 89.0f ? 89.0f : x;
    float power = x * 1.44269504f; /* e^x = 2^power */
    float whole = __builtin_rintf(power);
    float rest = power - whole; /* -0.5 to 0.5 */
    /* 2^rest by the Taylor series of e^(rest * ln 2). */
    float series = 1.5403530e-4f;
    series = series * rest + 1.3333558e-3f;
    series = series * rest + 9.6181291e-3f;
    series = series * rest + 5.5504109e-2f;
    series = series * rest + 2.4022651e-1f;
    series = series * rest + 6.9314718e-1f;
    series = series * rest + 1.0f;
    return series * of_bits((uint32_t)((int32_t)whole + 127) << 23);
}

#endif
