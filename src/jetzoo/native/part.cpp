// Inference of a Particle Transformer whose norms are folded into the matrices (jetzoo.inference).
//
// Activations are stored channel by channel, with the tokens of a few jets side by side: a vector
// register holds one channel of W tokens. Norms, softmax and quantisation then act on whole
// registers, and no jet needs padding but at the end of a group. Each thread takes a group of jets
// through the whole network, so that activations stay in the second-level cache.
#include <atomic>
#include <chrono>
#include <cmath>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "simd.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int PM = 8;  // output channels of a micro-kernel; with NV vectors it fills the registers
#else
constexpr int PM = 4;
#endif
constexpr int NV = 3;         // vectors of tokens of a micro-kernel
constexpr int TILE = NV * W;  // tokens
constexpr int PAIRS = 1024;   // pairs whose features are computed together
constexpr float EPS = 1e-8f;  // of the pair features, as in jetzoo.kinematics

// What Python hands over; jetzoo.native.part mirrors these structures.
struct Layer {
    const void* weight;   // (m / PM, k, PM) floats, or (m / PM, k / 4, PM, 4) bytes
    const float* bias;    // (m)
    const float* scale;   // bytes: of the weights of each output channel (m)
    const float* offset;  // bytes: sum of the weights of each output channel (m)
    int32_t m, k;         // multiples of PM, and of 4 for bytes
    int32_t bytes;        // 0: floats; 1: bytes, with one scale per token; 2: with one scale for all
    float input_scale;
    float input_zero;
};
struct FeedForward {
    Layer out, fc1, fc2;  // out is the projection after the attention
    const float *scale, *shift, *w_resid, *bias;
    float eps_attn, eps_fc1, eps_fc2;
};
struct Block {
    Layer qkv;
    FeedForward rest;
    float eps;
};
struct ClassBlock {
    Layer query;
    const Layer *key, *value;  // one for each head
    FeedForward rest;
    float eps;
};
struct Network {
    int32_t dim, num_heads, num_features, num_embed, num_pair, num_blocks, num_cls_blocks, widest;
    const float *scale, *shift;  // batch norm of the features
    const Layer* embed;
    const float* embed_eps;
    const Layer* pair;
    const Block* blocks;
    const ClassBlock* cls_blocks;
    const float* cls_token;
};

// What `jetzoo profile` tells apart.
enum Stage { EMBED, PAIR_EMBED, ATTENTION, FEED_FORWARD, CLASS_ATTENTION, STAGES };

using Buffer = std::vector<float>;
struct Workspace {
    Buffer x, qkv, mixed, tile, hidden, pair, pair_hidden, pair_out, bias, particles, scores;
    Buffer cls, cls_wide, cls_mean, heads;
    std::vector<int32_t> quantized;
    double seconds[STAGES] = {};
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
    int32_t index, first, size;  // in the batch; first token in the group; number of particles
    const int32_t* positions;    // of the particles in the padded input
    long bias;                   // start in Workspace::bias
};

static float* reserve(Buffer& buffer, size_t size) {
    if (buffer.size() < size) buffer.resize(size);
    return buffer.data();
}
static long round_up(long n, long to) { return (n + to - 1) / to * to; }

INLINE vi dot4(vi sum, vi a, vi b) {  // four unsigned bytes of a times four signed ones of b
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__)
    return (vi)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#else
    for (int i = 0; i < 32; i += 8) sum += ((a >> i) & 255) * ((b << (24 - i)) >> 24);
    return sum;
#endif
}

template <int N>
INLINE void product(const float* w, const float* x, long ld, int k, vf (&sum)[PM][N]) {
    for (int c = 0; c < k; c++, w += PM, x += ld) {
        vf in[N];
#pragma GCC unroll 4
        for (int v = 0; v < N; v++) in[v] = load(x + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < PM; r++) {
            vf weight = splat(w[r]);
#pragma GCC unroll 4
            for (int v = 0; v < N; v++) sum[r][v] += weight * in[v];
        }
    }
}

