// The pair MLP: h_l = W_l a_(l-1), z_l = scale_l h_l + shift_l, a_l = gelu(z_l).
//
// A batch norm needs sums over all pairs, so each layer has a pass of its own, forward and
// backward, over tiles of pairs that stay in the cache. From one pass to the next, the products h
// and the gradients dz are kept in memory; those of the first layer are computed again from the few
// inputs. Sums over pairs are made chunk by chunk and added in a fixed order, so that they do not
// depend on the threads.
#include <vector>

#include "products.h"
#include "simd.h"
#include "threads.h"

constexpr int PAIR_TILE = 96;  // pairs that stay in the cache together
constexpr int TILES = 16;      // tiles whose sums are made together
// Pairs whose numbers lie together. What blocks of the network have freed serves for such parts; the
// C library asks the system for more memory if one is large. As in jetzoo.native.pairs.
constexpr int64_t SEGMENT = 16 * TILES * PAIR_TILE;

struct PairLayer {                    // widths are padded to multiples of 16
    const float *forward, *backward;  // (inputs, padded outputs), (outputs, padded inputs)
    const float *scale, *shift;
    float* mean;
    // Gradient of h from that of z: scale * dz + slope * h + offset, once the sums are known.
    const float *slope, *offset;
    float *const *h, *const *dz;  // parts of SEGMENT pairs, (pairs, padded outputs); the first has no h
};
struct PairArguments {
    int64_t num_pairs, num_layers, last;  // the layer that the pass is for, from 1 on
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

static int padded(int64_t width) { return round_up(width, 16); }

// The numbers of the pairs from `first` on.
INLINE float* at(float* const* parts, int64_t first, int width) {
    return parts[first / SEGMENT] + first % SEGMENT * width;
}

// Memory of one tile: h of the first layer, activations, slopes, gradients.
struct PairTile {
    float *h, *a, *slope, *dh;

    static int64_t size(const PairArguments& p) {
        return 4 * PAIR_TILE * padded(*std::max_element(p.widths, p.widths + p.num_layers + 1));
    }
    PairTile(const PairArguments& p, Scratch& scratch) {
        scratch.reset(size(p));
        for (float** memory : {&h, &a, &slope, &dh}) *memory = scratch.take(size(p) / 4);
    }
};

// h (n, padded outputs) of `n` pairs from `first` on, which the layers before have left.
static const float* products_of(const PairArguments& p, int l, int64_t first, int n, PairTile& t) {
    const PairLayer& layer = p.layers[l - 1];
    const int out = padded(p.widths[l]);
    if (l > 1) return at(layer.h, first, out);
    product(n, out, p.widths[0], p.x + first, 1, p.num_pairs, layer.forward, out, t.h, out);
    return t.h;
}

// What follows the norm of layer `l`, a GELU or nothing, and its slope if that is asked for.
template <bool SLOPES>
static void activate(const PairArguments& p, int l, int n, const float* h, PairTile& t) {
    const PairLayer& layer = p.layers[l - 1];
    const int width = padded(p.widths[l]);
    const bool gelu = l < p.num_layers || p.activated;
    for (int c = 0; c < width; c += W) {
        const vf scale = load(layer.scale + c), shift = load(layer.shift + c);
        for (int i = 0; i < n; i++) {
            vf z = load(h + i * width + c) * scale + shift, slope = splat(1.f);
            if (gelu) z = SLOPES ? gelu_and_slope(z, slope) : vgelu(z);
            store(t.a + i * width + c, z);
            if (SLOPES) store(t.slope + i * width + c, slope);
        }
    }
}

// h of layer `l` from that of the layer before.
static void advance(const PairArguments& p, int l, int64_t first, int n, PairTile& t, float* h) {
    const int in = padded(p.widths[l - 1]), out = padded(p.widths[l]);
    activate<false>(p, l - 1, n, products_of(p, l - 1, first, n, t), t);
    product(n, out, p.widths[l - 1], t.a, in, 1, p.layers[l - 1].forward, out, h, out);
}

// task(first pair, number of pairs, tile, sums of `width` floats) for all tiles; adds the sums up.
template <class Task>
static void over_pairs(const PairArguments& p, int threads, int64_t width, double* total,
                       Task task) {
    const int64_t size = PAIR_TILE * TILES, chunks = (p.num_pairs + size - 1) / size;
    std::vector<float> partial(chunks * width);
    parallel(chunks, threads, [&](int64_t chunk, Scratch& scratch) {
        PairTile tile(p, scratch);
        const int64_t end = std::min(p.num_pairs, (chunk + 1) * size);
        for (int64_t first = chunk * size; first < end; first += PAIR_TILE)
            task(first, int(std::min<int64_t>(PAIR_TILE, end - first)), tile,
                 partial.data() + chunk * width);
    });
    for (int64_t c = 0; c < width; c++) total[c] = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++)
        for (int64_t c = 0; c < width; c++) total[c] += partial[chunk * width + c];
}

