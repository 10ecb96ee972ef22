// Matrix products of a training step, C = A B: the layers forward and both products of their
// backward pass, in float32 or on numbers that are rounded to bfloat16 where they are packed.
//
// A lane is a float, or two bfloat16 numbers that follow each other along k, so that one
// micro-kernel serves both. What is added up, and in which order, does not depend on the threads.
#include <vector>

#include "simd.h"
#include "threads.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
constexpr bool HAS_HALF = true;
#else
constexpr bool HAS_HALF = false;
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int WIDE = 4;  // vectors of a panel of B; ROWS rows of them fill the registers
#else
constexpr int WIDE = 2;
#endif
constexpr int ROWS = 6, PANEL = WIDE * W;
constexpr int BLOCK = 16 * ROWS;  // rows of C that a thread takes at a time
constexpr int DEPTH = 384;        // of what a thread packs of A and B; even
constexpr int SLICES = 16;        // of a large k, at most

// jetzoo.native.structures mirrors this structure. One stride of each of A and B is 1.
struct ProductArguments {
    int64_t m, n, k;
    const float *a, *b;                  // (m, k), (k, n)
    int64_t a_row, a_col, b_row, b_col;  // strides
    const float* bias;                   // (n), or none
    float* out;                          // (m, n), dense
    int64_t half;                        // whether numbers are rounded to bfloat16
};

EXPORT_SIZE(ProductArguments)

template <bool HALF>
INLINE vf multiply_add(vf sum, vf a, vf b) {
#if defined(__AVX512BF16__)
    if (HALF) return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
    return sum + a * b;
}

// The upper halves of numbers rounded to bfloat16, to nearest, ties to even; NaN stays NaN.
INLINE vi rounded(vf x) {
    vi bits = (vi)x, up = bits + 0x7fff + ((bits >> 16) & 1);
    return x == x ? up : (bits | 0x400000);
}
INLINE vf pair_of(vf low, vf high) {
    return (vf)(((rounded(low) >> 16) & 0xffff) | (rounded(high) & isplat(-65536)));
}
INLINE float lane_of(float low, float high) {
    vf lane = pair_of(splat(low), splat(high));
    return lane[0];
}

template <bool HALF>
constexpr int64_t lanes(int64_t k) {
    return HALF ? (k + 1) / 2 : k;
}

// Row `l` of lanes of columns (count) that lie side by side.
template <bool HALF>
INLINE void lanes_across(const float* x, int64_t col, int64_t count, int64_t k, int64_t l,
                         float* to) {
    if (!HALF) {
        memcpy(to, x + l * col, count * sizeof(float));
        return;
    }
    const float *low = x + 2 * l * col, *high = 2 * l + 1 < k ? low + col : nullptr;
    int64_t i = 0;
    for (; i + W <= count; i += W)
        store(to + i, pair_of(load(low + i), high ? load(high + i) : vf{}));
    for (; i < count; i++) to[i] = lane_of(low[i], high ? high[i] : 0.f);
}

// Panels of P rows of X (count, k), as (panels, lanes, P) with zeros where there is none. `line`
// has space for `count` numbers, and P more.
template <int P, bool HALF>
static void pack(const float* x, int64_t row, int64_t col, int64_t count, int64_t k, float* line,
                 float* to) {
    const int64_t depth = lanes<HALF>(k);
    if (row == 1) {
        std::fill(line + count, line + count + P, 0.f);
        for (int64_t l = 0; l < depth; l++) {
            lanes_across<HALF>(x, col, count, k, l, line);
            float* at = to + l * P;
            for (int64_t i = 0; i < count; i += P, at += P * depth)
                memcpy(at, line + i, P * sizeof(float));
        }
        return;
    }
    for (int64_t i = 0; i < count; i += P, x += P * row, to += P * depth) {
        const int p = std::min<int64_t>(P, count - i);
        if (p < P) std::fill(to, to + P * depth, 0.f);
        for (int r = 0; r < p; r++) {
            const float* from = x + r * row;
            for (int64_t l = 0; l < depth; l++)
                if (!HALF)
                    to[l * P + r] = from[l * col];
                else
                    to[l * P + r] = lane_of(from[2 * l * col],
                                            2 * l + 1 < k ? from[(2 * l + 1) * col] : 0.f);
        }
    }
}

