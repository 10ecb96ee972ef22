// Matrix products of small sizes, in the cache and on one thread.
#pragma once
#include <cstdint>

// C (m, n) = A (m, k) B (k, n), or C += A B; n is a multiple of W. A has any strides.
void product(int m, int n, int k, const float* a, int64_t a_row, int64_t a_col, const float* b,
             int64_t ldb, float* c, int64_t ldc, bool add = false);
