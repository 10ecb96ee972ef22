// What a training step spends its time on besides large matrix products, forward and backward.
//
// Nothing that can be computed again is kept for the backward pass: attention weights follow from
// their log-sum-exp, dropout from a hash of a seed and the position. Sums over rows or pairs are
// made chunk by chunk and added in a fixed order, so that they do not depend on the threads.
#include <atomic>
#include <cmath>
#include <memory>
#include <thread>
#include <vector>

#include "simd.h"

static int round_up(int n) { return (n + W - 1) / W * W; }

// Memory of one thread, aligned to vectors.
class Scratch {
    std::unique_ptr<float[]> data;
    size_t capacity = 0, used = 0;

  public:
    void reset(size_t size) {
        if (capacity < size + W) data.reset(new float[(capacity = size) + W]);
        used = -(reinterpret_cast<uintptr_t>(data.get()) / sizeof(float)) % W;
    }
    float* take(size_t size) {
        float* p = data.get() + used;
        used += size;
        return p;
    }
};

// task(i, scratch) for all i < count; a thread takes the next one when it is ready.
template <class Task>
static void parallel(int64_t count, int threads, Task task) {
    std::atomic<int64_t> next{0};
    auto work = [&] {
        Scratch scratch;
        for (int64_t i; (i = next++) < count;) task(i, scratch);
    };
    std::vector<std::thread> others;
    for (int t = 1; t < threads && t < count; t++) others.emplace_back(work);
    work();
    for (auto& thread : others) thread.join();
}

// x Phi(x) and its derivative Phi(x) + x phi(x). Phi(-|x|) is exp(-x^2 / 2) times a polynomial in
// t = 1 / (1 + 0.3 |x|), fitted at Chebyshev's points; closer to the truth than PyTorch's.
INLINE vf gelu(vf x, vf& slope) {
    vf t = 1.f / (vmax(x, -x) * 0.3f + 1.f), u = t * 2.47619048f - 1.47619048f;
    vf y = splat(-5.965377e-6f);
    y = y * u + 1.2640326e-6f;
    y = y * u + 7.7513003e-5f;
    y = y * u - 3.7933558e-5f;
    y = y * u - 9.7609882e-4f;
    y = y * u - 3.2106668e-4f;
    y = y * u + 1.4855980e-2f;
    y = y * u + 6.7054085e-2f;
    y = y * u + 1.6233166e-1f;
    y = y * u + 2.5702056e-1f;
    vf e = vexp(x * x * -0.5f), tail = e * t * y;
    vf phi = x < 0.f ? tail : 1.f - tail;
    slope = phi + x * e * 0.39894228f;
    return x * phi;
}
INLINE vf gelu(vf x) {
    vf slope;
    return gelu(x, slope);
}

// Matrix products of small sizes.

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int WIDE = 4;  // vectors of columns of a micro-kernel; 6 rows of them fill the registers
#else
constexpr int WIDE = 2;
#endif

template <int M, int N>
INLINE void micro(int k, const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t ldb,
                  float* c, int64_t ldc, bool add) {
    vf sum[M][N];
    for (int i = 0; i < M; i++)
        for (int v = 0; v < N; v++) sum[i][v] = add ? load(c + i * ldc + v * W) : vf{};
    for (int l = 0; l < k; l++, a += a_col, b += ldb) {
        vf in[N];
#pragma GCC unroll 4
        for (int v = 0; v < N; v++) in[v] = load(b + v * W);
#pragma GCC unroll 12
        for (int i = 0; i < M; i++) {
            vf x = splat(a[i * a_row]);
#pragma GCC unroll 4
            for (int v = 0; v < N; v++) sum[i][v] += x * in[v];
        }
    }
    for (int i = 0; i < M; i++)
        for (int v = 0; v < N; v++) store(c + i * ldc + v * W, sum[i][v]);
}

template <int M, int N>
static void rows(int m, int k, const float* a, int64_t a_row, int64_t a_col, const float* b,
                 int64_t ldb, float* c, int64_t ldc, bool add) {
    for (; m >= M; m -= M, a += M * a_row, c += M * ldc)
        micro<M, N>(k, a, a_row, a_col, b, ldb, c, ldc, add);
    if constexpr (M > 1)
        if (m > 0) rows<M / 2, N>(m, k, a, a_row, a_col, b, ldb, c, ldc, add);
}