// Rows of lanes (m, lanes) of rows of bfloat16 numbers that lie side by side already.
static void pack_rows(const float* x, int64_t row, int64_t m, int64_t k, float* to) {
    const int64_t depth = lanes<true>(k);
    for (int64_t i = 0; i < m; i++, x += row, to += depth) {
        int64_t l = 0;
#if defined(__AVX512BF16__)
        for (; l + W <= depth && 2 * (l + W) <= k; l += W)
            store(to + l, (vf)_mm512_cvtne2ps_pbh((__m512)load(x + 2 * l + W),
                                                  (__m512)load(x + 2 * l)));
#endif
        for (; l < depth; l++) to[l] = lane_of(x[2 * l], 2 * l + 1 < k ? x[2 * l + 1] : 0.f);
    }
}

// M rows of C times N vectors: begins with what stands there, with a bias, or with zero.
template <int M, int N, bool HALF>
INLINE void micro(int64_t depth, const float* a, int64_t a_row, int64_t a_col, const float* b,
                  const float* start, int64_t ld_start, float* c, int64_t ldc) {
    vf sum[M][N];
    for (int i = 0; i < M; i++)
        for (int v = 0; v < N; v++) sum[i][v] = start ? load(start + i * ld_start + v * W) : vf{};
    for (int64_t l = 0; l < depth; l++, a += a_col, b += PANEL) {
        vf in[N];
#pragma GCC unroll 4
        for (int v = 0; v < N; v++) in[v] = load(b + v * W);
#pragma GCC unroll 6
        for (int i = 0; i < M; i++) {
            vf x = (vf)(isplat(0) + ((const int32_t*)a)[i * a_row]);
#pragma GCC unroll 4
            for (int v = 0; v < N; v++) sum[i][v] = multiply_add<HALF>(sum[i][v], x, in[v]);
        }
    }
    for (int i = 0; i < M; i++)
        for (int v = 0; v < N; v++) store(c + i * ldc + v * W, sum[i][v]);
}

// A panel of `width` columns of C; `add` to what stands there, `bias` is for the first time.
template <int M, bool HALF>
static void panel(int64_t m, int64_t width, int64_t depth, const float* a, int64_t a_panel,
                  int64_t a_row, int64_t a_col, const float* b, const float* bias, bool add,
                  float* c, int64_t ldc) {
    for (; m >= M; m -= M, a += a_panel, c += M * ldc) {
        if (width == PANEL) {
            micro<M, WIDE, HALF>(depth, a, a_row, a_col, b, add ? c : bias, add ? ldc : 0, c, ldc);
            continue;
        }
        float edge[M * PANEL] = {};
        for (int i = 0; i < M; i++)
            if (add || bias) memcpy(edge + i * PANEL, add ? c + i * ldc : bias, 4 * width);
        micro<M, WIDE, HALF>(depth, a, a_row, a_col, b, edge, PANEL, edge, PANEL);
        for (int i = 0; i < M; i++) memcpy(c + i * ldc, edge + i * PANEL, 4 * width);
    }
    if constexpr (M > 1)
        if (m > 0)  // what is left of a panel of A, one row after the other
            panel<1, HALF>(m, width, depth, a, a_row, a_row, a_col, b, bias, add, c, ldc);
}

// C (m, n) of a slice of k whose panels of B are packed, (n / PANEL, lanes, PANEL).
template <bool HALF>
static void block(const ProductArguments& p, int64_t m, int64_t k, const float* a, const float* b,
                  const float* bias, bool add, float* c, Scratch& scratch) {
    const int64_t depth = lanes<HALF>(k);
    int64_t a_panel = ROWS * p.a_row, a_row = p.a_row, a_col = p.a_col;
    if (HALF || a_col != 1) {
        float *packed = scratch.take((m + ROWS) * depth), *line = scratch.take(m + ROWS);
        if (a_col == 1) {
            pack_rows(a, p.a_row, m, k, packed);
            a_panel = ROWS * depth, a_row = depth;
        } else {
            pack<ROWS, HALF>(a, p.a_row, p.a_col, m, k, line, packed);
            a_panel = ROWS * depth, a_row = 1, a_col = ROWS;
        }
        a = packed;
    }
    for (int64_t j = 0; j < p.n; j += PANEL)
        panel<ROWS, HALF>(m, std::min<int64_t>(PANEL, p.n - j), depth, a, a_panel, a_row, a_col,
                          b + j * depth, bias ? bias + j : nullptr, add, c + j, p.n);
}

