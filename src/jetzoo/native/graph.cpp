// ParticleNet, one jet at a time.
//
// Activations are stored channel by channel. Edges stand side by side: first the nearest neighbour
// of each of the n particles, then the second nearest, so that edge e belongs to particle e % n,
// and W edges are those of W particles that follow one another in a row that is repeated.
#include "graph_kernels.h"

#include "part_dense.h"

namespace ISA {

INLINE vf relu(vf a) { return vmax(a, vf{}); }

// W numbers of a row at the columns `at`.
INLINE vf gather(const float* row, const int32_t* at) {
#if defined(__AVX512F__)
    __m512i index;
    memcpy(&index, at, sizeof index);
    return (vf)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, index, row, 4);
#else
    vf a;
    for (int i = 0; i < W; i++) a[i] = row[at[i]];
    return a;
#endif
}

// Columns (k n) of the nearest others of n particles (D, ld), rank by rank; n where there is none.
static void nearest(const float* x, int dim, int n, long ld, int k, int32_t* columns, float* squares,
                    float* best) {
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < n; j += W) {
            vf total{};
            for (int c = 0; c < dim; c++) {
                vf d = load(x + c * ld + j) - x[c * ld + i];
                total += d * d;
            }
            store(squares + j, total);
        }
        int found = 0;
        for (int j = 0; j < n; j++) {
            const float square = squares[j];
            if (j == i || (found == k && !(square < best[k - 1]))) continue;
            int rank = found < k ? found++ : k - 1;
            for (; rank > 0 && square < best[rank - 1]; rank--) {
                best[rank] = best[rank - 1];
                columns[rank * n + i] = columns[(rank - 1) * n + i];
            }
            best[rank] = square;
            columns[rank * n + i] = j;
        }
        for (; found < k; found++) columns[found * n + i] = n;
    }
}

// Repeats the first n columns of a row in the `more` columns after them.
INLINE void repeat(float* row, int n, long more) {
    for (long i = n; i < n + more; i++) row[i] = row[i - n];
}

// The layers of a tile of edges; adds what comes out to the sums of their particles.
template <int N>
static void edge_tile(const EdgeBlockWeights& block, const float* centre, const float* neighbour,
                      int n, long ld, const int32_t* columns, long t, float* sums, Workspace& work) {
    const Ones<N> one;
    const int width = block.first.m / 2;
    int widest = width;
    for (int l = 0; l < block.num_layers; l++)
        widest = block.layers[l].m > widest ? block.layers[l].m : widest;
    float* from = work.hidden.numbers<float>(2 * widest * TILE);
    float* to = from + widest * TILE;
    long start[N];
    vf real[N];  // 1, or 0 past the last edge
    vi lane{};
    for (int i = 0; i < W; i++) lane[i] = i;
    for (int v = 0; v < N; v++) {
        start[v] = (t + v * W) % n;
        real[v] = lane < int32_t(n * block.neighbours - t - v * W) ? splat(1.f) : vf{};
    }
    const bool last = block.num_layers == 0;
    for (int c = 0; c < width; c++)
        for (int v = 0; v < N; v++) {
            vf a = relu(load(centre + c * ld + start[v]) +
                        gather(neighbour + c * ld, columns + t + v * W));
            if (last)
                accumulate(sums + c * ld + start[v], a * real[v]);
            else
                store(from + c * TILE + v * W, a);
        }
    for (int l = 0; l < block.num_layers; l++) {
        const DenseWeights& layer = block.layers[l];
        if (l + 1 < block.num_layers)
            dense_floats<N>(layer, from, TILE, one.values, [&](int m, int v, vf a) {
                store(to + m * TILE + v * W, relu(a));
            });
        else
            dense_floats<N>(layer, from, TILE, one.values, [&](int m, int v, vf a) {
                         accumulate(sums + m * ld + start[v], relu(a) * real[v]);
                     });
        float* other = from;
        from = to;
        to = other;
    }
}

// Width of the output of an edge convolution.
INLINE int width_of(const EdgeBlockWeights& block) {
    return block.num_layers ? block.layers[block.num_layers - 1].m : block.first.m / 2;
}

