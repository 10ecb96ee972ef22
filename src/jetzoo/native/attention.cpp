// Attention, a head of a jet at a time, forward and backward.
//
// Nothing of the size of the weights is kept for the backward pass: they follow from their
// log-sum-exp, and what is dropped from a seed.
#include <cmath>

#include "dropout.h"
#include "products.h"
#include "simd.h"
#include "threads.h"

// Rows of numbers of each jet and head: (T, ...) packed, where `first` says with which row a jet
// begins, or (B, H, L, ...) with any strides. jetzoo.native.structures mirrors these structures.
struct Rows {
    float* data;
    const int64_t* first;
    int64_t jet, head, row;

    float* at(int64_t j, int64_t h) const {
        return data + (first ? first[j] * row : 0) + j * jet + h * head;
    }
};
struct AttentionArguments {
    int64_t num_jets, num_heads, dim;
    const int64_t *queries, *keys;  // of each jet
    Rows q, k, v, out, lse;
    // Without data: none. With `first`: one triangle per jet, that begins there.
    Rows bias;
    float dropout;
    uint64_t seed;
    // Of the backward pass alone.
    Rows grad, dq, dk, dv, dbias;
};

EXPORT_SIZE(Rows)
EXPORT_SIZE(AttentionArguments)

struct HeadInputs {  // copies of the inputs of one head of a jet, padded to vectors
    int n, m, d, np, mp, dp;
    float *q, *k, *v, *kt, *vt;  // scaled (n, dp), (m, dp), (m, dp), (d, mp), (d, mp)
    float* scores;               // (n, mp)
};

static float* copy(const Rows& x, int64_t j, int64_t h, int n, int d, int dp, float scale,
                   float* to) {
    const float* from = x.at(j, h);
    for (int i = 0; i < n; i++, from += x.row) {
        float* row = to + int64_t(i) * dp;
        for (int c = 0; c < d; c++) row[c] = from[c] * scale;
        for (int c = d; c < dp; c++) row[c] = 0;
    }
    return to;
}

static float* transpose(const float* x, int n, int d, int dp, int np, float* to) {
    for (int c = 0; c < d; c++) {
        float* row = to + int64_t(c) * np;
        for (int i = 0; i < n; i++) row[i] = x[int64_t(i) * dp + c];
        for (int i = n; i < np; i++) row[i] = 0;
    }
    return to;
}

// q.k / sqrt(d) + bias, very negative beyond the last key.
static void set_scores(const AttentionArguments& a, int64_t j, int64_t h, HeadInputs& s) {
    product(s.n, s.mp, s.d, s.q, s.dp, 1, s.kt, s.mp, s.scores, s.mp);
    const float* bias = a.bias.data ? a.bias.at(j, h) : nullptr;
    for (int i = 0; i < s.n; i++) {
        float* row = s.scores + int64_t(i) * s.mp;
        if (bias && !a.bias.first) {
            for (int c = 0; c < s.m; c++) row[c] += bias[i * a.bias.row + c];
        } else if (bias) {
            const float* pair = bias + int64_t(i) * (i + 1) / 2;
            for (int c = 0; c < i; c++) {
                row[c] += pair[c];
                s.scores[int64_t(c) * s.mp + i] += pair[c];
            }
            row[i] += pair[i];
        }
        for (int c = s.m; c < s.mp; c++) row[c] = -1e30f;
    }
}

static HeadInputs copy_inputs(const AttentionArguments& a, int64_t j, int64_t h, Scratch& scratch,
                              int more) {
    HeadInputs s;
    s.n = a.queries[j], s.m = a.keys[j], s.d = a.dim;
    s.np = round_up(s.n, W), s.mp = round_up(s.m, W), s.dp = round_up(s.d, W);
    scratch.reset(size_t(s.dp) * (s.np + 4 * s.mp) + size_t(more + 1) * s.np * s.mp +
                  4 * size_t(std::max(s.np, s.mp)) * s.dp + 2 * W);
    s.q = copy(a.q, j, h, s.n, s.d, s.dp, 1 / std::sqrt(float(s.d)),
               scratch.take(size_t(s.np) * s.dp));
    s.k = copy(a.k, j, h, s.m, s.d, s.dp, 1, scratch.take(size_t(s.mp) * s.dp));
    s.v = copy(a.v, j, h, s.m, s.d, s.dp, 1, scratch.take(size_t(s.mp) * s.dp));
    s.kt = transpose(s.k, s.m, s.d, s.dp, s.mp, scratch.take(size_t(s.mp) * s.dp));
    s.scores = scratch.take(size_t(s.np) * s.mp);
    set_scores(a, j, h, s);
    return s;
}

static void put(const Rows& x, int64_t j, int64_t h, const float* from, int n, int d, int dp,
                float scale = 1) {
    float* to = x.at(j, h);
    for (int i = 0; i < n; i++, to += x.row, from += dp)
        for (int c = 0; c < d; c++) to[c] = from[c] * scale;
}

