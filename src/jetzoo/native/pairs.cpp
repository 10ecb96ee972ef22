// The pair MLP, in tiles of pairs: h_l = W_l a_(l-1), z_l = scale_l h_l + shift_l, a_l = gelu(z_l).
//
// A batch norm needs sums over all pairs, so each layer has a pass of its own, forward and
// backward. Each computes what it needs from the inputs on: that takes no longer than to write the
// hidden layers to memory and to read them again. Sums over pairs are made chunk by chunk and added
// in a fixed order, so that they do not depend on the threads.
#include <vector>

#include "products.h"
#include "simd.h"
#include "threads.h"

constexpr int PAIR_TILE = 96;  // pairs that stay in the cache together
constexpr int TILES = 16;      // tiles whose sums are made together
constexpr int MAX_LAYERS = 16;

struct PairLayer {                    // widths are padded to multiples of 16
    const float *forward, *backward;  // (inputs, padded outputs), (outputs, padded inputs)
    const float *scale, *shift;
    float* mean;
    // Gradient of h from that of z: scale * dz + slope * h + offset, once the sums are known.
    const float *slope, *offset;
};
struct PairArguments {
    int64_t num_pairs, num_layers, last;  // the layer whose sums are asked for, from 1 on
    int64_t activated;                    // whether a GELU follows the last layer, too
    const int64_t* widths;                // (num_layers + 1)
    const float* x;                       // (inputs, P)
    const PairLayer* layers;
    float* out;         // (outputs, P)
    const float* grad;  // (outputs, P)
    double* sums;
};

EXPORT_SIZE(PairLayer)
EXPORT_SIZE(PairArguments)

struct PairTile {
    float *h[MAX_LAYERS + 1], *a[MAX_LAYERS + 1], *slope[MAX_LAYERS + 1], *dz, *da;
};

static int padded(int64_t width) { return round_up(width, 16); }

static int64_t tile_size(const PairArguments& p) {
    int64_t total = 0, widest = 0;
    for (int l = 0; l <= p.num_layers; l++) {
        total += 3 * padded(p.widths[l]);
        widest = std::max<int64_t>(widest, padded(p.widths[l]));
    }
    return (total + 2 * widest) * PAIR_TILE;
}

static PairTile make_tile(const PairArguments& p, Scratch& scratch) {
    PairTile t;
    int64_t widest = 0;
    for (int l = 0; l <= p.num_layers; l++) {
        int64_t size = padded(p.widths[l]) * PAIR_TILE;
        t.h[l] = scratch.take(size), t.a[l] = scratch.take(size), t.slope[l] = scratch.take(size);
        widest = std::max(widest, size);
    }
    t.dz = scratch.take(widest), t.da = scratch.take(widest);
    return t;
}

// What follows the norm of layer `l`: a GELU, or nothing. Without slopes, the cheaper form.
template <bool SLOPES>
INLINE vf activation(const PairArguments& p, int l, vf z, vf& slope) {
    if (l < p.num_layers || p.activated) return SLOPES ? gelu_and_slope(z, slope) : vgelu(z);
    slope = splat(1.f);
    return z;
}

// Activations of `n` pairs from `first` on: all up to layer `last - 1`, and h of `last`.
template <bool SLOPES>
static void tile_forward(const PairArguments& p, int64_t first, int n, int last, PairTile& t) {
    for (int l = 1; l <= last; l++) {
        const PairLayer& layer = p.layers[l - 1];
        int in = p.widths[l - 1], out = padded(p.widths[l]);
        if (l == 1)
            product(n, out, in, p.x + first, 1, p.num_pairs, layer.forward, out, t.h[l], out);
        else
            product(n, out, in, t.a[l - 1], padded(in), 1, layer.forward, out, t.h[l], out);
        if (l == last && !SLOPES) return;
        for (int c = 0; c < out; c += W) {
            vf scale = load(layer.scale + c), shift = load(layer.shift + c), slope;
            for (int i = 0; i < n; i++) {
                vf z = load(t.h[l] + i * out + c) * scale + shift;
                store(t.a[l] + i * out + c, activation<SLOPES>(p, l, z, slope));
                if (SLOPES) store(t.slope[l] + i * out + c, slope);
            }
        }
    }
}

// task(first pair, number of pairs, tile, sums of `width` floats) for all tiles; adds the sums up.
template <class Task>
static void over_pairs(const PairArguments& p, int threads, int64_t width, double* total,
                       Task task) {
    const int64_t size = PAIR_TILE * TILES, chunks = (p.num_pairs + size - 1) / size;
    std::vector<float> partial(chunks * width);
    parallel(chunks, threads, [&](int64_t chunk, Scratch& scratch) {
        scratch.reset(tile_size(p));
        PairTile tile = make_tile(p, scratch);
        const int64_t end = std::min(p.num_pairs, (chunk + 1) * size);
        for (int64_t first = chunk * size; first < end; first += PAIR_TILE)
            task(first, int(std::min<int64_t>(PAIR_TILE, end - first)), tile,
                 partial.data() + chunk * width);
    });
    for (int64_t c = 0; c < width; c++) total[c] = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++)
        for (int64_t c = 0; c < width; c++) total[c] += partial[chunk * width + c];
}

