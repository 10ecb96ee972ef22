// Inference of a ParticleNet whose norms are folded into the matrices, one jet at a time: what its
// callers hand over.
#pragma once
#include "part.h"

// An edge convolution. jetzoo.cpp.graph mirrors these structures.
struct EdgeBlockWeights {
    int32_t neighbours;
    int32_t num_layers;  // after the first
    int32_t has_shortcut;
    DenseWeights first;  // what a particle adds to an edge as its centre, then as a neighbour
    const DenseWeights *layers, *shortcut;
};
struct GraphWeights {
    int32_t num_points, num_features, num_blocks, has_fusion;
    const float *scale, *shift;  // batch norm of the features
    const EdgeBlockWeights* blocks;
    const DenseWeights* fusion;  // of the outputs of all blocks, one after the other
};
struct GraphJet {
    int64_t size;                    // number of particles
    const float *points, *features;  // (D, n), (C, n)
    float* out;                      // means over the particles, NaN if an input is not finite
};