// x (C, ld) to out (C', ld); neighbours are found among the points.
static void edge_convolution(const EdgeBlockWeights& block, const float* points, int dim,
                             const float* x, int n, long ld, float* out, Workspace& work) {
    const int k = block.neighbours, half = block.first.m / 2, width = width_of(block);
    const long edges = long(n) * k;
    int32_t* columns = work.heads.numbers<int32_t>(edges + TILE);
    float* squares = work.momenta.numbers<float>(n + W + k);
    nearest(points, dim, n, ld, k, columns, squares, squares + n + W);
    for (long e = edges; e < edges + TILE; e++) columns[e] = n;

    float* parts = work.qkv.numbers<float>(2 * half * ld);
    tiles(n, [&](auto size, long t) {
        constexpr int N = decltype(size)::value;
        const Ones<N> ones;
        dense_floats<N>(block.first, x + t, ld, ones.values, [&](int m, int v, vf a) {
            store(parts + m * ld + t + v * W, a);
        });
    });
    float* neighbour = parts + half * ld;
    for (int c = 0; c < half; c++) {
        repeat(parts + c * ld, n, W);
        neighbour[c * ld + n] = 0;  // of a neighbour that does not exist
    }
    float* sums = work.mixed.numbers<float>(width * ld);
    std::fill(sums, sums + width * ld, 0.f);
    tiles(edges, [&](auto size, long t) {
        edge_tile<decltype(size)::value>(block, parts, neighbour, n, ld, columns, t, sums, work);
    });
    for (int c = 0; c < width; c++)
        for (long i = n; i < n + W; i++) sums[c * ld + i % n] += sums[c * ld + i];

    const float share = 1.f / k;
    if (block.has_shortcut)
        tiles(n, [&](auto size, long t) {
            constexpr int N = decltype(size)::value;
            const Ones<N> ones;
            dense_floats<N>(*block.shortcut, x + t, ld, ones.values, [&](int m, int v, vf a) {
                store(out + m * ld + t + v * W, a);
            });
        });
    else
        for (int c = 0; c < width; c++)
            for (long i = 0; i < n; i++) out[c * ld + i] = x[c * ld + i];
    for (int c = 0; c < width; c++) {
        float *row = out + c * ld, *sum = sums + c * ld;
        for (long i = 0; i < n; i += W) store(row + i, relu(load(row + i) + load(sum + i) * share));
    }
}

static bool is_finite(const GraphWeights& net, const GraphJet& jet) {
    bool finite = true;
    for (int c = 0; c < net.num_features; c++)
        for (int64_t i = 0; i < jet.size; i++)
            finite &= __builtin_isfinite(jet.features[c * jet.size + i] * net.scale[c] +
                                         net.shift[c]);
    for (int64_t i = 0; i < net.num_points * jet.size; i++)
        finite &= __builtin_isfinite(jet.points[i]);
    return finite;
}

void graph_jet(const GraphWeights& net, const GraphJet& jet, Workspace& work) {
    const int n = jet.size;
    const long ld = round_up(n, TILE) + TILE;
    long rows = 0;  // of what the blocks give
    for (int b = 0; b < net.num_blocks; b++) rows += width_of(net.blocks[b]);
    const int width = net.has_fusion ? net.fusion->m : width_of(net.blocks[net.num_blocks - 1]);
    if (!is_finite(net, jet)) {
        for (int c = 0; c < width; c++) jet.out[c] = __builtin_nanf("");
        return;
    }
    std::fill(jet.out, jet.out + width, 0.f);
    if (n == 0) return;
    float* points = work.pair.numbers<float>((net.num_points + net.num_features) * ld);
    float* features = points + net.num_points * ld;
    std::fill(points, features + net.num_features * ld, 0.f);
    for (int c = 0; c < net.num_points; c++)
        for (int i = 0; i < n; i++) points[c * ld + i] = jet.points[c * n + i];
    for (int c = 0; c < net.num_features; c++)
        for (int i = 0; i < n; i++)
            features[c * ld + i] = jet.features[c * n + i] * net.scale[c] + net.shift[c];

    float* x = work.x.numbers<float>(rows * ld);
    const float *from = features, *at = points;
    int dim = net.num_points;
    float* out = x;
    for (int b = 0; b < net.num_blocks; b++) {
        edge_convolution(net.blocks[b], at, dim, from, n, ld, out, work);
        at = from = out;
        dim = width_of(net.blocks[b]);
        out += dim * ld;
    }
    if (net.has_fusion) {
        float* fused = work.bias.numbers<float>(width * ld);
        tiles(n, [&](auto size, long t) {
            constexpr int N = decltype(size)::value;
            const Ones<N> ones;
            dense_floats<N>(*net.fusion, x + t, ld, ones.values, [&](int m, int v, vf a) {
                store(fused + m * ld + t + v * W, relu(a));
            });
        });
        from = fused;
    }
    for (int c = 0; c < width; c++) {
        double total = 0;
        for (int i = 0; i < n; i++) total += from[c * ld + i];
        jet.out[c] = total / n;
    }
}

}  // namespace ISA
