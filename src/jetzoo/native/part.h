// Inference of a Particle Transformer whose norms are folded into the matrices: what the files of
// it share.
//
// Activations are stored channel by channel, with the tokens of a few jets side by side: a vector
// register holds one channel of W tokens. Norms, softmax and quantization then act on whole
// registers, and no jet needs padding but at the end of a group. Each thread takes a group of jets
// through the whole network, so that activations stay in the second-level cache.
#pragma once
#include <array>
#include <chrono>
#include <vector>

#include "simd.h"

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int PM = 8;  // output channels of a micro-kernel; with NV vectors it fills the registers
#else
constexpr int PM = 4;
#endif
constexpr int NV = 3;                            // vectors of tokens of a micro-kernel
constexpr int TILE = NV * W;                     // tokens
constexpr size_t KEPT_BYTES = size_t(16) << 20;  // that a thread keeps between calls, at most

// What Python hands over; jetzoo.native.structures mirrors these structures.
struct DenseWeights {
    const void* weight;   // (m / PM, k, PM) floats, or (m / PM, k / 4, PM, 4) bytes
    const float* bias;    // (m)
    const float* scale;   // bytes: of the weights of each output channel (m)
    const float* offset;  // bytes: sum of the weights of each output channel (m)
    int32_t m, k;         // multiples of PM, and of 4 for bytes
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

// What `jetzoo profile` tells apart.
enum Stage { EMBED, PAIR_EMBED, ATTENTION, FEED_FORWARD, CLASS_ATTENTION, STAGES };

using Buffer = std::vector<float>;
struct Workspace {
    Buffer x, qkv, mixed, tile, hidden, pair, pair_hidden, pair_out, bias, momenta, scores;
    Buffer cls, cls_wide, cls_mean, heads;
    std::vector<double> particles;
    std::vector<int32_t> quantized;
    double seconds[STAGES] = {};

    // Memory outlives a call, because fresh memory costs a page fault for every 4 KiB. What a long
    // jet needed is given back.
    void trim() {
        size_t bytes = quantized.capacity() * sizeof(int32_t) + particles.capacity() * sizeof(double);
        for (const Buffer* buffer : buffers()) bytes += buffer->capacity() * sizeof(float);
        if (bytes <= KEPT_BYTES) return;
        for (Buffer* buffer : buffers()) Buffer().swap(*buffer);
        std::vector<int32_t>().swap(quantized);
        std::vector<double>().swap(particles);
    }

  private:
    std::array<Buffer*, 15> buffers() {
        return {&x,    &qkv,       &mixed,  &tile, &hidden,   &pair,     &pair_hidden, &pair_out,
                &bias, &momenta, &scores, &cls,  &cls_wide, &cls_mean, &heads};
    }
};

// Adds the time since it was last asked to a stage.
struct Clock {
    using Now = std::chrono::steady_clock;
    double* seconds;
    Now::time_point last = Now::now();

    void add(Stage stage) {
        const Now::time_point now = Now::now();
        seconds[stage] += std::chrono::duration<double>(now - last).count();
        last = now;
    }
};

struct Jet {
    int64_t index;             // in the batch
    int32_t first, size;       // first token in the group; number of particles
    const int32_t* positions;  // of the particles in the padded input
    long bias;                 // start in Workspace::bias
    bool finite;               // inputs of its particles
};

// At least `size` finite numbers.
template <class Number>
INLINE Number* reserve(std::vector<Number>& buffer, size_t size) {
    if (buffer.size() < size) {
        std::vector<Number>().swap(buffer);  // what it held is of no use: do not copy it
        buffer.resize(size);
    }
    return buffer.data();
}

// The layers of the network; a group of `tokens` tokens stands in rows of `ld` numbers.

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
void particle_attention(const NetworkWeights& net, const std::vector<Jet>& jets, const float* qkv,
                        const float* bias, float* mixed, long ld, Workspace& work);
// Attention of the class tokens, in the lanes, to the particles of their jets and to themselves.
void class_attention(const NetworkWeights& net, const ClassBlockWeights& block,
                     const std::vector<Jet>& jets, const float* x, long ld, const float* inverse,
                     float* cls, float* out, Workspace& work);
// What a block does after the attention: x is changed in place, `mixed` is what was attended to.
void feed_forward(const FeedForwardWeights& f, float* x, const float* mixed, long ld, long tokens,
                  int dim, Workspace& work);
