// Dense layers of tiles of tokens, in float32 and in bytes, and the spread that norms divide by.
#pragma once
#include <type_traits>

#include "part_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ISA {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int PM = 8;  // output channels of a micro-kernel; with NV vectors it fills the registers
#else
constexpr int PM = 4;
#endif
constexpr int NV = 3;         // vectors of tokens of a micro-kernel
constexpr int TILE = NV * W;  // tokens
// Steps of a product by which its weights are fetched before they are used. A jet alone uses each of
// them once, and the prefetcher of a processor goes no further than the end of a page.
constexpr int AHEAD = 128;
static_assert(ROWS % PM == 0, "a micro-kernel takes its weights from one block of rows");

// Four unsigned bytes of a times four signed ones of b. Without an instruction for it, the even and
// the odd bytes are multiplied as numbers of 16 bits: all of these give the same integers.
#if defined(__AVX512VNNI__)
INLINE vi dot4(vi sum, vi a, vi b) {
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
#elif defined(__AVXVNNI__)
INLINE vi dot4(vi sum, vi a, vi b) {
    return (vi)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
}
#else
typedef int16_t vs __attribute__((vector_size(4 * W)));
typedef uint16_t vu __attribute__((vector_size(4 * W)));
INLINE vi dot2(vs a, vs b) {
#if defined(__AVX512BW__)
    return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (vi)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return (((vi)a << 16) >> 16) * (((vi)b << 16) >> 16) + ((vi)a >> 16) * ((vi)b >> 16);
#endif
}
INLINE vi dot4(vi sum, vi a, vi b) {
    const vs even = (vs)((vu)a & 255), odd = (vs)((vu)a >> 8);
    return sum + dot2(even, (vs)((vu)b << 8) >> 8) + dot2(odd, (vs)b >> 8);
}
#endif

// The weights of the output channels from m on, a multiple of PM, in a matrix of k words a row.
template <class Word>
INLINE const Word* rows_from(const Word* weights, int m, int k) {
    return weights + int64_t(m / ROWS) * ROWS * k + m % ROWS;
}

template <int N>
INLINE void multiply(const float* w, const float* x, long ld, int k, vf (&sum)[PM][N]) {
    for (int c = 0; c < k; c++, w += ROWS, x += ld) {
        __builtin_prefetch(w + AHEAD * ROWS);
        vf in[N];
#pragma GCC unroll 4
        for (int v = 0; v < N; v++) in[v] = load(x + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < PM; r++) {
            vf weight = splat(w[r]);
#pragma GCC unroll 4
            for (int v = 0; v < N; v++) sum[r][v] += weight * in[v];
        }
    }
}

template <int N>
INLINE void multiply_bytes(const int32_t* w, const int32_t* x, int k, vi (&sum)[PM][N]) {
    for (int c = 0; c < k; c += 4, w += ROWS, x += N * W) {
        __builtin_prefetch(w + AHEAD * ROWS);
        vi in[N];
#pragma GCC unroll 4
        for (int v = 0; v < N; v++) memcpy(&in[v], x + v * W, sizeof(vi));
#pragma GCC unroll 8
        for (int r = 0; r < PM; r++) {
            vi weight = isplat(w[r]);
#pragma GCC unroll 4
            for (int v = 0; v < N; v++) sum[r][v] = dot4(sum[r][v], in[v], weight);
        }
    }
}

// Channels x[c] times before[v] as unsigned bytes, four channels of a token in one lane; gives the
// scale of each token.
template <int N>
static void quantize_tile(const DenseWeights& layer, const float* x, long ld, int rows,
                          const vf (&before)[N], int32_t* out, vf (&scale)[N]) {
    vf inverse[N], zero = splat(layer.bytes == 1 ? 128.f : layer.input_zero);
    if (layer.bytes == 1) {
        for (int v = 0; v < N; v++) scale[v] = vf{};
        for (int c = 0; c < rows; c++)
            for (int v = 0; v < N; v++) {
                vf a = load(x + c * ld + v * W);
                scale[v] = vmax(scale[v], vmax(a, -a));
            }
        for (int v = 0; v < N; v++) {
            vf largest = vmax(scale[v] * before[v], splat(1e-30f));
            scale[v] = largest * (1 / 127.f);
            inverse[v] = before[v] * 127.f / largest;
        }
    } else {
        for (int v = 0; v < N; v++) {
            scale[v] = splat(layer.input_scale);
            inverse[v] = before[v] / layer.input_scale;
        }
    }
    for (int c = 0; c < layer.k; c += 4)
        for (int v = 0; v < N; v++) {
            vi word{};
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                if (c + i >= rows) break;  // the weights of what is missing are zero
                vf a = load(x + (c + i) * ld + v * W) * inverse[v] + zero;
                word |= nearest(vmin(vmax(a, vf{}), splat(255.f))) << (8 * i);
            }
            memcpy(out + (c / 4 * N + v) * W, &word, sizeof word);
        }
}

