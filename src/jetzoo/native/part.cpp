// Jets through the network, group by group; what Python calls.
#include "part.h"

#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>

#include "part_dense.h"
#include "threads.h"

EXPORT_SIZE(DenseWeights)
EXPORT_SIZE(FeedForwardWeights)
EXPORT_SIZE(ParticleBlockWeights)
EXPORT_SIZE(ClassBlockWeights)
EXPORT_SIZE(NetworkWeights)
EXPORT_SIZE(JetArguments)

// Whether features, in the scale of the network, and momenta of all particles of a jet are finite.
static bool is_finite(const NetworkWeights& net, const JetArguments& jets, const Jet& jet) {
    const float* features = jets.features + jet.index * net.num_features * jets.length;
    const float* vectors = jets.vectors + jet.index * 4 * jets.length;
    bool finite = true;
    for (int c = 0; c < net.num_features; c++)
        for (int i = 0; i < jet.size; i++)
            finite &= std::isfinite(features[c * jets.length + jet.positions[i]] * net.scale[c] +
                                    net.shift[c]);
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < jet.size; i++)
            finite &= std::isfinite(vectors[k * jets.length + jet.positions[i]]);
    return finite;
}

// Features (C, ld) of a group. The lanes past the last token are computed, too, and those of jets
// that are not finite: they hold zeros.
static void gather_features(const NetworkWeights& net, const JetArguments& arguments,
                            const std::vector<Jet>& jets, long tokens, long ld, float* out) {
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
                         const std::vector<Jet>& jets, float* bias, Workspace& work) {
    for (const Jet& jet : jets) {
        const long stride = round_up(jet.size, W) + W, width = round_up(jet.size, W);
        double* p = reserve(work.particles, 6 * stride);
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
static const float* class_tokens(const NetworkWeights& net, const std::vector<Jet>& jets,
                                 const float* x, long ld, long tokens, float* inverse,
                                 Workspace& work) {
    const int dim = net.dim;
    float* cls = reserve(work.cls, 2 * dim * W);
    float* attended = cls + dim * W;
    for (int c = 0; c < dim; c++) store(cls + c * W, splat(net.cls_token[c]));
    std::fill(attended, attended + dim * W, 0.f);
    tiles(tokens, [&](auto size, long t) {
        constexpr int N = decltype(size)::value;
        vf spreads[N];
        spread<N>(x + t, ld, dim, net.cls_blocks[0].eps, spreads);
        for (int v = 0; v < N; v++) store(inverse + t + v * W, spreads[v]);
    });
    float* mean = reserve(work.cls_mean, net.num_heads * dim * W);
    std::fill(mean, mean + net.num_heads * dim * W, 0.f);
    for (int l = 0; l < net.num_cls_blocks; l++) {
        class_attention(net, net.cls_blocks[l], jets, x, ld, inverse, cls, attended, work);
        feed_forward(net.cls_blocks[l].rest, cls, attended, W, W, dim, work);
    }
    return cls;
}

// Class tokens (jets, D) of a group of at most W jets.
static void forward(const NetworkWeights& net, const JetArguments& arguments,
                    std::vector<Jet>& jets, Workspace& work) {
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
    float* x = reserve(work.x, dim * ld);
    float* qkv = reserve(work.qkv, 3 * dim * ld);
    float* mixed = reserve(work.mixed, std::max(dim, net.num_features) * ld);
    float* bias = net.num_pair ? reserve(work.bias, pairs + TILE) : nullptr;

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
    for (size_t b = 0; b < jets.size(); b++)
        for (int c = 0; c < dim; c++)
            arguments.out[jets[b].index * dim + c] =
                jets[b].finite ? cls[c * W + b] : std::numeric_limits<float>::quiet_NaN();
    clock.add(CLASS_ATTENTION);
}

// The batch in groups of about `tokens` particles and at most W jets.
struct Groups {
    std::vector<int32_t> positions;  // of the particles of all jets, one jet after the other
    std::vector<int64_t> starts;     // of each jet in `positions`
    std::vector<int64_t> first;      // jet of each group, and the number of jets

    Groups(const JetArguments& a, int threads) : starts{0}, first{0} {
        const auto* bytes = static_cast<const uint8_t*>(a.mask);
        const auto* floats = static_cast<const float*>(a.mask);
        for (int64_t b = 0; b < a.batch; b++) {
            for (int64_t i = 0; i < a.length; i++) {
                const int64_t at = b * a.length + i;
                if (a.mask_of_floats ? floats[at] != 0 : bytes[at] != 0) positions.push_back(i);
            }
            starts.push_back(positions.size());
        }
        const int64_t tokens =
            std::max<int64_t>(1, std::min<int64_t>(a.tokens, starts.back() / std::max(threads, 1)));
        for (int64_t b = 1; b < a.batch; b++)
            if (starts[b + 1] - starts[first.back()] > tokens || b - first.back() == W)
                first.push_back(b);
        first.push_back(a.batch);
    }

    void jets(int64_t group, std::vector<Jet>& out) const {
        out.clear();
        for (int64_t b = first[group]; b < first[group + 1]; b++)
            out.push_back(
                {b, 0, int32_t(starts[b + 1] - starts[b]), positions.data() + starts[b], 0, true});
    }
};

static thread_local Workspace workspace;

EXPORT int32_t rows_per_kernel() { return PM; }

// Class tokens of a batch of jets.
EXPORT int32_t part_forward(const NetworkWeights* net, const JetArguments* arguments, int threads) {
    return status_of([&] {
        const Groups groups(*arguments, threads);
        const int64_t count = groups.first.size() - 1;
        std::atomic<int64_t> next{0};
        std::mutex mutex;
        std::fill(arguments->seconds, arguments->seconds + STAGES, 0.0);
        on_threads(std::min<int64_t>(threads, count), [&] {
            Workspace& work = workspace;  // of the thread that runs this
            std::fill(work.seconds, work.seconds + STAGES, 0.0);
            try {
                std::vector<Jet> jets;
                for (int64_t g; (g = next++) < count;) {
                    groups.jets(g, jets);
                    forward(*net, *arguments, jets, work);
                }
            } catch (...) {
                next = count;  // the other threads stop, too
                work.trim();
                throw;
            }
            work.trim();
            std::lock_guard<std::mutex> lock(mutex);
            for (int s = 0; s < STAGES; s++) arguments->seconds[s] += work.seconds[s];
        });
    });
}
