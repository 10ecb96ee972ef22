// What the arithmetic units do at best: chains of operations that stay in the registers.
#include "part_dense.h"

using namespace ISA;

// Enough to keep two units of a latency of five cycles busy, and fewer than there are registers.
constexpr int CHAINS = 12;

// Multiplies and adds in float32, `rounds` times; returns the number of operations. `numbers` are a
// factor and a summand, and receive a result, so that no compiler can do without.
EXPORT int64_t multiply_add(int64_t rounds, float* numbers) {
    const vf factor = splat(numbers[0]), summand = splat(numbers[1]);
    vf chain[CHAINS];
    for (int c = 0; c < CHAINS; c++) chain[c] = splat(float(c));
    for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; c++) chain[c] = chain[c] * factor + summand;
    }
    for (int c = 0; c < CHAINS; c++) numbers[0] += sum(chain[c]);
    return rounds * CHAINS * W * 2;
}

// The same of bytes, added up in 32 bits; 0 where the processor has no instruction for it.
EXPORT int64_t multiply_add_bytes(int64_t rounds, int32_t* numbers) {
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
    const vi a = isplat(numbers[0]), b = isplat(numbers[1]);
    vi chain[CHAINS];
    for (int c = 0; c < CHAINS; c++) chain[c] = isplat(c);
    for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; c++) chain[c] = dot4(chain[c], a, b);
    }
    for (int c = 0; c < CHAINS; c++) numbers[0] ^= chain[c][0];
    return rounds * CHAINS * W * 8;
#else
    return 0;
#endif
}
