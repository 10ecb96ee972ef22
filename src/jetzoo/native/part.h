// Inference of a Particle Transformer whose norms are folded into the matrices: what its callers
// hand over.
#pragma once
#include "workspace.h"

constexpr int ROWS = 8;  // output channels whose weights stand together

// What the callers hand over; jetzoo.native.structures mirrors these structures.
struct DenseWeights {
    const void* weight;   // (m / ROWS, k, ROWS) floats, or (m / ROWS, k / 4, ROWS, 4) bytes
    const float* bias;    // (m)
    const float* scale;   // bytes: of the weights of each output channel (m)
    const float* offset;  // bytes: sum of the weights of each output channel (m)
    int32_t m, k;         // multiples of ROWS, and of 4 for bytes
    int32_t bytes;  // 0: floats; 1: bytes, with one scale per token; 2: with one scale for all
    float input_scale;
    float input_zero;
};
struct FeedForwardWeights {
    DenseWeights out, fc1, fc2;  // out is the projection after the attention
    const float *scale, *shift, *w_resid, *bias;
    float eps_attn, eps_fc1, eps_fc2;
};
struct ParticleBlockWeights {
    DenseWeights qkv;
    FeedForwardWeights rest;
    float eps;
};
struct ClassBlockWeights {
    DenseWeights query;
    const DenseWeights *key, *value;  // one for each head
    FeedForwardWeights rest;
    float eps;
};
struct NetworkWeights {
    int32_t dim, num_heads, num_features, num_embed, num_pair, num_blocks, num_cls_blocks, widest;
    int32_t pair_activated;  // whether a GELU follows the last layer of the pair MLP
    int32_t self_pairs;      // whether a particle has a bias with itself
    const float *scale, *shift;  // batch norm of the features
    const DenseWeights* embed;
    const float* embed_eps;
    const DenseWeights* pair;
    const ParticleBlockWeights* blocks;
    const ClassBlockWeights* cls_blocks;
    const float* cls_token;
};
struct JetArguments {
    int64_t batch, length, tokens;    // tokens: of a group, about
    const float *features, *vectors;  // (B, C, N), (B, 4, N)
    const void* mask;                 // (B, N), not zero for particles
    int32_t mask_of_floats;           // else of bytes
    float* out;                       // (B, D), NaN for jets with an input that is not finite
    double* seconds;                  // of each stage, the sum over threads
};

struct Jet {
    int64_t index;             // in the batch
    int32_t first, size;       // first token in the group; number of particles
    const int32_t* positions;  // of the particles in the padded input
    long bias;                 // start in Workspace::bias
    bool finite;               // inputs of its particles
};
