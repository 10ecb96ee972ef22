// The kernels for one instruction set, as a table: the library holds several of them.
#pragma once
#include "graph.h"
#include "part.h"

struct Kernels {
    const char* name;
    // Class token (1, D) of one jet.
    void (*part)(const NetworkWeights& net, const JetArguments& arguments, Jet& jet,
                 Workspace& work);
    void (*graph)(const GraphWeights& net, const GraphJet& jet, Workspace& work);
};

// The best of the library that the processor has, or the one of this name; nullptr if it lacks it.
const Kernels* find_kernels(const char* wanted);
