/* Conversions between bfloat16 and float, and exponentials that compilers vectorise. */
#ifndef PSVIT_CONVERT_H
#define PSVIT_CONVERT_H

#include <stdint.h>

enum { PSVIT_CHUNK = 512 }; /* neurons whose potentials of all time steps stay in the cache */

static inline float from_bfloat16(uint16_t x)
{
    const uint32_t bits = (uint32_t)x << 16;
    float y;
    __builtin_memcpy(&y, &bits, sizeof y);
    return y;
}

/* Rounds to the nearest, halves to even; NaN stays NaN. */
static inline uint16_t to_bfloat16(float x)
{
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)(x == x ? rounded : 0x7fc0);
}

/* exp(x) for x <= 0, within 2 units in the last place; 2^-125 or less becomes about 2^-125. */
static inline float exp_float(float x)
{
    x = x < -86.0f ? -86.0f : x;
    const float k = __builtin_rintf(x * 1.44269504f);
    const float r = (x - k * 0.693359375f) - k * -2.12194440e-4f; /* ln 2 in two parts */
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const int32_t bits = ((int32_t)k + 127) << 23;
    float power;
    __builtin_memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* exp(x) for x <= 0, as above; 2^-1000 or less becomes about 2^-1000. */
static inline double exp_double(double x)
{
    x = x < -693.0 ? -693.0 : x;
    const double k = __builtin_rint(x * 1.4426950408889634);
    const double r = (x - k * 0.693145751953125) - k * 1.4286068203094173e-06;
    double p = 1.0 / 6227020800;
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    const int64_t bits = ((int64_t)k + 1023) << 52;
    double power;
    __builtin_memcpy(&power, &bits, sizeof power);
    return p * power;
}

#endif
