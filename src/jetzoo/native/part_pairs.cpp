// The pair interaction: features of all pairs of particles of a jet, and the MLP on them.
#include <cmath>

#include "part_dense.h"

constexpr int PAIRS = 1024;   // pairs whose features are computed together
constexpr float EPS = 1e-8f;  // of the pair features, as in jetzoo.nn.kinematics

// ln kT, ln z, ln dR, ln m2 of particle i with particles 0 ... i, W at a time; see
// jetzoo.nn.kinematics. Sums and products that could cancel are rounded as PyTorch rounds them.
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
static void pair_mlp(const NetworkWeights& net, const float* features, long ld, float* out,
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

void pair_bias(const NetworkWeights& net, int n, long stride, float* p, float* bias, long width,
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
