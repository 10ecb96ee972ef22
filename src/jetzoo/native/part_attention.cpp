// Attention of the particles of a jet to one another, and of the class token to them.
#include <cmath>

#include "part_dense.h"

namespace ISA {

// Attention of one head of one jet to itself for N vectors of queries: the lanes are queries.
template <int N>
static void attend_head(const float* q, const float* k, const float* v, const float* bias,
                        long width, float* out, long ld, int size, int head_dim, float* scores) {
    vf largest[N], total[N] = {};
    for (int i = 0; i < N; i++) largest[i] = splat(-3e38f);
    int j = 0;
    auto keys = [&](auto rows) {
        constexpr int R = decltype(rows)::value;
        vf sum[R][N] = {};
        for (int c = 0; c < head_dim; c++) {
            vf query[N];
#pragma GCC unroll 4
            for (int i = 0; i < N; i++) query[i] = load(q + c * ld + i * W);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                for (int i = 0; i < N; i++) sum[r][i] += query[i] * k[c * ld + j + r];
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int i = 0; i < N; i++) {
                vf a = sum[r][i];
                if (bias) a += load(bias + (j + r) * width + i * W);
                store(scores + (j + r) * TILE + i * W, a);
                largest[i] = vmax(largest[i], a);
            }
    };
    for (; j + PM <= size; j += PM) keys(std::integral_constant<int, PM>());
    for (; j < size; j++) keys(std::integral_constant<int, 1>());
    for (j = 0; j < size; j++)
        for (int i = 0; i < N; i++) {
            float* at = scores + j * TILE + i * W;
            vf a = vexp(load(at) - largest[i]);
            store(at, a);
            total[i] += a;
        }
    for (int i = 0; i < N; i++) total[i] = 1.f / total[i];
    for (int c = 0; c < head_dim; c += 4) {
        vf sum[4][N] = {};
        for (j = 0; j < size; j++)
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
                for (int i = 0; i < N; i++)
                    sum[r][i] += load(scores + j * TILE + i * W) * v[(c + r) * ld + j];
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
            for (int i = 0; i < N; i++) store(out + (c + r) * ld + i * W, sum[r][i] * total[i]);
    }
}

void particle_attention(const NetworkWeights& net, const Jets& jets, const float* qkv,
                        const float* bias, float* mixed, long ld, Workspace& work) {
    const int dim = net.dim, heads = net.num_heads, head_dim = dim / heads;
    for (const Jet& jet : jets) {
        const long width = round_up(jet.size, W);
        float* scores = work.scores.numbers<float>((jet.size + 1) * TILE);
        for (int h = 0; h < heads; h++) {
            const float* q = qkv + h * head_dim * ld + jet.first;
            const float* matrix = bias ? bias + jet.bias + h * jet.size * width : nullptr;
            float* out = mixed + h * head_dim * ld + jet.first;
            // The last vector reaches into the next jet, which overwrites it.
            tiles(jet.size, [&](auto size, long t) {
                attend_head<decltype(size)::value>(q + t, q + dim * ld, q + 2 * dim * ld,
                                                   matrix ? matrix + t : nullptr, width, out + t,
                                                   ld, jet.size, head_dim, scores);
            });
        }
    }
}

// Scores (heads, width) of the `n` tokens of a jet for queries (H / ROWS, D, ROWS).
static void class_scores(const float* queries, int padded, int dim, const float* tokens,
                         const float* spreads, long ld, int n, float* scores, long width) {
    for (int h = 0; h < padded; h += PM)
        tiles(n, [&](auto size, long t) {
            constexpr int N = decltype(size)::value;
            vf sum[PM][N] = {};
            multiply<N>(rows_from(queries, h, dim), tokens + t, ld, dim, sum);
            for (int r = 0; r < PM; r++)
                for (int v = 0; v < N; v++)
                    store(scores + (h + r) * width + t + v * W,
                          sum[r][v] * load(spreads + t + v * W));
        });
}

// Scores of one head, that of the class token itself among them, become weights on tokens that are
// yet to be divided by their spread. Gives their sum; past the last token they are zero.
static float class_softmax(float* score, float& own, float own_spread, const float* spreads,
                           int n) {
    float largest = own, total;
    for (int j = 0; j < n; j++) largest = std::max(largest, score[j]);
    own = total = std::exp(own - largest);
    for (int j = 0; j < round_up(n, W); j += W) {
        vf a = vexp(load(score + j) - largest);
        for (int i = 0; i < W; i++) a[i] = j + i < n ? a[i] : 0.f;
        total += sum(a);
        store(score + j, a * load(spreads + j));
    }
    for (int j = n; j < round_up(n, W); j++) score[j] = 0.f;
    own *= own_spread;
    return total;
}

void class_attention(const NetworkWeights& net, const ClassBlockWeights& block,
                     const Jets& jets, const float* x, long ld, const float* inverse,
                     float* cls, float* out, Workspace& work) {
    const Ones<1> one;
    const bool alone = jets.last - jets.first == 1;
    const int dim = net.dim, heads = net.num_heads, head_dim = dim / heads;
    const int padded = round_up(heads, ROWS);
    float* q = work.cls_wide.numbers<float>((heads + 1) * dim * W);
    float* keys = q + dim * W;  // (H, D, W): the query, seen through the keys' matrices
    dense<1>(block.query, cls, W, dim, work, one.values, one.values,
             [&](int m, int, vf a) { store(q + m * W, a); }, alone);
    for (int h = 0; h < heads; h++)
        dense<1>(block.key[h], q + h * head_dim * W, W, head_dim, work, one.values, one.values,
                 [&](int m, int, vf a) { store(keys + (h * dim + m) * W, a); }, alone);
    vf own_inverse[1];
    spread<1>(cls, W, dim, block.eps, own_inverse);

    vi lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    float* mean = work.cls_mean.numbers<float>(heads * dim * W);
    for (const Jet& jet : jets) {
        const long b = &jet - jets.first;
        const int n = jet.size, whole = n / W * W;
        const vi real = lane < n - whole;  // lanes of the last vector that belong to this jet
        const long width = round_up(n, TILE) + TILE;
        const float* tokens = x + jet.first;
        const float* spreads = inverse + jet.first;
        float* queries = work.heads.numbers<float>(padded * dim);  // (H / ROWS, D, ROWS)
        float* scores = work.scores.numbers<float>(padded * width);
        float own[64];
        for (int h = 0; h < padded; h++) {
            own[h] = 0;
            for (int c = 0; c < dim; c++) {
                float key = h < heads ? keys[(h * dim + c) * W + b] : 0.f;
                queries[(h / ROWS * dim + c) * ROWS + h % ROWS] = key;
                own[h] += key * cls[c * W + b];
            }
            own[h] *= own_inverse[0][b];
        }
        class_scores(queries, padded, dim, tokens, spreads, ld, n, scores, width);
        for (int h = 0; h < heads; h++) {
            float* score = scores + h * width;
            const float total = class_softmax(score, own[h], own_inverse[0][b], spreads, n);
            for (int c = 0; c < dim; c++) {
                const float* token = tokens + c * ld;
                vf a{};
                for (int j = 0; j < whole; j += W) a += load(score + j) * load(token + j);
                // Zero times what stands in the next jet could be NaN.
                if (whole < n) a += load(score + whole) * (real ? load(token + whole) : vf{});
                mean[(h * dim + c) * W + b] = (sum(a) + own[h] * cls[c * W + b]) / total;
            }
        }
    }
    for (int h = 0; h < heads; h++)
        dense<1>(block.value[h], mean + h * dim * W, W, dim, work, one.values, one.values,
                 [&](int m, int, vf a) { store(out + (h * head_dim + m) * W, a); }, alone);
}

}  // namespace ISA