template <int N>
INLINE void product(const int32_t* w, const int32_t* x, int k, vi (&sum)[PM][N]) {
    for (int c = 0; c < k; c += 4, w += PM, x += N * W) {
        vi in[N];
#pragma GCC unroll 4
        for (int v = 0; v < N; v++) memcpy(&in[v], x + v * W, sizeof(vi));
#pragma GCC unroll 8
        for (int r = 0; r < PM; r++) {
            vi weight = isplat(w[r]);
#pragma GCC unroll 4
            for (int v = 0; v < N; v++) sum[r][v] = dot4(sum[r][v], in[v], weight);
        }
    }
}

// Channels x[c] times before[v] as unsigned bytes, four channels of a token in one lane; gives the
// scale of each token.
template <int N>
static void quantize(const Layer& layer, const float* x, long ld, int rows, const vf (&before)[N],
                     int32_t* out, vf (&scale)[N]) {
    vf inverse[N], zero = splat(layer.bytes == 1 ? 128.f : layer.input_zero);
    if (layer.bytes == 1) {
        for (int v = 0; v < N; v++) scale[v] = vf{};
        for (int c = 0; c < rows; c++)
            for (int v = 0; v < N; v++) {
                vf a = load(x + c * ld + v * W);
                scale[v] = vmax(scale[v], vmax(a, -a));
            }
        for (int v = 0; v < N; v++) {
            vf largest = vmax(scale[v] * before[v], splat(1e-30f));
            scale[v] = largest * (1 / 127.f);
            inverse[v] = before[v] * 127.f / largest;
        }
    } else {
        for (int v = 0; v < N; v++) {
            scale[v] = splat(layer.input_scale);
            inverse[v] = before[v] / layer.input_scale;
        }
    }
    for (int c = 0; c < layer.k; c += 4)
        for (int v = 0; v < N; v++) {
            vi word{};
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                if (c + i >= rows) break;  // the weights of what is missing are zero
                vf a = load(x + (c + i) * ld + v * W) * inverse[v] + zero;
                word |= nearest(vmin(vmax(a, vf{}), splat(255.f))) << (8 * i);
            }
            memcpy(out + (c / 4 * N + v) * W, &word, sizeof word);
        }
}

// y = after * (W (before * x)) + bias for N vectors of tokens; epilogue(channel, v, y).
// `rows` is the number of channels of x, which may be less than what the weights are padded to.
template <int N, class Epilogue>
INLINE void dense(const Layer& layer, const float* x, long ld, int rows, Workspace& work,
                  const vf (&before)[N], const vf (&after)[N], Epilogue epilogue) {
    if (!layer.bytes) {
        vf scale[N];
        for (int v = 0; v < N; v++) scale[v] = before[v] * after[v];
        const float* w = static_cast<const float*>(layer.weight);
        for (int m = 0; m < layer.m; m += PM, w += PM * layer.k) {
            vf sum[PM][N] = {};
            product<N>(w, x, ld, layer.k, sum);
#pragma GCC unroll 8
            for (int r = 0; r < PM; r++)
#pragma GCC unroll 4
                for (int v = 0; v < N; v++)
                    epilogue(m + r, v, sum[r][v] * scale[v] + layer.bias[m + r]);
        }
        return;
    }
    if (work.quantized.size() < size_t(layer.k / 4 * N * W))
        work.quantized.resize(layer.k / 4 * N * W);
    int32_t* bytes = work.quantized.data();
    vf scale[N];
    quantize<N>(layer, x, ld, rows, before, bytes, scale);
    for (int v = 0; v < N; v++) scale[v] *= after[v];
    float zero = layer.bytes == 1 ? 128.f : layer.input_zero;
    const int32_t* w = static_cast<const int32_t*>(layer.weight);
    for (int m = 0; m < layer.m; m += PM, w += PM * layer.k / 4) {
        vi sum[PM][N] = {};
        product<N>(w, bytes, layer.k, sum);
#pragma GCC unroll 8
        for (int r = 0; r < PM; r++)
#pragma GCC unroll 4
            for (int v = 0; v < N; v++) {
                vf y = __builtin_convertvector(sum[r][v], vf) - zero * layer.offset[m + r];
                epilogue(m + r, v, y * (scale[v] * layer.scale[m + r]) + layer.bias[m + r]);
            }
    }
}

