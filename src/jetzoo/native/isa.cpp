#include "isa.h"

#include <cstring>

#include "workspace.h"

#if defined(__x86_64__)
#include <cpuid.h>

// Not every compiler knows a name for these. Their vectors are those of AVX2.
static bool has_avxvnni() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif

const char* instruction_set(const char* wanted) {
    struct Set {
        const char* name;
        bool there;
    };
#if defined(__x86_64__)
    __builtin_cpu_init();
#define HAS(name) (__builtin_cpu_supports(name) != 0)
    const bool avx2 = HAS("avx2") && HAS("fma");
    const bool avx512 =
        avx2 && HAS("avx512f") && HAS("avx512bw") && HAS("avx512dq") && HAS("avx512vl");
    const Set sets[] = {{"avx512vnni", avx512 && HAS("avx512vnni")},
                        {"avx512", avx512},
                        {"avxvnni", avx2 && has_avxvnni()},
                        {"avx2", avx2},
                        {"plain", true}};
#undef HAS
#elif defined(__aarch64__)
    const Set sets[] = {{"neon", true}};
#else
    const Set sets[] = {{"plain", true}};
#endif
    for (const Set& set : sets)  // the best first
        if (set.there && (!wanted || !*wanted || !std::strcmp(set.name, wanted))) return set.name;
    return nullptr;
}

// For Python.
EXPORT int32_t multiplies_bfloat16() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") != 0;
#else
    return 0;
#endif
}
EXPORT const char* name_of_instruction_set(const char* wanted) { return instruction_set(wanted); }
