// Compiled for each instruction set.
#include "kernels.h"

#include "graph_kernels.h"
#include "part_kernels.h"

#define TEXT_OF(name) #name
#define NAME_OF(name) TEXT_OF(name)

namespace ISA {

static void part(const NetworkWeights& net, const JetArguments& arguments, Jet& jet,
                 Workspace& work) {
    part_group(net, arguments, {&jet, &jet + 1}, work);
}

extern const Kernels kernels;
const Kernels kernels{NAME_OF(ISA), part, graph_jet};

}  // namespace ISA