// The mean of h over the first pairs: near enough to that of all for float32.
static void guess_mean(const PairArguments& p, int l, float* mean) {
    Scratch scratch;
    PairTile tile(p, scratch);
    const int n = std::min<int64_t>(PAIR_TILE, p.num_pairs), out = padded(p.widths[l]);
    float* h = at(p.layers[l - 1].h, 0, out);
    advance(p, l, 0, n, tile, h);
    for (int c = 0; c < out; c++) {
        mean[c] = 0;
        for (int i = 0; i < n; i++) mean[c] += h[i * out + c] / n;
    }
}

// h of layer `last`, and the sums over the pairs of h - mean and of its square.
EXPORT int32_t pairs_statistics(const PairArguments* p, int threads) {
    const int last = p->last, out = padded(p->widths[last]);
    const PairLayer& layer = p->layers[last - 1];
    auto task = [&](int64_t first, int n, PairTile& t, float* sums) {
        float* h = at(layer.h, first, out);
        advance(*p, last, first, n, t, h);
        for (int c = 0; c < out; c += W) {
            vf s1{}, s2{};
            for (int i = 0; i < n; i++) {
                vf d = load(h + i * out + c) - load(layer.mean + c);
                s1 += d;
                s2 += d * d;
            }
            accumulate(sums + c, s1);
            accumulate(sums + out + c, s2);
        }
    };
    return status_of([&] {
        guess_mean(*p, last, layer.mean);
        over_pairs(*p, threads, 2 * out, p->sums, task);
    });
}

// The output, from h of the last layer.
EXPORT int32_t pairs_forward(const PairArguments* p, int threads) {
    const int last = p->num_layers, width = p->widths[last], ld = padded(width);
    auto task = [&](int64_t first, int n, PairTile& t, float*) {
        activate<false>(*p, last, n, products_of(*p, last, first, n, t), t);
        for (int c = 0; c < width; c++)
            for (int i = 0; i < n; i++) p->out[c * p->num_pairs + first + i] = t.a[i * ld + c];
    };
    return status_of([&] { over_pairs(*p, threads, 0, nullptr, task); });
}

// h of all layers again, whose norms are known.
EXPORT int32_t pairs_products(const PairArguments* p, int threads) {
    auto task = [&](int64_t first, int n, PairTile& t, float*) {
        for (int l = 2; l <= p->num_layers; l++)
            advance(*p, l, first, n, t, at(p->layers[l - 1].h, first, padded(p->widths[l])));
    };
    return status_of([&] { over_pairs(*p, threads, 0, nullptr, task); });
}

// The gradient of h of layer `l`, whose sums are known, to `t.dh`.
static void gradient_of_products(const PairArguments& p, int l, int64_t first, int n,
                                 const float* h, PairTile& t) {
    const PairLayer& layer = p.layers[l - 1];
    const int width = padded(p.widths[l]);
    const float* dz = at(layer.dz, first, width);
    for (int c = 0; c < width; c += W) {
        const vf scale = load(layer.scale + c), slope = load(layer.slope + c);
        const vf offset = load(layer.offset + c);
        for (int i = 0; i < n; i++)
            store(t.dh + i * width + c, load(dz + i * width + c) * scale +
                                            load(h + i * width + c) * slope + offset);
    }
}

// dz of layer `last` from that of the layer above, whose sums are known, or from the gradient of
// the output. Then the sums of dz and of dz (h - mean), for the first layer those of dz and of dz
// times each input; and the gradient of the weights of the layer above, (outputs, padded outputs of
// `last`). dz may take the place of h or dz of the layer above.
EXPORT int32_t pairs_backward(const PairArguments* p, int threads) {
    const int last = p->last, above = last + 1, width = padded(p->widths[last]);
    const PairLayer& layer = p->layers[last - 1];
    const bool top = last == p->num_layers;
    const int64_t rows = last == 1 ? 1 + p->widths[0] : 2;
    const int64_t size = width * (rows + (top ? 0 : p->widths[above]));
    auto task = [&](int64_t first, int n, PairTile& t, float* sums) {
        float* dz = at(layer.dz, first, width);
        const float* h = products_of(*p, last, first, n, t);
        activate<true>(*p, last, n, h, t);
        if (top) {
            for (int i = 0; i < n; i++)
                for (int c = 0; c < width; c++)
                    dz[i * width + c] =
                        c < p->widths[last] ? p->grad[c * p->num_pairs + first + i] : 0;
        } else {
            const int out = p->widths[above], ld = padded(out);
            gradient_of_products(*p, above, first, n, at(p->layers[above - 1].h, first, ld), t);
            product(out, width, n, t.dh, 1, ld, t.a, width, sums + rows * width, width, true);
            product(n, width, out, t.dh, ld, 1, p->layers[above - 1].backward, width, dz, width);
        }
        for (int c = 0; c < width; c += W) {
            vf s1{}, s2{};
            for (int i = 0; i < n; i++) {
                const int place = i * width + c;
                vf g = load(dz + place) * load(t.slope + place);
                store(dz + place, g);
                s1 += g;
                if (last > 1) s2 += g * (load(h + place) - load(layer.mean + c));
            }
            accumulate(sums + c, s1);
            if (last > 1) accumulate(sums + width + c, s2);
        }
        if (last == 1)
            product(p->widths[0], width, n, p->x + first, p->num_pairs, 1, dz, width, sums + width,
                    width, true);
    };
    return status_of([&] { over_pairs(*p, threads, size, p->sums, task); });
}
