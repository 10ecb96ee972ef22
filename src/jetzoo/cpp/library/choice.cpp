// Which of the kernels in the library run. CMake writes sets.h: SET(name) for each of them.
#include <cstring>

#include "isa.h"
#include "kernels.h"

#define SET(name)                 \
    namespace name {              \
    extern const Kernels kernels; \
    }
#include "sets.h"
#undef SET

const Kernels* find_kernels(const char* wanted) {
#define SET(name) &name::kernels,
    static const Kernels* const all[] = {
#include "sets.h"
    };
#undef SET
    const Kernels* best = nullptr;
    for (const Kernels* kernels : all)  // the best last
        if (instruction_set(kernels->name) &&
            (!wanted || !*wanted || !std::strcmp(kernels->name, wanted)))
            best = kernels;
    return best;
}