// C (m, n) = A (m, k) B (k, n), or C += A B; n is a multiple of W. A has any strides.
static void product(int m, int n, int k, const float* a, int64_t a_row, int64_t a_col,
                    const float* b, int64_t ldb, float* c, int64_t ldc, bool add = false) {
    for (; n >= WIDE * W; n -= WIDE * W, b += WIDE * W, c += WIDE * W)
        rows<6, WIDE>(m, k, a, a_row, a_col, b, ldb, c, ldc, add);
    if (WIDE == 4 && n >= 2 * W) {
        rows<8, 2>(m, k, a, a_row, a_col, b, ldb, c, ldc, add);
        n -= 2 * W, b += 2 * W, c += 2 * W;
    }
    if (n >= W) rows<12, 1>(m, k, a, a_row, a_col, b, ldb, c, ldc, add);
}

INLINE uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

// Which numbers of a row are dropped: a hash of the seed, the row and the column.
class Dropout {
    uint32_t key[2];
    int32_t threshold;

  public:
    float scale;

    Dropout(float p, uint64_t seed, uint64_t row) : scale(1 / (1 - p)) {
        threshold = int32_t(int64_t(double(p) * 4294967296.0) - 2147483648ll);
        key[0] = mix(uint32_t(seed) ^ mix(uint32_t(row) ^ mix(uint32_t(row >> 32))));
        key[1] = mix(uint32_t(seed >> 32) + key[0]);
    }
    // 0 or 1 / (1 - p) for W numbers from a column on.
    __attribute__((always_inline)) vf factor(int column) const {
        typedef uint32_t vu __attribute__((vector_size(4 * W)));
        vu x;
        for (int i = 0; i < W; i++) x[i] = i;
        x = (x + uint32_t(column)) * 0x9e3779b9u + key[0];
        x ^= x >> 16;
        x *= 0x7feb352du;
        x ^= key[1];
        x ^= x >> 15;
        x *= 0x846ca68bu;
        x ^= x >> 16;
        return (vi)x >= threshold ? splat(scale) : vf{};
    }
};

// Attention, a head of a jet at a time.

// Rows of numbers of each jet and head: (T, ...) packed, where `first` says with which row a jet
// begins, or (B, H, L, ...) with any strides. jetzoo.attention.jagged mirrors these structures.
struct Rows {
    float* data;
    const int64_t* first;
    int64_t jet, head, row;

