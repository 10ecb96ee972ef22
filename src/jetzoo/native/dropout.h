// Dropout that the backward pass can repeat: what is dropped follows from a seed and a position.
#pragma once
#include "simd.h"

INLINE uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

// Which numbers of a row are dropped: a hash of the seed, the row and the column.
class Dropout {
    uint32_t key[2];
    int32_t threshold;

  public:
    float scale;

    Dropout(float p, uint64_t seed, uint64_t row) : scale(1 / (1 - p)) {
        threshold = int32_t(int64_t(double(p) * 4294967296.0) - 2147483648ll);
        key[0] = mix(uint32_t(seed) ^ mix(uint32_t(row) ^ mix(uint32_t(row >> 32))));
        key[1] = mix(uint32_t(seed >> 32) + key[0]);
    }
    // 0 or 1 / (1 - p) for W numbers from a column on.
    __attribute__((always_inline)) vf factor(int column) const {
        typedef uint32_t vu __attribute__((vector_size(4 * W)));
        vu x;
        for (int i = 0; i < W; i++) x[i] = i;
        x = (x + uint32_t(column)) * 0x9e3779b9u + key[0];
        x ^= x >> 16;
        x *= 0x7feb352du;
        x ^= key[1];
        x ^= x >> 15;
        x *= 0x846ca68bu;
        x ^= x >> 16;
        return (vi)x >= threshold ? splat(scale) : vf{};
    }
};
