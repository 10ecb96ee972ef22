#include "products.h"

#include "simd.h"

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int WIDE = 4;  // vectors of columns of a micro-kernel; 6 rows of them fill the registers
#else
constexpr int WIDE = 2;
#endif

template <int M, int N>
INLINE void micro(int k, const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t ldb,
                  float* c, int64_t ldc, bool add) {
    vf sum[M][N];
    for (int i = 0; i < M; i++)
        for (int v = 0; v < N; v++) sum[i][v] = add ? load(c + i * ldc + v * W) : vf{};
    for (int l = 0; l < k; l++, a += a_col, b += ldb) {
        vf in[N];
#pragma GCC unroll 4
        for (int v = 0; v < N; v++) in[v] = load(b + v * W);
#pragma GCC unroll 12
        for (int i = 0; i < M; i++) {
            vf x = splat(a[i * a_row]);
#pragma GCC unroll 4
            for (int v = 0; v < N; v++) sum[i][v] += x * in[v];
        }
    }
    for (int i = 0; i < M; i++)
        for (int v = 0; v < N; v++) store(c + i * ldc + v * W, sum[i][v]);
}

template <int M, int N>
static void rows(int m, int k, const float* a, int64_t a_row, int64_t a_col, const float* b,
                 int64_t ldb, float* c, int64_t ldc, bool add) {
    for (; m >= M; m -= M, a += M * a_row, c += M * ldc)
        micro<M, N>(k, a, a_row, a_col, b, ldb, c, ldc, add);
    if constexpr (M > 1)
        if (m > 0) rows<M / 2, N>(m, k, a, a_row, a_col, b, ldb, c, ldc, add);
}

void product(int m, int n, int k, const float* a, int64_t a_row, int64_t a_col, const float* b,
             int64_t ldb, float* c, int64_t ldc, bool add) {
    for (; n >= WIDE * W; n -= WIDE * W, b += WIDE * W, c += WIDE * W)
        rows<6, WIDE>(m, k, a, a_row, a_col, b, ldb, c, ldc, add);
    if (WIDE == 4 && n >= 2 * W) {
        rows<8, 2>(m, k, a, a_row, a_col, b, ldb, c, ldc, add);
        n -= 2 * W, b += 2 * W, c += 2 * W;
    }
    if (n >= W) rows<12, 1>(m, k, a, a_row, a_col, b, ldb, c, ldc, add);
}