// What a task packs of A, and of B if it does.
static int64_t packed_size(const ProductArguments& p, int64_t m, int64_t k) {
    return (m + ROWS) * (k + 1) + p.n + PANEL;
}

// Few rows and columns of C and a large k: sums of slices of k, added up in their order.
template <bool HALF>
static void over_slices(const ProductArguments& p, int threads) {
    const int64_t width = round_up(p.n, PANEL), size = p.m * p.n;
    const int64_t slice = round_up((p.k + SLICES - 1) / SLICES, DEPTH);
    const int64_t slices = (p.k + slice - 1) / slice;
    std::unique_ptr<float[]> partial(new float[slices * size]);
    parallel(slices, threads, [&](int64_t s, Scratch& scratch) {
        const int64_t end = std::min(p.k, (s + 1) * slice);
        for (int64_t first = s * slice; first < end; first += DEPTH) {
            const int64_t k = std::min<int64_t>(DEPTH, end - first);
            scratch.reset(width * k + packed_size(p, p.m, k));
            float *b = scratch.take(width * k), *line = scratch.take(p.n + PANEL);
            pack<PANEL, HALF>(p.b + first * p.b_row, p.b_col, p.b_row, p.n, k, line, b);
            block<HALF>(p, p.m, k, p.a + first * p.a_col, b, nullptr, first > s * slice,
                        &partial[s * size], scratch);
        }
    });
    parallel((size + 4095) / 4096, threads, [&](int64_t i, Scratch&) {
        const int64_t end = std::min(size, (i + 1) * 4096);
        for (int64_t c = i * 4096; c < end; c++) p.out[c] = p.bias ? p.bias[c % p.n] : 0;
        for (int64_t s = 0; s < slices; s++)
            for (int64_t c = i * 4096; c < end; c++) p.out[c] += partial[s * size + c];
    });
}

// Many rows of C: blocks of rows, with all of B packed once.
template <bool HALF>
static void over_blocks(const ProductArguments& p, int threads) {
    const int64_t width = round_up(p.n, PANEL), slices = (p.k + DEPTH - 1) / DEPTH;
    std::unique_ptr<float[]> b(new float[width * lanes<HALF>(p.k) + 2 * W]);
    float* packed = b.get() + (-(reinterpret_cast<uintptr_t>(b.get()) / sizeof(float)) % W);
    parallel(slices, threads, [&](int64_t s, Scratch& scratch) {
        const int64_t first = s * DEPTH, k = std::min<int64_t>(DEPTH, p.k - first);
        scratch.reset(p.n + PANEL);
        pack<PANEL, HALF>(p.b + first * p.b_row, p.b_col, p.b_row, p.n, k,
                          scratch.take(p.n + PANEL), packed + width * lanes<HALF>(first));
    });
    parallel((p.m + BLOCK - 1) / BLOCK, threads, [&](int64_t i, Scratch& scratch) {
        const int64_t row = i * BLOCK, m = std::min<int64_t>(BLOCK, p.m - row);
        for (int64_t first = 0; first < p.k; first += DEPTH) {
            const int64_t k = std::min<int64_t>(DEPTH, p.k - first);
            scratch.reset(packed_size(p, m, k));
            block<HALF>(p, m, k, p.a + row * p.a_row + first * p.a_col,
                        packed + width * lanes<HALF>(first), p.bias, first > 0,
                        p.out + row * p.n, scratch);
        }
    });
}

template <bool HALF>
static int32_t dense_product_of(const ProductArguments& p, int threads) {
    return status_of([&] {
        if (p.k > 4 * DEPTH && p.m * p.n <= DEPTH * p.k)
            over_slices<HALF>(p, threads);
        else
            over_blocks<HALF>(p, threads);
    });
}

EXPORT int32_t dense_product(const ProductArguments* p, int threads) {
    return p->half && HAS_HALF ? dense_product_of<HAS_HALF>(*p, threads)
                               : dense_product_of<false>(*p, threads);
}

// Whether this processor multiplies bfloat16 numbers; otherwise `half` rounds nothing.
EXPORT int32_t multiplies_half() { return HAS_HALF; }
