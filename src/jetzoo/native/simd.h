// Vectors of floats in the compiler's own types, as wide as the registers of the processor.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "workspace.h"

#if defined(__AVX512F__)
constexpr int W = 16;  // floats in a vector
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

// The namespace of what is compiled for this instruction set, beside the same for others.
#ifndef ISA
#define ISA plain
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef double vd __attribute__((vector_size(4 * W)));  // half as many doubles
#define INLINE static inline __attribute__((always_inline))

INLINE vf load(const float* p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store(float* p, vf v) { memcpy(p, &v, sizeof v); }
INLINE void accumulate(float* p, vf x) { store(p, load(p) + x); }
INLINE vf splat(float x) { return x - vf{}; }
INLINE vi isplat(int32_t x) { return x - vi{}; }
INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
INLINE vd loadd(const double* p) {
    vd v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void narrow(vd a, float* p) {
    typedef float half __attribute__((vector_size(2 * W)));
    half v = __builtin_convertvector(a, half);
    memcpy(p, &v, sizeof v);
}
INLINE vf vmin(vf a, vf b) { return a < b ? a : b; }
INLINE vf vsqrt(vf a) {
    for (int i = 0; i < W; i++) a[i] = __builtin_sqrtf(a[i]);
    return a;
}
INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
INLINE float sum(vf a) {
    float s = 0;
    for (int i = 0; i < W; i++) s += a[i];
    return s;
}

INLINE vi nearest(vf x) {  // |x| < 2^22
    return (vi)(x + 12582912.f) - 0x4b400000;
}

// Cody and Waite's reduction, coefficients of Cephes' expf; relative error 1e-7. The exponential of
// NaN is NaN: a comparison with NaN is false, so that x, the second of two, is taken.
INLINE vf vexp(vf x) {
    x = vmin(splat(88.f), vmax(splat(-87.f), x));
    vf shifted = x * 1.44269504f + 12582912.f;
    vf n = shifted - 12582912.f;
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf y = splat(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.f;
    return y * (vf)(((vi)shifted << 23) + (127 << 23));
}

// Cephes' logf, for positive normal numbers; relative error 1e-7.
INLINE vf vlog(vf x) {
    vi bits = (vi)x;
    vi e = ((bits >> 23) & 0xff) - 126;
    vf m = (vf)((bits & 0x007fffff) | 0x3f000000);  // [0.5, 1)
    vi small = m < 0.707106781186547524f;
    e += small;  // true is -1
    m = m + (small ? m : vf{}) - 1.f;
    vf z = m * m;
    vf y = splat(7.0376836292e-2f);
    y = y * m - 1.1514610310e-1f;
    y = y * m + 1.1676998740e-1f;
    y = y * m - 1.2420140846e-1f;
    y = y * m + 1.4249322787e-1f;
    y = y * m - 1.6668057665e-1f;
    y = y * m + 2.0000714765e-1f;
    y = y * m - 2.4999993993e-1f;
    y = y * m + 3.3333331174e-1f;
    vf n = __builtin_convertvector(e, vf);
    y = y * m * z + n * -2.12194440e-4f - 0.5f * z;
    return m + y + n * 0.693359375f;
}

// Cumulative normal distribution less 1/2, over x: a polynomial in x^2 on |x| < 5, found by
// Lawson's iteration such that x Phi(x) errs by at most 4e-7 max(1, |x|) in float32.
INLINE vf half_phi(vf x) {
    vf u = x * x * 0.08f - 1.f;
    vf y = splat(0.000492968131f);
    y = y * u - 0.00151415321f;
    y = y * u + 0.00200186367f;
    y = y * u - 0.00291567435f;
    y = y * u + 0.00616542716f;
    y = y * u - 0.0109732309f;
    y = y * u + 0.0164976586f;
    y = y * u - 0.0233367309f;
    y = y * u + 0.0314262286f;
    y = y * u - 0.0404329486f;
    y = y * u + 0.0515214205f;
    y = y * u - 0.0702966526f;
    y = y * u + 0.141363785f;
    return y;
}

// x Phi(x), the exact form of GELU.
INLINE vf vgelu(vf x) {
    vf c = vmin(vmax(x, splat(-5.f)), splat(5.f));
    return x * (c * half_phi(c) + 0.5f);
}

// x Phi(x) and its derivative Phi(x) + x phi(x). Phi(-|x|) is exp(-x^2 / 2) times a polynomial in
// t = 1 / (1 + 0.3 |x|), fitted at Chebyshev's points; closer to the exact value than PyTorch's.
INLINE vf gelu_and_slope(vf x, vf& slope) {
    vf t = 1.f / (vmax(x, -x) * 0.3f + 1.f), u = t * 2.47619048f - 1.47619048f;
    vf y = splat(-5.965377e-6f);
    y = y * u + 1.2640326e-6f;
    y = y * u + 7.7513003e-5f;
    y = y * u - 3.7933558e-5f;
    y = y * u - 9.7609882e-4f;
    y = y * u - 3.2106668e-4f;
    y = y * u + 1.4855980e-2f;
    y = y * u + 6.7054085e-2f;
    y = y * u + 1.6233166e-1f;
    y = y * u + 2.5702056e-1f;
    vf e = vexp(x * x * -0.5f), tail = e * t * y;
    vf phi = x < 0.f ? tail : 1.f - tail;
    slope = phi + x * e * 0.39894228f;
    return x * phi;
}