static void head_forward(const AttentionArguments& a, int64_t j, int64_t h, Scratch& scratch) {
    HeadInputs s = copy_inputs(a, j, h, scratch, 0);
    float* lse = a.lse.at(j, h);
    for (int i = 0; i < s.n; i++) {
        float* row = s.scores + int64_t(i) * s.mp;
        vf largest = splat(-1e30f), total{};
        for (int c = 0; c < s.mp; c += W) largest = vmax(largest, load(row + c));
        float top = largest[0];
        for (int l = 1; l < W; l++) top = std::max(top, largest[l]);
        for (int c = 0; c < s.mp; c += W) {
            vf e = vexp(load(row + c) - top);
            store(row + c, e);
            total += e;
        }
        float norm = sum(total);
        lse[i * a.lse.row] = top + std::log(norm);
        Dropout dropout(a.dropout, a.seed, (j * a.num_heads + h) * int64_t(1 << 20) + i);
        for (int c = 0; c < s.mp; c += W) {
            vf w = load(row + c) * (1 / norm);
            if (a.dropout) w *= dropout.factor(c);
            store(row + c, w);
        }
    }
    float* out = scratch.take(size_t(s.np) * s.dp);
    product(s.n, s.dp, s.m, s.scores, s.mp, 1, s.v, s.dp, out, s.dp);
    put(a.out, j, h, out, s.n, s.d, s.dp);
}

static void head_backward(const AttentionArguments& a, int64_t j, int64_t h, Scratch& scratch) {
    HeadInputs s = copy_inputs(a, j, h, scratch, 1);
    s.vt = transpose(s.v, s.m, s.d, s.dp, s.mp, scratch.take(size_t(s.mp) * s.dp));
    float* dscores = scratch.take(size_t(s.np) * s.mp);
    float* grad = copy(a.grad, j, h, s.n, s.d, s.dp, 1, scratch.take(size_t(s.np) * s.dp));
    product(s.n, s.mp, s.d, grad, s.dp, 1, s.vt, s.mp, dscores, s.mp);
    const float *out = a.out.at(j, h), *lse = a.lse.at(j, h);
    for (int i = 0; i < s.n; i++, out += a.out.row, lse += a.lse.row) {
        float delta = 0;
        for (int c = 0; c < s.d; c++) delta += grad[int64_t(i) * s.dp + c] * out[c];
        float *row = s.scores + int64_t(i) * s.mp, *drow = dscores + int64_t(i) * s.mp;
        Dropout dropout(a.dropout, a.seed, (j * a.num_heads + h) * int64_t(1 << 20) + i);
        for (int c = 0; c < s.mp; c += W) {
            vf w = vexp(load(row + c) - *lse), g = load(drow + c), kept = w;
            if (a.dropout) {
                vf factor = dropout.factor(c);
                g *= factor;
                kept *= factor;
            }
            store(row + c, kept);
            store(drow + c, w * (g - delta));
        }
        for (int c = s.m; c < s.mp; c++) drow[c] = 0;
    }
    float* tmp = scratch.take(size_t(std::max(s.np, s.mp)) * s.dp);
    product(s.m, s.dp, s.n, s.scores, 1, s.mp, grad, s.dp, tmp, s.dp);
    put(a.dv, j, h, tmp, s.m, s.d, s.dp);
    product(s.m, s.dp, s.n, dscores, 1, s.mp, s.q, s.dp, tmp, s.dp);
    put(a.dk, j, h, tmp, s.m, s.d, s.dp);
    product(s.n, s.dp, s.m, dscores, s.mp, 1, s.k, s.dp, tmp, s.dp);
    put(a.dq, j, h, tmp, s.n, s.d, s.dp, 1 / std::sqrt(float(s.d)));
    if (!a.dbias.data) return;
    float* dbias = a.dbias.at(j, h);
    for (int i = 0; i < s.n; i++) {
        const float* row = dscores + int64_t(i) * s.mp;
        if (!a.dbias.first) {
            memcpy(dbias + i * a.dbias.row, row, s.m * sizeof(float));
        } else {
            float* pair = dbias + int64_t(i) * (i + 1) / 2;
            for (int c = 0; c < i; c++) pair[c] = row[c] + dscores[int64_t(c) * s.mp + i];
            pair[i] = row[i];
        }
    }
}

// task(arguments, jet, head, scratch) for all heads of jets with queries and keys.
template <class Task>
static int32_t over_heads(const AttentionArguments& a, int threads, Task task) {
    return status_of([&] {
        parallel(a.num_jets * a.num_heads, threads, [&](int64_t i, Scratch& scratch) {
            int64_t j = i / a.num_heads;
            if (a.queries[j] && a.keys[j]) task(a, j, i % a.num_heads, scratch);
        });
    });
}

EXPORT int32_t attention_forward(const AttentionArguments* a, int threads) {
    return over_heads(*a, threads, head_forward);
}

EXPORT int32_t attention_backward(const AttentionArguments* a, int threads) {
    return over_heads(*a, threads, head_backward);
}
