// The instruction sets that kernels are compiled for, and which of them a processor has.
#pragma once

// Name of the best instruction set of this processor, or `wanted` if that is given and there.
// nullptr if the processor, or the kernels, know no such set. Kernels for each set:
// - x86: plain (SSE2), avx2 (with FMA), avxvnni (avx2 with products of bytes), avx512 (F, BW, DQ,
//   VL), avx512vnni;
// - ARM of 64 bits: neon;
// - others: plain.
const char* instruction_set(const char* wanted);
