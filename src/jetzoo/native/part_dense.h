// Dense layers of tiles of tokens, in float32 and in bytes, and the spread that norms divide by.
#pragma once
#include <type_traits>

#include "part.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#include <immintrin.h>
#endif

INLINE vi dot4(vi sum, vi a, vi b) {  // four unsigned bytes of a times four signed ones of b
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__)
    return (vi)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#else
    for (int i = 0; i < 32; i += 8) sum += ((a >> i) & 255) * ((b << (24 - i)) >> 24);
    return sum;
#endif
}

template <int N>
INLINE void multiply(const float* w, const float* x, long ld, int k, vf (&sum)[PM][N]) {
    for (int c = 0; c < k; c++, w += PM, x += ld) {
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
    for (int c = 0; c < k; c += 4, w += PM, x += N * W) {
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

// y = after * (W (before * x)) + bias for N vectors of tokens; epilogue(channel, v, y).
// `rows` is the number of channels of x, which may be less than what the weights are padded to.
template <int N, class Epilogue>
INLINE void dense(const DenseWeights& layer, const float* x, long ld, int rows, Workspace& work,
                  const vf (&before)[N], const vf (&after)[N], Epilogue epilogue) {
    if (!layer.bytes) {
        vf scale[N];
        for (int v = 0; v < N; v++) scale[v] = before[v] * after[v];
        const float* w = static_cast<const float*>(layer.weight);
        for (int m = 0; m < layer.m; m += PM, w += PM * layer.k) {
            vf sum[PM][N] = {};
            multiply<N>(w, x, ld, layer.k, sum);
#pragma GCC unroll 8
            for (int r = 0; r < PM; r++)
#pragma GCC unroll 4
                for (int v = 0; v < N; v++)
                    epilogue(m + r, v, sum[r][v] * scale[v] + layer.bias[m + r]);
        }
        return;
    }
    if (work.quantized.size() < size_t(layer.k / 4 * N * W))
        work.quantized.resize(layer.k / 4 * N * W);
    int32_t* bytes = work.quantized.data();
    vf scale[N];
    quantize_tile<N>(layer, x, ld, rows, before, bytes, scale);
    for (int v = 0; v < N; v++) scale[v] *= after[v];
    float zero = layer.bytes == 1 ? 128.f : layer.input_zero;
    const int32_t* w = static_cast<const int32_t*>(layer.weight);
    for (int m = 0; m < layer.m; m += PM, w += PM * layer.k / 4) {
        vi sum[PM][N] = {};
        multiply_bytes<N>(w, bytes, layer.k, sum);
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
