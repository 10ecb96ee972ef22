// The layers of a Particle Transformer, and the whole of it, for one instruction set.
//
// Activations are stored channel by channel, with the tokens of a few jets side by side: a vector
// register holds one channel of W tokens. Norms, softmax and quantization then act on whole
// registers, and no jet needs padding but at the end of a group. Each thread takes a group of jets
// through the whole network, so that activations stay in the second-level cache.
#pragma once
#include "part.h"
#include "simd.h"

namespace ISA {

struct Jets {  // of a group, at most W
    Jet *first, *last;

    __attribute__((always_inline)) Jet* begin() const { return first; }
    __attribute__((always_inline)) Jet* end() const { return last; }
};

// Class tokens (jets, D) of a group of jets.
void part_group(const NetworkWeights& net, const JetArguments& arguments, Jets jets,
                Workspace& work);

// A group of `tokens` tokens stands in rows of `ld` numbers.

// y (m) = scale * (W x) + bias in floats for the first token of x (k, tokens).
void dense_token(const DenseWeights& layer, const float* x, long ld, float scale, float* y,
                 Workspace& work);

// Features (C, tokens) to x (D, tokens).
void embed(const NetworkWeights& net, const float* features, float* x, long ld, long tokens,
           Workspace& work);
// x (D, tokens) to queries, keys and values (3 D, tokens).
void project(const ParticleBlockWeights& block, const float* x, float* qkv, long ld, long tokens,
             int dim, Workspace& work);
// Bias (H, n, width) of a jet, symmetric; p holds px, py, pz, E of its n particles.
void pair_bias(const NetworkWeights& net, int n, long stride, double* p, float* bias, long width,
               Workspace& work);
// Attention of the particles of each jet to one another, with a bias or nullptr.
void particle_attention(const NetworkWeights& net, const Jets& jets, const float* qkv,
                        const float* bias, float* mixed, long ld, Workspace& work);
// Attention of the class tokens, in the lanes, to the particles of their jets and to themselves.
void class_attention(const NetworkWeights& net, const ClassBlockWeights& block,
                     const Jets& jets, const float* x, long ld, const float* inverse,
                     float* cls, float* out, Workspace& work);
// What a block does after the attention: x is changed in place, `mixed` is what was attended to.
void feed_forward(const FeedForwardWeights& f, float* x, const float* mixed, long ld, long tokens,
                  int dim, Workspace& work);

}  // namespace ISA