// The mean of h of layer `last` over the first pairs: near enough to that of all for float32.
static void guess_mean(const PairArguments& p, int last, float* mean) {
    Scratch scratch;
    scratch.reset(tile_size(p));
    PairTile tile = make_tile(p, scratch);
    const int n = std::min<int64_t>(PAIR_TILE, p.num_pairs), out = padded(p.widths[last]);
    tile_forward<false>(p, 0, n, last, tile);
    for (int c = 0; c < out; c++) {
        mean[c] = 0;
        for (int i = 0; i < n; i++) mean[c] += tile.h[last][i * out + c] / n;
    }
}

// Sums over the pairs of h - mean and of its square, for layer `last`, whose `mean` is set.
EXPORT int32_t pairs_statistics(const PairArguments* p, int threads) {
    const int last = p->last, out = padded(p->widths[last]);
    float* mean = p->layers[last - 1].mean;
    auto task = [&](int64_t first, int n, PairTile& t, float* sums) {
        tile_forward<false>(*p, first, n, last, t);
        for (int c = 0; c < out; c += W) {
            vf s1{}, s2{};
            for (int i = 0; i < n; i++) {
                vf d = load(t.h[last] + i * out + c) - load(mean + c);
                s1 += d;
                s2 += d * d;
            }
            accumulate(sums + c, s1);
            accumulate(sums + out + c, s2);
        }
    };
    return status_of([&] {
        guess_mean(*p, last, mean);
        over_pairs(*p, threads, 2 * out, p->sums, task);
    });
}

EXPORT int32_t pairs_forward(const PairArguments* p, int threads) {
    const int last = p->num_layers, width = p->widths[last], ld = padded(width);
    const PairLayer& layer = p->layers[last - 1];
    auto task = [&](int64_t first, int n, PairTile& t, float*) {
        tile_forward<false>(*p, first, n, last, t);
        for (int c = 0; c < ld; c += W) {
            vf scale = load(layer.scale + c), shift = load(layer.shift + c), slope;
            for (int i = 0; i < n; i++) {
                float* at = t.h[last] + i * ld + c;
                store(at, activation<false>(*p, last, load(at) * scale + shift, slope));
            }
        }
        for (int c = 0; c < width; c++)
            for (int i = 0; i < n; i++)
                p->out[c * p->num_pairs + first + i] = t.h[last][i * ld + c];
    };
    return status_of([&] { over_pairs(*p, threads, 0, nullptr, task); });
}

// dz of the last layer, from the gradient of its output.
static void top_gradient(const PairArguments& p, int64_t first, int n, PairTile& t) {
    const int top = p.num_layers, ld = padded(p.widths[top]);
    for (int i = 0; i < n; i++)
        for (int c = 0; c < ld; c++)
            t.dz[i * ld + c] = c < p.widths[top]
                                   ? t.slope[top][i * ld + c] * p.grad[c * p.num_pairs + first + i]
                                   : 0;
}

// From dz of layer `l` to dz of the layer before, whose sums are known. The gradient of the
// weights of the layer is added to `weight_sums`, if that is given.
static void step_back(const PairArguments& p, int l, int n, PairTile& t, float* weight_sums) {
    const PairLayer& layer = p.layers[l - 1];
    const int out = p.widths[l], in = padded(p.widths[l - 1]), ld = padded(out);
    for (int c = 0; c < ld; c += W) {
        vf scale = load(layer.scale + c), slope = load(layer.slope + c);
        vf offset = load(layer.offset + c);
        for (int i = 0; i < n; i++)
            store(t.dz + i * ld + c,
                  load(t.dz + i * ld + c) * scale + load(t.h[l] + i * ld + c) * slope + offset);
    }
    if (weight_sums) product(out, in, n, t.dz, 1, ld, t.a[l - 1], in, weight_sums, in, true);
    product(n, in, out, t.dz, ld, 1, layer.backward, in, t.da, in);
    for (int c = 0; c < n * in; c += W) store(t.dz + c, load(t.da + c) * load(t.slope[l - 1] + c));
}

// Sums of dz and of dz (h - mean) for layer `last`, whose followers know theirs. For the first
// layer, the second are those of dz times each input, (inputs, outputs); then there are the
// gradients of the weights of all other layers, too, one after the other, (outputs, padded inputs).
EXPORT int32_t pairs_backward(const PairArguments* p, int threads) {
    const int top = p->num_layers, last = p->last, width = padded(p->widths[last]);
    int64_t size = width * (last == 1 ? 1 + p->widths[0] : 2);
    if (last == 1)
        for (int l = 2; l <= top; l++) size += p->widths[l] * padded(p->widths[l - 1]);
    auto task = [&](int64_t first, int n, PairTile& t, float* sums) {
        tile_forward<true>(*p, first, n, top, t);
        top_gradient(*p, first, n, t);
        float* weight_sums = last == 1 ? sums + width * (1 + p->widths[0]) : nullptr;
        for (int l = top; l > last; l--) {
            step_back(*p, l, n, t, weight_sums);
            if (weight_sums) weight_sums += p->widths[l] * padded(p->widths[l - 1]);
        }
        const float* mean = p->layers[last - 1].mean;
        for (int c = 0; c < width; c += W) {
            vf s1{}, s2{};
            for (int i = 0; i < n; i++) {
                vf g = load(t.dz + i * width + c);
                s1 += g;
                s2 += g * (load(t.h[last] + i * width + c) - load(mean + c));
            }
            accumulate(sums + c, s1);
            if (last > 1) accumulate(sums + width + c, s2);
        }
        if (last == 1)
            product(p->widths[0], width, n, p->x + first, p->num_pairs, 1, t.dz, width,
                    sums + width, width, true);
    };
    return status_of([&] { over_pairs(*p, threads, size, p->sums, task); });
}