// y = scale * (W x) + bias for N vectors of tokens, in floats; epilogue(channel, v, y).
template <int N, class Epilogue>
INLINE void dense_floats(const DenseWeights& layer, const float* x, long ld, const vf (&scale)[N],
                         Epilogue epilogue) {
    const float* w = static_cast<const float*>(layer.weight);
    for (int m = 0; m < layer.m; m += PM) {
        vf sum[PM][N] = {};
        multiply<N>(rows_from(w, m, layer.k), x, ld, layer.k, sum);
#pragma GCC unroll 8
        for (int r = 0; r < PM; r++)
#pragma GCC unroll 4
            for (int v = 0; v < N; v++)
                epilogue(m + r, v, sum[r][v] * scale[v] + layer.bias[m + r]);
    }
}

// y = after * (W (before * x)) + bias for N vectors of tokens; epilogue(channel, v, y).
// `rows` is the number of channels of x, which may be less than what the weights are padded to.
// `alone`: only the first token counts.
template <int N, class Epilogue>
INLINE void dense(const DenseWeights& layer, const float* x, long ld, int rows, Workspace& work,
                  const vf (&before)[N], const vf (&after)[N], Epilogue epilogue,
                  bool alone = false) {
    vf scale[N];
    if (!layer.bytes) {
        for (int v = 0; v < N; v++) scale[v] = before[v] * after[v];
        if (N == 1 && alone) {
            float* y = work.row.numbers<float>(layer.m);
            dense_token(layer, x, ld, scale[0][0], y, work);
            for (int m = 0; m < layer.m; m++) {
                vf a{};
                a[0] = y[m];
                epilogue(m, 0, a);
            }
            return;
        }
        dense_floats<N>(layer, x, ld, scale, epilogue);
        return;
    }
    int32_t* bytes = work.quantized.numbers<int32_t>(layer.k / 4 * N * W);
    quantize_tile<N>(layer, x, ld, rows, before, bytes, scale);
    for (int v = 0; v < N; v++) scale[v] *= after[v];
    float zero = layer.bytes == 1 ? 128.f : layer.input_zero;
    const int32_t* w = static_cast<const int32_t*>(layer.weight);
    for (int m = 0; m < layer.m; m += PM) {
        vi sum[PM][N] = {};
        multiply_bytes<N>(rows_from(w, m, layer.k / 4), bytes, layer.k, sum);
#pragma GCC unroll 8
        for (int r = 0; r < PM; r++)
#pragma GCC unroll 4
            for (int v = 0; v < N; v++) {
                vf y = __builtin_convertvector(sum[r][v], vf) - zero * layer.offset[m + r];
                epilogue(m + r, v, y * (scale[v] * layer.scale[m + r]) + layer.bias[m + r]);
            }
    }
}

template <int N>
struct Ones {
    vf values[N];
    Ones() {
        for (vf& v : values) v = splat(1.f);
    }
};

INLINE vf inverse_std(vf sum, vf squares, int rows, float eps) {
    vf mean = sum * (1.f / rows);
    return 1.f / vsqrt(vmax(squares * (1.f / rows) - mean * mean, vf{}) + eps);
}

// 1 / sqrt(variance + eps) over the channels.
template <int N>
INLINE void spread(const float* x, long ld, int rows, float eps, vf (&inverse)[N]) {
    vf sum[N] = {}, squares[N] = {};
    for (int c = 0; c < rows; c++)
        for (int v = 0; v < N; v++) {
            vf a = load(x + c * ld + v * W);
            sum[v] += a;
            squares[v] += a * a;
        }
    for (int v = 0; v < N; v++) inverse[v] = inverse_std(sum[v], squares[v], rows, eps);
}

// Calls function(integral constant N, first token) for tiles of 1..NV vectors of tokens.
template <class Function>
INLINE void tiles(long tokens, Function function) {
    for (long t = 0; t < tokens; t += TILE) {
        long left = tokens - t;
        if (left > 2 * W)
            function(std::integral_constant<int, 3>(), t);
        else if (left > W)
            function(std::integral_constant<int, 2>(), t);
        else
            function(std::integral_constant<int, 1>(), t);
    }
}

}  // namespace ISA
