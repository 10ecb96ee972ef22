// A group of jets through the network.
#include "part_dense.h"

namespace ISA {

// Whether features, in the scale of the network, and momenta of all particles of a jet are finite.
static bool is_finite(const NetworkWeights& net, const JetArguments& jets, const Jet& jet) {
    const float* features = jets.features + jet.index * net.num_features * jets.length;
    const float* vectors = jets.vectors + jet.index * 4 * jets.length;
    bool finite = true;
    for (int c = 0; c < net.num_features; c++)
        for (int i = 0; i < jet.size; i++)
            finite &= __builtin_isfinite(features[c * jets.length + jet.positions[i]] * net.scale[c] +
                                    net.shift[c]);
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < jet.size; i++)
            finite &= __builtin_isfinite(vectors[k * jets.length + jet.positions[i]]);
    return finite;
}

// Features (C, ld) of a group. The lanes past the last token are computed, too, and those of jets
// that are not finite: they hold zeros.
static void gather_features(const NetworkWeights& net, const JetArguments& arguments,
                            const Jets& jets, long tokens, long ld, float* out) {
    for (int c = 0; c < net.num_features; c++) {
        float* to = out + c * ld;
        std::fill(to + tokens, to + ld, 0.f);
        for (const Jet& jet : jets) {
            const float* from =
                arguments.features + (jet.index * net.num_features + c) * arguments.length;
            for (int i = 0; i < jet.size; i++)
                to[jet.first + i] =
                    jet.finite ? from[jet.positions[i]] * net.scale[c] + net.shift[c] : 0.f;
        }
    }
}

// The bias of all jets of a group.
static void gather_pairs(const NetworkWeights& net, const JetArguments& arguments,
                         const Jets& jets, float* bias, Workspace& work) {
    for (const Jet& jet : jets) {
        const long stride = round_up(jet.size, W) + W, width = round_up(jet.size, W);
        double* p = work.particles.numbers<double>(6 * stride);
        std::fill(p, p + 6 * stride, 0.);
        const float* from = arguments.vectors + jet.index * 4 * arguments.length;
        for (int k = 0; k < 4 && jet.finite; k++)
            for (int i = 0; i < jet.size; i++)
                p[k * stride + i] = from[k * arguments.length + jet.positions[i]];
        float* matrix = bias + jet.bias;
        for (long row = 0; row < long(net.num_heads) * jet.size; row++)
            std::fill(matrix + row * width + jet.size, matrix + (row + 1) * width, 0.f);
        pair_bias(net, jet.size, stride, p, matrix, width, work);
    }
}

// The class tokens (D, W) of a group whose particles have been through all of their blocks.
static const float* class_tokens(const NetworkWeights& net, const Jets& jets,
                                 const float* x, long ld, long tokens, float* inverse,
                                 Workspace& work) {
    const int dim = net.dim;
    float* cls = work.cls.numbers<float>(2 * dim * W);
    float* attended = cls + dim * W;
    for (int c = 0; c < dim; c++) store(cls + c * W, splat(net.cls_token[c]));
    std::fill(attended, attended + dim * W, 0.f);
    tiles(tokens, [&](auto size, long t) {
        constexpr int N = decltype(size)::value;
        vf spreads[N];
        spread<N>(x + t, ld, dim, net.cls_blocks[0].eps, spreads);
        for (int v = 0; v < N; v++) store(inverse + t + v * W, spreads[v]);
    });
    float* mean = work.cls_mean.numbers<float>(net.num_heads * dim * W);
    std::fill(mean, mean + net.num_heads * dim * W, 0.f);
    for (int l = 0; l < net.num_cls_blocks; l++) {
        class_attention(net, net.cls_blocks[l], jets, x, ld, inverse, cls, attended, work);
        feed_forward(net.cls_blocks[l].rest, cls, attended, W, jets.last - jets.first, dim, work);
    }
    return cls;
}

void part_group(const NetworkWeights& net, const JetArguments& arguments, Jets jets,
                Workspace& work) {
    const int dim = net.dim, heads = net.num_heads;
    Clock clock{work.seconds};
    long tokens = 0, pairs = 0;
    for (Jet& jet : jets) {
        jet.first = tokens;
        jet.bias = pairs;
        jet.finite = is_finite(net, arguments, jet);
        tokens += jet.size;
        pairs += heads * jet.size * round_up(jet.size, W);
    }
    const long ld = round_up(tokens, TILE) + TILE;
    float* x = work.x.numbers<float>(dim * ld);
    float* qkv = work.qkv.numbers<float>(3 * dim * ld);
    float* mixed = work.mixed.numbers<float>(std::max(dim, net.num_features) * ld);
    float* bias = net.num_pair ? work.bias.numbers<float>(pairs + TILE) : nullptr;

    gather_features(net, arguments, jets, tokens, ld, mixed);
    for (int c = 0; c < dim; c++) std::fill(x + c * ld + tokens, x + (c + 1) * ld, 0.f);
    embed(net, mixed, x, ld, tokens, work);
    clock.add(EMBED);
    if (bias) gather_pairs(net, arguments, jets, bias, work);
    clock.add(PAIR_EMBED);

    for (int c = 0; c < dim; c++) std::fill(mixed + c * ld + tokens, mixed + (c + 1) * ld, 0.f);
    for (int l = 0; l < net.num_blocks; l++) {
        const ParticleBlockWeights& block = net.blocks[l];
        project(block, x, qkv, ld, tokens, dim, work);
        particle_attention(net, jets, qkv, bias, mixed, ld, work);
        clock.add(ATTENTION);
        feed_forward(block.rest, x, mixed, ld, tokens, dim, work);
        clock.add(FEED_FORWARD);
    }

    const float* cls = class_tokens(net, jets, x, ld, tokens, mixed, work);
    for (const Jet& jet : jets)
        for (int c = 0; c < dim; c++)
            arguments.out[jet.index * dim + c] =
                jet.finite ? cls[c * W + (&jet - jets.first)] : __builtin_nanf("");
    clock.add(CLASS_ATTENTION);
}

}  // namespace ISA