template <int N>
struct Ones {
    vf values[N];
    Ones() {
        for (vf& v : values) v = splat(1.f);
    }
};

INLINE vf inverse_std(vf sum, vf squares, int rows, float eps) {
    vf mean = sum * (1.f / rows);
    return 1.f / vsqrt(vmax(squares * (1.f / rows) - mean * mean, vf{}) + eps);
}

// 1 / sqrt(variance + eps) over the channels.
template <int N>
INLINE void spread(const float* x, long ld, int rows, float eps, vf (&inverse)[N]) {
    vf sum[N] = {}, squares[N] = {};
    for (int c = 0; c < rows; c++)
        for (int v = 0; v < N; v++) {
            vf a = load(x + c * ld + v * W);
            sum[v] += a;
            squares[v] += a * a;
        }
    for (int v = 0; v < N; v++) inverse[v] = inverse_std(sum[v], squares[v], rows, eps);
}

// What a block does after the attention: x is changed in place, `mixed` is what was attended to.
template <int N>
static void feed_forward(const FeedForward& f, float* x, const float* mixed, long ld, int dim,
                         Workspace& work) {
    const Ones<N> one;
    float* y = reserve(work.tile, dim * TILE);
    float* hidden = reserve(work.hidden, f.fc1.m * TILE);
    vf sum[N] = {}, squares[N] = {}, inverse[N];
    dense<N>(f.out, mixed, ld, dim, work, one.values, one.values, [&](int m, int v, vf a) {
        store(y + m * TILE + v * W, a);
        squares[v] += a * a;  // the mean has been taken out of the weights
    });
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
    });
    for (int v = 0; v < N; v++)
        inverse[v] = inverse_std(sum[v], squares[v], f.fc1.m, f.eps_fc2);
    dense<N>(f.fc2, hidden, TILE, f.fc1.m, work, one.values, inverse, [&](int m, int v, vf a) {
        float* at = x + m * ld + v * W;
        store(at, load(at) * f.w_resid[m] + (a + f.bias[m]));
    });
}