    float* at(int64_t j, int64_t h) const {
        return data + (first ? first[j] * row : 0) + j * jet + h * head;
    }
};
struct Attention {
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

struct Head {  // copies of the inputs of one head of a jet, padded to vectors
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
static void scores(const Attention& a, int64_t j, int64_t h, Head& s) {
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

static Head inputs(const Attention& a, int64_t j, int64_t h, Scratch& scratch, int more) {
    Head s;
    s.n = a.queries[j], s.m = a.keys[j], s.d = a.dim;
    s.np = round_up(s.n), s.mp = round_up(s.m), s.dp = round_up(s.d);
    scratch.reset(size_t(s.dp) * (s.np + 4 * s.mp) + size_t(more + 1) * s.np * s.mp +
                  4 * size_t(std::max(s.np, s.mp)) * s.dp + 2 * W);
    s.q = copy(a.q, j, h, s.n, s.d, s.dp, 1 / std::sqrt(float(s.d)), scratch.take(s.np * s.dp));
    s.k = copy(a.k, j, h, s.m, s.d, s.dp, 1, scratch.take(s.mp * s.dp));
    s.v = copy(a.v, j, h, s.m, s.d, s.dp, 1, scratch.take(s.mp * s.dp));
    s.kt = transpose(s.k, s.m, s.d, s.dp, s.mp, scratch.take(s.mp * s.dp));
    s.scores = scratch.take(size_t(s.np) * s.mp);
    scores(a, j, h, s);
    return s;
}

static void put(const Rows& x, int64_t j, int64_t h, const float* from, int n, int d, int dp,
                float scale = 1) {
    float* to = x.at(j, h);
    for (int i = 0; i < n; i++, to += x.row, from += dp)
        for (int c = 0; c < d; c++) to[c] = from[c] * scale;
}

static void forward(const Attention& a, int64_t j, int64_t h, Scratch& scratch) {
    Head s = inputs(a, j, h, scratch, 0);
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

static void backward(const Attention& a, int64_t j, int64_t h, Scratch& scratch) {
    Head s = inputs(a, j, h, scratch, 1);
    s.vt = transpose(s.v, s.m, s.d, s.dp, s.mp, scratch.take(s.mp * s.dp));
    float* dscores = scratch.take(size_t(s.np) * s.mp);
    float* grad = copy(a.grad, j, h, s.n, s.d, s.dp, 1, scratch.take(s.np * s.dp));
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

EXPORT void attention_forward(const Attention* a, int threads) {
    parallel(a->num_jets * a->num_heads, threads, [&](int64_t i, Scratch& scratch) {
        int64_t j = i / a->num_heads;
        if (a->queries[j] && a->keys[j]) forward(*a, j, i % a->num_heads, scratch);
    });
}

EXPORT void attention_backward(const Attention* a, int threads) {
    parallel(a->num_jets * a->num_heads, threads, [&](int64_t i, Scratch& scratch) {
        int64_t j = i / a->num_heads;
        if (a->queries[j] && a->keys[j]) backward(*a, j, i % a->num_heads, scratch);
    });
}

// Element-wise chains of the blocks, row by row.

constexpr int64_t CHUNK = 32;  // rows whose sums are made together

// task(row, sums, scratch) for all rows; adds up `width` sums over the rows.
template <class Task>
static void over_rows(int64_t count, int width, int threads, int scratch_size, float* total,
                      Task task) {
    int64_t chunks = (count + CHUNK - 1) / CHUNK;
    std::vector<float> partial(chunks * width);
    parallel(chunks, threads, [&](int64_t chunk, Scratch& scratch) {
        scratch.reset(scratch_size);
        float* work = scratch.take(scratch_size);
        for (int64_t i = chunk * CHUNK; i < std::min(count, (chunk + 1) * CHUNK); i++)
            task(i, partial.data() + chunk * width, work);
    });
    std::vector<double> exact(width);
    for (int64_t chunk = 0; chunk < chunks; chunk++)
        for (int c = 0; c < width; c++) exact[c] += partial[chunk * width + c];
    std::copy(exact.begin(), exact.end(), total);
}

INLINE void accumulate(float* p, vf x) { store(p, load(p) + x); }

struct Moments {
    float mean, inverse;  // 1 / sqrt(variance + eps)
};

static Moments moments(const float* x, int dim, float eps) {
    vf total{};
    for (int c = 0; c < dim; c += W) total += load(x + c);
    float mean = sum(total) / dim;
    vf squares{};
    for (int c = 0; c < dim; c += W) {
        vf d = load(x + c) - mean;
        squares += d * d;
    }
    return {mean, 1 / std::sqrt(sum(squares) / dim + eps)};
}

// From the gradient of gain * y + shift, where y = (x - mean) * inverse, that of x, in place. x
// is replaced by y.
static void norm_gradient(float* x, float* grad, const float* gain, Moments m, int dim,
                          float* dgain, float* dshift) {
    vf s1{}, s2{};
    for (int c = 0; c < dim; c += W) {
        vf y = (load(x + c) - m.mean) * m.inverse, g = load(grad + c);
        accumulate(dgain + c, g * y);
        accumulate(dshift + c, g);
        g *= load(gain + c);
        s1 += g;
        s2 += g * y;
        store(x + c, y);
        store(grad + c, g);
    }
    float mean1 = sum(s1) / dim, mean2 = sum(s2) / dim;
    for (int c = 0; c < dim; c += W)
        store(grad + c, m.inverse * (load(grad + c) - mean1 - load(x + c) * mean2));
}

// jetzoo.native.training mirrors this structure. Widths are multiples of W.
struct Chain {
    int64_t rows, dim;
    float eps, dropout;
    uint64_t seed;
    const float *x, *residual;           // (rows, dim)
    const float *scale, *gain, *shift;   // (dim)
    float *out, *moments;                // (rows, dim), (rows, 2)
    const float* grad;                   // (rows, dim)
    float *dx, *sums;                    // (rows, dim), (k, dim)
};

INLINE Moments& moments_of(const Chain& c, int64_t i) {
    return reinterpret_cast<Moments*>(c.moments)[i];
}

// LayerNorm of x.
EXPORT void norm_forward(const Chain* a, int threads) {
    over_rows(a->rows, 0, threads, 0, nullptr, [&](int64_t i, float*, float*) {
        const float* x = a->x + i * a->dim;
        Moments m = moments_of(*a, i) = moments(x, a->dim, a->eps);
        for (int c = 0; c < a->dim; c += W)
            store(a->out + i * a->dim + c,
                  (load(x + c) - m.mean) * m.inverse * load(a->gain + c) + load(a->shift + c));
    });
}

EXPORT void norm_backward(const Chain* a, int threads) {  // sums: gain, shift
    const int d = a->dim;
    over_rows(a->rows, 2 * d, threads, d, a->sums, [&](int64_t i, float* sums, float* x) {
        float* dx = a->dx + i * d;
        memcpy(x, a->x + i * d, d * sizeof(float));
        memcpy(dx, a->grad + i * d, d * sizeof(float));
        norm_gradient(x, dx, a->gain, moments_of(*a, i), d, sums, sums + d);
    });
}

// LayerNorm of dropout(gelu(x + scale)); `scale` is the bias of the layer that gave x.
EXPORT void gelu_norm_forward(const Chain* a, int threads) {
    const int d = a->dim;
    over_rows(a->rows, 0, threads, d, nullptr, [&](int64_t i, float*, float* y) {
        Dropout dropout(a->dropout, a->seed, i);
        for (int c = 0; c < d; c += W) {
            vf g = gelu(load(a->x + i * d + c) + load(a->scale + c));
            if (a->dropout) g *= dropout.factor(c);
            store(y + c, g);
        }
        Moments m = moments_of(*a, i) = moments(y, d, a->eps);
        for (int c = 0; c < d; c += W)
            store(a->out + i * d + c,
                  (load(y + c) - m.mean) * m.inverse * load(a->gain + c) + load(a->shift + c));
    });
}

EXPORT void gelu_norm_backward(const Chain* a, int threads) {  // sums: gain, shift, scale
    const int d = a->dim;
    over_rows(a->rows, 3 * d, threads, 2 * d, a->sums, [&](int64_t i, float* sums, float* y) {
        float *dx = a->dx + i * d, *slope = y + d;
        Dropout dropout(a->dropout, a->seed, i);
        for (int c = 0; c < d; c += W) {
            vf x = load(a->x + i * d + c) + load(a->scale + c), derivative;
            vf g = gelu(x, derivative);
            if (a->dropout) {
                vf factor = dropout.factor(c);
                g *= factor;
                derivative *= factor;
            }
            store(y + c, g);
            store(slope + c, derivative);
        }
        memcpy(dx, a->grad + i * d, d * sizeof(float));
        norm_gradient(y, dx, a->gain, moments_of(*a, i), d, sums, sums + d);
        for (int c = 0; c < d; c += W) {
            vf g = load(dx + c) * load(slope + c);
            store(dx + c, g);
            accumulate(sums + 2 * d + c, g);
        }
    });
}

// residual + dropout(LayerNorm(x * scale)).
EXPORT void add_norm_forward(const Chain* a, int threads) {
    const int d = a->dim;
    over_rows(a->rows, 0, threads, d, nullptr, [&](int64_t i, float*, float* y) {
        for (int c = 0; c < d; c += W) store(y + c, load(a->x + i * d + c) * load(a->scale + c));
        Moments m = moments_of(*a, i) = moments(y, d, a->eps);
        Dropout dropout(a->dropout, a->seed, i);
        for (int c = 0; c < d; c += W) {
            vf n = (load(y + c) - m.mean) * m.inverse * load(a->gain + c) + load(a->shift + c);
            if (a->dropout) n *= dropout.factor(c);
            store(a->out + i * d + c, load(a->residual + i * d + c) + n);
        }
    });
}

EXPORT void add_norm_backward(const Chain* a, int threads) {  // sums: gain, shift, scale
    const int d = a->dim;
    over_rows(a->rows, 3 * d, threads, d, a->sums, [&](int64_t i, float* sums, float* y) {
        float* dx = a->dx + i * d;
        const float* x = a->x + i * d;
        Dropout dropout(a->dropout, a->seed, i);
        for (int c = 0; c < d; c += W) {
            vf g = load(a->grad + i * d + c);
            if (a->dropout) g *= dropout.factor(c);
            store(dx + c, g);
            store(y + c, load(x + c) * load(a->scale + c));
        }
        norm_gradient(y, dx, a->gain, moments_of(*a, i), d, sums, sums + d);
        for (int c = 0; c < d; c += W) {
            vf g = load(dx + c);
            accumulate(sums + 2 * d + c, g * load(x + c));
            store(dx + c, g * load(a->scale + c));
        }
    });
}

// scale * residual + dropout(x).
EXPORT void add_forward(const Chain* a, int threads) {
    const int d = a->dim;
    over_rows(a->rows, 0, threads, 0, nullptr, [&](int64_t i, float*, float*) {
        Dropout dropout(a->dropout, a->seed, i);
        for (int c = 0; c < d; c += W) {
            vf x = load(a->x + i * d + c);
            if (a->dropout) x *= dropout.factor(c);
            store(a->out + i * d + c, load(a->residual + i * d + c) * load(a->scale + c) + x);
        }
    });
}

// Gradient of x to dx, of the residual to out; sums: scale.
EXPORT void add_backward(const Chain* a, int threads) {
    const int d = a->dim;
    over_rows(a->rows, d, threads, 0, a->sums, [&](int64_t i, float* sums, float*) {
        Dropout dropout(a->dropout, a->seed, i);
        for (int c = 0; c < d; c += W) {
            vf g = load(a->grad + i * d + c);
            store(a->out + i * d + c, g * load(a->scale + c));
            accumulate(sums + c, g * load(a->residual + i * d + c));
            store(a->dx + i * d + c, a->dropout ? g * dropout.factor(c) : g);
        }
    });
}

// The pair MLP, in tiles of pairs: h_l = W_l a_(l-1), z_l = scale_l h_l + shift_l, a_l = gelu(z_l).
//
// A batch norm needs sums over all pairs, so each layer has a pass of its own, forward and
// backward. Each computes what it needs from the inputs on: that takes no longer than to write the
// hidden layers to memory and to read them again.

constexpr int TILE = 96;          // pairs that stay in the cache together
constexpr int TILES = 16;         // tiles whose sums are made together
constexpr int MAX_LAYERS = 16;

struct PairLayer {  // widths are padded to multiples of 16
    const float *forward, *backward;  // (inputs, padded outputs), (outputs, padded inputs)
    const float *scale, *shift;
    float* mean;
    // Gradient of h from that of z: scale * dz + slope * h + offset, once the sums are known.
    const float *slope, *offset;
};
struct Pairs {
    int64_t num_pairs, num_layers, last;  // the layer whose sums are asked for, from 1 on
    const int64_t* widths;                // (num_layers + 1)
    const float* x;                       // (inputs, P)
    const PairLayer* layers;
    float* out;                           // (outputs, P)
    const float* grad;                    // (outputs, P)
    double* sums;
};

struct PairTile {
    float *h[MAX_LAYERS + 1], *a[MAX_LAYERS + 1], *slope[MAX_LAYERS + 1], *dz, *da;
};

static int padded(int64_t n) { return (n + 15) / 16 * 16; }

static int64_t tile_size(const Pairs& p) {
    int64_t total = 0, widest = 0;
    for (int l = 0; l <= p.num_layers; l++) {
        total += 3 * padded(p.widths[l]);
        widest = std::max<int64_t>(widest, padded(p.widths[l]));
    }
    return (total + 2 * widest) * TILE;
}

static PairTile make_tile(const Pairs& p, Scratch& scratch) {
    PairTile t;
    int64_t widest = 0;
    for (int l = 0; l <= p.num_layers; l++) {
        int64_t size = padded(p.widths[l]) * TILE;
        t.h[l] = scratch.take(size), t.a[l] = scratch.take(size), t.slope[l] = scratch.take(size);
        widest = std::max(widest, size);
    }
    t.dz = scratch.take(widest), t.da = scratch.take(widest);
    return t;
}

// Activations of `n` pairs from `first` on: all up to layer `last - 1`, and h of `last`.
template <bool SLOPES>
static void tile_forward(const Pairs& p, int64_t first, int n, int last, PairTile& t) {
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
                store(t.a[l] + i * out + c, gelu(z, slope));
                if (SLOPES) store(t.slope[l] + i * out + c, slope);
            }
        }
    }
}

// task(first pair, number of pairs, tile, sums of `width` floats) for all tiles; adds the sums up.
template <class Task>
static void over_pairs(const Pairs& p, int threads, int64_t width, double* total, Task task) {
    int64_t size = TILE * TILES, chunks = (p.num_pairs + size - 1) / size;
    std::vector<float> partial(chunks * width);
    parallel(chunks, threads, [&](int64_t chunk, Scratch& scratch) {
        scratch.reset(tile_size(p));
        PairTile tile = make_tile(p, scratch);
        int64_t end = std::min(p.num_pairs, (chunk + 1) * size);
        for (int64_t first = chunk * size; first < end; first += TILE)
            task(first, int(std::min<int64_t>(TILE, end - first)), tile,
                 partial.data() + chunk * width);
    });
    for (int64_t c = 0; c < width; c++) total[c] = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++)
        for (int64_t c = 0; c < width; c++) total[c] += partial[chunk * width + c];
}

// Sums over the pairs of h - mean and of its square, for layer `last`. `mean` is set to that of the
// first pairs: near enough for float32.
EXPORT void pairs_statistics(const Pairs* p, int threads) {
    const int last = p->last, out = padded(p->widths[last]);
    float* mean = p->layers[last - 1].mean;
    Scratch scratch;
    scratch.reset(tile_size(*p));
    PairTile guess = make_tile(*p, scratch);
    const int some = std::min<int64_t>(TILE, p->num_pairs);
    tile_forward<false>(*p, 0, some, last, guess);
    for (int c = 0; c < out; c++) {
        mean[c] = 0;
        for (int i = 0; i < some; i++) mean[c] += guess.h[last][i * out + c] / some;
    }
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
    over_pairs(*p, threads, 2 * out, p->sums, task);
}

EXPORT void pairs_forward(const Pairs* p, int threads) {
    const int last = p->num_layers, width = p->widths[last], ld = padded(width);
    const PairLayer& layer = p->layers[last - 1];
    auto task = [&](int64_t first, int n, PairTile& t, float*) {
        tile_forward<false>(*p, first, n, last, t);
        for (int c = 0; c < ld; c += W)
            for (int i = 0; i < n; i++) {
                float* at = t.h[last] + i * ld + c;
                store(at, gelu(load(at) * load(layer.scale + c) + load(layer.shift + c)));
            }
        for (int c = 0; c < width; c++)
            for (int i = 0; i < n; i++)
                p->out[c * p->num_pairs + first + i] = t.h[last][i * ld + c];
    };
    over_pairs(*p, threads, 0, nullptr, task);
}

// Sums of dz and of dz (h - mean) for layer `last`, whose followers know theirs. For the first
// layer, the second are those of dz times each input, (inputs, outputs); then there are the
// gradients of the weights of all other layers, too, one after the other, (outputs, padded inputs).
EXPORT void pairs_backward(const Pairs* p, int threads) {
    const int top = p->num_layers, last = p->last, width = padded(p->widths[last]);
    int64_t size = width * (last == 1 ? 1 + p->widths[0] : 2);
    if (last == 1)
        for (int l = 2; l <= top; l++) size += p->widths[l] * padded(p->widths[l - 1]);
    auto task = [&](int64_t first, int n, PairTile& t, float* sums) {
        tile_forward<true>(*p, first, n, top, t);
        int ld = padded(p->widths[top]);
        for (int i = 0; i < n; i++)
            for (int c = 0; c < ld; c++)
                t.dz[i * ld + c] = c < p->widths[top] ? t.slope[top][i * ld + c] *
                                                            p->grad[c * p->num_pairs + first + i]
                                                      : 0;
        float* weight_sums = sums + width * (1 + p->widths[0]);
        for (int l = top; l > last; l--) {
            const PairLayer& layer = p->layers[l - 1];
            int out = p->widths[l], in = padded(p->widths[l - 1]);
            ld = padded(out);
            for (int c = 0; c < ld; c += W) {
                vf scale = load(layer.scale + c), slope = load(layer.slope + c),
                   offset = load(layer.offset + c);
                for (int i = 0; i < n; i++)
                    store(t.dz + i * ld + c, load(t.dz + i * ld + c) * scale +
                                                 load(t.h[l] + i * ld + c) * slope + offset);
            }
            if (last == 1) {
                product(out, in, n, t.dz, 1, ld, t.a[l - 1], in, weight_sums, in, true);
                weight_sums += out * in;
            }
            product(n, in, out, t.dz, ld, 1, layer.backward, in, t.da, in);
            for (int c = 0; c < n * in; c += W)
                store(t.dz + c, load(t.da + c) * load(t.slope[l - 1] + c));
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
    over_pairs(*p, threads, size, p->sums, task);
}
