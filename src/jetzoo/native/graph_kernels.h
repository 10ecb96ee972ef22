// ParticleNet for one instruction set.
#pragma once
#include "graph.h"
#include "simd.h"

namespace ISA {

// The means over the particles of what the last layer before the head makes of them.
void graph_jet(const GraphWeights& net, const GraphJet& jet, Workspace& work);

}  // namespace ISA