template <int N>
static void embed(const Network& net, const float* features, float* x, long ld, Workspace& work) {
    const Ones<N> one;
    float* out = reserve(work.hidden, net.widest * TILE);
    float* in = reserve(work.tile, net.widest * TILE);
    const float* from = features;
    long stride = ld;
    int rows = net.num_features;
    for (int i = 0; i < net.num_embed; i++) {
        const Layer& layer = net.embed[i];
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
static void project(const Block& block, const float* x, float* qkv, long ld, int dim,
                    Workspace& work) {
    const Ones<N> one;
    vf inverse[N];
    spread<N>(x, ld, dim, block.eps, inverse);
    dense<N>(block.qkv, x, ld, dim, work, inverse, one.values,
             [&](int m, int v, vf a) { store(qkv + m * ld + v * W, a); });
}

// Calls function(integral constant N, first token) for tiles of 1..NV vectors of tokens.
template <class Function>
INLINE void tiles(long tokens, Function function) {
    for (long t = 0; t < tokens; t += TILE) {
        long left = tokens - t;
        if (left > 2 * W)
            function(std::integral_constant<int, 3>(), t);
        else if (left > W)
            function(std::integral_constant<int, 2>(), t);
        else
            function(std::integral_constant<int, 1>(), t);
    }
}

// Attention of one head of one jet to itself for N vectors of queries: the lanes are queries.
template <int N>
static void attend(const float* q, const float* k, const float* v, const float* bias, long width,
                   float* out, long ld, int size, int head_dim, float* scores) {
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

// ln kT, ln z, ln dR, ln m2 of particle i with particles 0 ... i, W at a time; see jetzoo.kinematics.
// Sums and products that could cancel are rounded as PyTorch rounds them.
static void pair_features(const float* p, long n, int i, float* out, long ld) {
    const float *px = p, *py = p + n, *pz = p + 2 * n, *energy = p + 3 * n;
    const float *pt = p + 4 * n, *rapidity = p + 5 * n, *phi = p + 6 * n;
    const float pi = 3.14159265358979f, two_pi = 6.28318530717959f;
    const vf eps = splat(EPS);
    for (int j = 0; j <= i; j += W) {
        vf a = rounded(phi[i] - load(phi + j)) + pi;
        a = a < 0.f ? a + two_pi : (a >= two_pi ? a - two_pi : a);
        vf dphi = a - pi, dy = rapidity[i] - load(rapidity + j);
        vf delta = vsqrt(dy * dy + dphi * dphi);
        vf other = load(pt + j), pt_min = vmin(splat(pt[i]), other);
        vf e = rounded(energy[i] + load(energy + j)), x = rounded(px[i] + load(px + j));
        vf y = rounded(py[i] + load(py + j)), z = rounded(pz[i] + load(pz + j));
        vf p2 = rounded(rounded(rounded(x * x) + rounded(y * y)) + rounded(z * z));
        store(out + j, vlog(vmax(pt_min * delta, eps)));
        store(out + ld + j, vlog(vmax(pt_min / vmax(pt[i] + other, eps), eps)));
        store(out + 2 * ld + j, vlog(vmax(delta, eps)));
        store(out + 3 * ld + j, vlog(vmax(rounded(e * e) - p2, eps)));
    }
}

template <int N>
static void pair_mlp(const Network& net, const float* features, long ld, float* out,
                     Workspace& work) {
    const Ones<N> one;
    float* hidden[2];
    hidden[0] = reserve(work.pair_hidden, 2 * net.widest * TILE);
    hidden[1] = hidden[0] + net.widest * TILE;
    const float* from = features;
    long stride = ld;
    int rows = 4;
    for (int i = 0; i < net.num_pair; i++) {
        bool last = i + 1 == net.num_pair;
        float* to = last ? out : hidden[i % 2];
        long step = last ? ld : TILE;
        dense<N>(net.pair[i], from, stride, rows, work, one.values, one.values,
                 [&](int m, int v, vf a) { store(to + m * step + v * W, vgelu(a)); });
        rows = net.pair[i].m;
        from = to;
        stride = TILE;
    }
}

// Bias (H, n, width) of a jet, symmetric; p holds px, py, pz, E of its n particles.
static void pair_bias(const Network& net, int n, long stride, float* p, float* bias, long width,
                      Workspace& work) {
    for (int i = 0; i < n; i++) {
        float x = p[i], y = p[stride + i], z = p[2 * stride + i], e = p[3 * stride + i];
        p[4 * stride + i] = std::sqrt(x * x + y * y);
        p[5 * stride + i] = 0.5f * std::log(1 + 2 * z / std::max(e - z, 1e-20f));
        p[6 * stride + i] = std::atan2(y, x * x + y * y > 0 ? x : 1.f);
    }
    long ld = PAIRS + n + 2 * TILE;
    float* features = reserve(work.pair, 4 * ld);
    float* out = reserve(work.pair_out, net.pair[net.num_pair - 1].m * ld);
    long count = 0;
    for (int i = 0, first = 0; i < n; i++) {
        pair_features(p, stride, i, features + count, ld);
        count += i + 1;
        if (count < PAIRS && i + 1 < n) continue;
        tiles(count, [&](auto size, long t) {
            pair_mlp<decltype(size)::value>(net, features + t, ld, out + t, work);
        });
        for (int h = 0; h < net.num_heads; h++) {
            const float* value = out + h * ld;
            float* matrix = bias + h * n * width;
            for (int row = first; row <= i; row++)
                for (int column = 0; column <= row; column++, value++)
                    matrix[row * width + column] = matrix[column * width + row] = *value;
        }
        first = i + 1;
        count = 0;
    }
}

// Attention of the class tokens, in the lanes, to the particles of their jets and to themselves.
static void class_attention(const Network& net, const ClassBlock& block, const std::vector<Jet>& jets,
                            const float* x, long ld, const float* inverse, float* cls, float* out,
                            Workspace& work) {
    const Ones<1> one;
    const int dim = net.dim, heads = net.num_heads, head_dim = dim / heads;
    const int padded = round_up(heads, PM);
    float* q = reserve(work.cls_wide, (heads + 1) * dim * W);
    float* keys = q + dim * W;  // (H, D, W): the query, seen through the keys' matrices
    dense<1>(block.query, cls, W, dim, work, one.values, one.values,
             [&](int m, int, vf a) { store(q + m * W, a); });
    for (int h = 0; h < heads; h++)
        dense<1>(block.key[h], q + h * head_dim * W, W, head_dim, work, one.values, one.values,
                 [&](int m, int, vf a) { store(keys + (h * dim + m) * W, a); });
    vf own_inverse[1];
    spread<1>(cls, W, dim, block.eps, own_inverse);

    float* mean = reserve(work.cls_mean, heads * dim * W);
    for (size_t b = 0; b < jets.size(); b++) {
        const int n = jets[b].size;
        const long width = round_up(n, TILE) + TILE;
        const float* tokens = x + jets[b].first;
        const float* spreads = inverse + jets[b].first;
        float* packed = reserve(work.heads, padded * dim);  // (H / PM, D, PM)
        float* scores = reserve(work.scores, padded * width);
        float own[64];
        for (int h = 0; h < padded; h++) {
            float score = 0;
            for (int c = 0; c < dim; c++) {
                float key = h < heads ? keys[(h * dim + c) * W + b] : 0.f;
                packed[(h / PM * dim + c) * PM + h % PM] = key;
                score += key * cls[c * W + b];
            }
            own[h] = score * own_inverse[0][b];
        }
        for (int h = 0; h < padded; h += PM)
            tiles(n, [&](auto size, long t) {
                constexpr int N = decltype(size)::value;
                vf sum[PM][N] = {};
                product<N>(packed + h * dim, tokens + t, ld, dim, sum);
                for (int r = 0; r < PM; r++)
                    for (int v = 0; v < N; v++)
                        store(scores + (h + r) * width + t + v * W,
                              sum[r][v] * load(spreads + t + v * W));
            });
        for (int h = 0; h < heads; h++) {
            float* score = scores + h * width;
            float largest = own[h], total;
            for (int j = 0; j < n; j++) largest = std::max(largest, score[j]);
            own[h] = total = std::exp(own[h] - largest);
            for (int j = 0; j < round_up(n, W); j += W) {
                vf a = vexp(load(score + j) - largest);
                for (int i = 0; i < W; i++) a[i] = j + i < n ? a[i] : 0.f;
                total += sum(a);
                store(score + j, a * load(spreads + j));
            }
            for (int j = n; j < round_up(n, W); j++) score[j] = 0.f;
            own[h] *= own_inverse[0][b];
            for (int c = 0; c < dim; c++) {
                vf a{};
                const float* token = tokens + c * ld;
                for (int j = 0; j < n; j += W) a += load(score + j) * load(token + j);
                mean[(h * dim + c) * W + b] = (sum(a) + own[h] * cls[c * W + b]) / total;
            }
        }
    }
    for (int h = 0; h < heads; h++)
        dense<1>(block.value[h], mean + h * dim * W, W, dim, work, one.values, one.values,
                 [&](int m, int, vf a) { store(out + (h * head_dim + m) * W, a); });
}

// Class tokens (jets, D) of a group of at most W jets.
static void forward(const Network& net, const float* features, const float* vectors, long length,
                    std::vector<Jet>& jets, float* out, Workspace& work) {
    const int dim = net.dim, heads = net.num_heads, head_dim = dim / heads;
    Clock clock{work.seconds};
    long tokens = 0, pairs = 0;
    for (Jet& jet : jets) {
        jet.first = tokens;
        jet.bias = pairs;
        tokens += jet.size;
        pairs += heads * jet.size * round_up(jet.size, W);
    }
    const long ld = round_up(tokens, TILE) + TILE;
    float* x = reserve(work.x, dim * ld);
    float* qkv = reserve(work.qkv, 3 * dim * ld);
    float* mixed = reserve(work.mixed, std::max(dim, net.num_features) * ld);
    float* bias = net.num_pair ? reserve(work.bias, pairs + TILE) : nullptr;

    // The lanes past the last token are computed, too; what they hold must only be finite.
    float* in = mixed;
    for (int c = 0; c < net.num_features; c++) {
        float* to = in + c * ld;
        std::fill(to + tokens, to + ld, 0.f);
        for (const Jet& jet : jets) {
            const float* from = features + (long(jet.index) * net.num_features + c) * length;
            for (int i = 0; i < jet.size; i++)
                to[jet.first + i] = from[jet.positions[i]] * net.scale[c] + net.shift[c];
        }
    }
    for (int c = 0; c < dim; c++) std::fill(x + c * ld + tokens, x + (c + 1) * ld, 0.f);
    tiles(tokens, [&](auto size, long t) {
        embed<decltype(size)::value>(net, in + t, x + t, ld, work);
    });
    clock.add(EMBED);
    for (const Jet& jet : jets) {
        if (!net.num_pair) break;
        const long stride = round_up(jet.size, W) + W, width = round_up(jet.size, W);
        float* p = reserve(work.particles, 7 * stride);
        std::fill(p, p + 7 * stride, 0.f);
        for (int k = 0; k < 4; k++)
            for (int i = 0; i < jet.size; i++)
                p[k * stride + i] = vectors[(long(jet.index) * 4 + k) * length + jet.positions[i]];
        float* matrix = bias + jet.bias;
        for (long row = 0; row < long(heads) * jet.size; row++)
            std::fill(matrix + row * width + jet.size, matrix + (row + 1) * width, 0.f);
        pair_bias(net, jet.size, stride, p, matrix, width, work);
    }
    clock.add(PAIR_EMBED);
    for (int c = 0; c < dim; c++) std::fill(mixed + c * ld + tokens, mixed + (c + 1) * ld, 0.f);

    for (int l = 0; l < net.num_blocks; l++) {
        const Block& block = net.blocks[l];
        tiles(tokens, [&](auto size, long t) {
            project<decltype(size)::value>(block, x + t, qkv + t, ld, dim, work);
        });
        for (const Jet& jet : jets) {
            const long width = round_up(jet.size, W);
            float* scores = reserve(work.scores, (jet.size + 1) * TILE);
            for (int h = 0; h < heads; h++) {
                const float* q = qkv + h * head_dim * ld + jet.first;
                const float* matrix = bias ? bias + jet.bias + h * jet.size * width : nullptr;
                // The last vector reaches into the next jet, which overwrites it.
                tiles(jet.size, [&](auto size, long t) {
                    attend<decltype(size)::value>(
                        q + t, q + dim * ld, q + 2 * dim * ld, matrix ? matrix + t : nullptr, width,
                        mixed + h * head_dim * ld + jet.first + t, ld, jet.size, head_dim, scores);
                });
            }
        }
        clock.add(ATTENTION);
        tiles(tokens, [&](auto size, long t) {
            feed_forward<decltype(size)::value>(block.rest, x + t, mixed + t, ld, dim, work);
        });
        clock.add(FEED_FORWARD);
    }

    float* cls = reserve(work.cls, 2 * dim * W);
    float* attended = cls + dim * W;
    for (int c = 0; c < dim; c++) store(cls + c * W, splat(net.cls_token[c]));
    std::fill(attended, attended + dim * W, 0.f);
    float* inverse = mixed;
    tiles(tokens, [&](auto size, long t) {
        constexpr int N = decltype(size)::value;
        vf spreads[N];
        spread<N>(x + t, ld, dim, net.cls_blocks[0].eps, spreads);
        for (int v = 0; v < N; v++) store(inverse + t + v * W, spreads[v]);
    });
    float* mean = reserve(work.cls_mean, heads * dim * W);
    std::fill(mean, mean + heads * dim * W, 0.f);
    for (int l = 0; l < net.num_cls_blocks; l++) {
        class_attention(net, net.cls_blocks[l], jets, x, ld, inverse, cls, attended, work);
        feed_forward<1>(net.cls_blocks[l].rest, cls, attended, W, dim, work);
    }
    for (size_t b = 0; b < jets.size(); b++)
        for (int c = 0; c < dim; c++) out[long(jets[b].index) * dim + c] = cls[c * W + b];
    clock.add(CLASS_ATTENTION);
}

// Workspaces outlive the calls: fresh memory costs a page fault for every 4 KiB.
static std::vector<std::unique_ptr<Workspace>> spare;
static std::mutex spare_mutex;
static double stage_seconds[STAGES];  // of the last call, the sum over its threads

static std::unique_ptr<Workspace> take_workspace() {
    std::lock_guard<std::mutex> lock(spare_mutex);
    if (spare.empty()) return std::make_unique<Workspace>();
    auto work = std::move(spare.back());
    spare.pop_back();
    return work;
}

EXPORT void part_stage_seconds(double* out) {
    std::lock_guard<std::mutex> lock(spare_mutex);
    std::copy(stage_seconds, stage_seconds + STAGES, out);
}

EXPORT int32_t rows_per_kernel() { return PM; }
EXPORT int32_t has_byte_products() {
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
    return 1;
#else
    return 0;
#endif
}

// Class tokens (B, D) of jets given as features (B, C, N), vectors (B, 4, N), mask (B, N).
EXPORT void part_forward(const Network* net, const float* features, const float* vectors,
                         const uint8_t* mask, int64_t batch, int64_t length, int64_t tokens,
                         int32_t threads, float* out) {
    std::vector<int32_t> positions, starts(batch + 1, 0);
    for (int64_t b = 0; b < batch; b++) {
        for (int64_t i = 0; i < length; i++)
            if (mask[b * length + i]) positions.push_back(i);
        starts[b + 1] = positions.size();
    }
    tokens = std::max<int64_t>(1, std::min<int64_t>(tokens, starts[batch] / std::max(threads, 1)));
    std::vector<int64_t> groups{0};  // first jet of each group
    for (int64_t b = 1; b < batch; b++)
        if (starts[b + 1] - starts[groups.back()] > tokens || b - groups.back() == W)
            groups.push_back(b);
    groups.push_back(batch);

    {
        std::lock_guard<std::mutex> lock(spare_mutex);
        std::fill(stage_seconds, stage_seconds + STAGES, 0.0);
    }
    std::atomic<size_t> next{0};
    auto run = [&] {
        auto work = take_workspace();
        std::fill(work->seconds, work->seconds + STAGES, 0.0);
        std::vector<Jet> jets;
        for (size_t g; (g = next++) + 1 < groups.size();) {
            jets.clear();
            for (int64_t b = groups[g]; b < groups[g + 1]; b++)
                jets.push_back({int32_t(b), 0, starts[b + 1] - starts[b],
                                positions.data() + starts[b], 0});
            forward(*net, features, vectors, length, jets, out, *work);
        }
        std::lock_guard<std::mutex> lock(spare_mutex);
        for (int s = 0; s < STAGES; s++) stage_seconds[s] += work->seconds[s];
        spare.push_back(std::move(work));
    };
    std::vector<std::thread> others;
    for (int64_t i = 1; i < std::min<int64_t>(threads, groups.size() - 1); i++)
        others.emplace_back(run);
    run();
    for (std::thread& thread : others) thread.join();
}
