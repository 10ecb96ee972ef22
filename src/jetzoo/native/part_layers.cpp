// The dense layers of each token: embedding, projections before the attention, feed-forward.
#include "part_dense.h"

namespace ISA {

// B blocks of output channels of a token; each channel is added up in the order of `multiply`.
template <int B>
static void token_blocks(const DenseWeights& layer, int m, const float* x, float scale, float* y) {
    typedef float block __attribute__((vector_size(4 * ROWS)));
    const float* w = rows_from(static_cast<const float*>(layer.weight), m, layer.k);
    const int64_t step = int64_t(ROWS) * layer.k;
    block sum[B] = {};
    for (int c = 0; c < layer.k; c++, w += ROWS) {
#pragma GCC unroll 8
        for (int b = 0; b < B; b++) {
            block weight;
            memcpy(&weight, w + b * step, sizeof weight);
            sum[b] += weight * x[c];
        }
    }
    for (int b = 0; b < B; b++)
        for (int r = 0; r < ROWS; r++, m++) y[m] = sum[b][r] * scale + layer.bias[m];
}

void dense_token(const DenseWeights& layer, const float* x, long ld, float scale, float* y,
                 Workspace& work) {
    float* in = work.column.numbers<float>(layer.k);
    for (int c = 0; c < layer.k; c++) in[c] = x[c * ld];
    int m = 0;
    for (; m + 8 * ROWS <= layer.m; m += 8 * ROWS) token_blocks<8>(layer, m, in, scale, y);
    for (; m < layer.m; m += ROWS) token_blocks<1>(layer, m, in, scale, y);
}

template <int N>
static void feed_forward_tile(const FeedForwardWeights& f, float* x, const float* mixed, long ld,
                              int dim, bool alone, Workspace& work) {
    const Ones<N> one;
    float* y = work.tile.numbers<float>(dim * TILE);
    float* hidden = work.hidden.numbers<float>(f.fc1.m * TILE);
    vf sum[N] = {}, squares[N] = {}, inverse[N];
    dense<N>(f.out, mixed, ld, dim, work, one.values, one.values, [&](int m, int v, vf a) {
        store(y + m * TILE + v * W, a);
        squares[v] += a * a;  // the mean has been taken out of the weights
    }, alone);
    for (int v = 0; v < N; v++) inverse[v] = inverse_std(sum[v], squares[v], dim, f.eps_attn);
    for (int v = 0; v < N; v++) squares[v] = vf{};
    for (int c = 0; c < dim; c++)
        for (int v = 0; v < N; v++) {
            float* at = x + c * ld + v * W;
            vf a = load(at) + (load(y + c * TILE + v * W) * inverse[v] * f.scale[c] + f.shift[c]);
            store(at, a);
            sum[v] += a;
            squares[v] += a * a;
        }
    for (int v = 0; v < N; v++) {
        inverse[v] = inverse_std(sum[v], squares[v], dim, f.eps_fc1);
        sum[v] = squares[v] = vf{};
    }
    dense<N>(f.fc1, x, ld, dim, work, inverse, one.values, [&](int m, int v, vf a) {
        a = vgelu(a);
        store(hidden + m * TILE + v * W, a);
        sum[v] += a;
        squares[v] += a * a;
    }, alone);
    for (int v = 0; v < N; v++) inverse[v] = inverse_std(sum[v], squares[v], f.fc1.m, f.eps_fc2);
    dense<N>(f.fc2, hidden, TILE, f.fc1.m, work, one.values, inverse, [&](int m, int v, vf a) {
        float* at = x + m * ld + v * W;
        store(at, load(at) * f.w_resid[m] + (a + f.bias[m]));
    }, alone);
}

template <int N>
static void embed_tile(const NetworkWeights& net, const float* features, float* x, long ld,
                       Workspace& work) {
    const Ones<N> one;
    float* out = work.hidden.numbers<float>(net.widest * TILE);
    float* in = work.tile.numbers<float>(net.widest * TILE);
    const float* from = features;
    long stride = ld;
    int rows = net.num_features;
    if (!net.num_embed)  // the features are tokens already
        for (int c = 0; c < rows; c++)
            for (int v = 0; v < N; v++) store(x + c * ld + v * W, load(from + c * ld + v * W));
    for (int i = 0; i < net.num_embed; i++) {
        const DenseWeights& layer = net.embed[i];
        vf inverse[N];
        spread<N>(from, stride, rows, net.embed_eps[i], inverse);
        float* to = i + 1 == net.num_embed ? x : out;
        long step = i + 1 == net.num_embed ? ld : TILE;
        dense<N>(layer, from, stride, rows, work, inverse, one.values,
                 [&](int m, int v, vf a) { store(to + m * step + v * W, vgelu(a)); });
        rows = layer.m;
        from = to;
        stride = TILE;
        std::swap(in, out);
    }
}

template <int N>
static void project_tile(const ParticleBlockWeights& block, const float* x, float* qkv, long ld,
                         int dim, Workspace& work) {
    const Ones<N> one;
    vf inverse[N];
    spread<N>(x, ld, dim, block.eps, inverse);
    dense<N>(block.qkv, x, ld, dim, work, inverse, one.values,
             [&](int m, int v, vf a) { store(qkv + m * ld + v * W, a); });
}

void embed(const NetworkWeights& net, const float* features, float* x, long ld, long tokens,
           Workspace& work) {
    tiles(tokens, [&](auto size, long t) {
        embed_tile<decltype(size)::value>(net, features + t, x + t, ld, work);
    });
}

void project(const ParticleBlockWeights& block, const float* x, float* qkv, long ld, long tokens,
             int dim, Workspace& work) {
    tiles(tokens, [&](auto size, long t) {
        project_tile<decltype(size)::value>(block, x + t, qkv + t, ld, dim, work);
    });
}

void feed_forward(const FeedForwardWeights& f, float* x, const float* mixed, long ld, long tokens,
                  int dim, Workspace& work) {
    tiles(tokens, [&](auto size, long t) {
        feed_forward_tile<decltype(size)::value>(f, x + t, mixed + t, ld, dim, tokens == 1, work);
    });
}

}  // namespace ISA
