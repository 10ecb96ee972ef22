// The pair interaction: features of all pairs of particles of a jet, and the MLP on them.
#include <cmath>

#include "part_dense.h"

namespace ISA {

constexpr int PAIRS = 1024;   // pairs whose features are computed together
// Limits of the pair features, as in jetzoo.nn.kinematics.
constexpr double EPS = 1e-8, LARGEST = 1e38, SMALLEST = 1e-20;
constexpr double PI = 3.14159265358979323846;

// ln kT, ln z, ln dR, ln m2 of particle i with particles 0 ... i, W at a time; see
// jetzoo.nn.kinematics. What cancels is computed in float64.
static void pair_features(const double* p, const float* pt, long n, int i, float* out, long ld) {
    const double *px = p, *py = p + n, *pz = p + 2 * n, *energy = p + 3 * n;
    const double *rapidity = p + 4 * n, *phi = p + 5 * n;
    for (int j = 0; j <= i; j += W) {
        float angles[W], distances[W], masses[W];
        for (int half = 0; half < W; half += W / 2) {
            const int k = j + half;
            vd dphi = phi[i] - loadd(phi + k);
            dphi = dphi < -PI ? dphi + 2 * PI : (dphi >= PI ? dphi - 2 * PI : dphi);
            vd e = energy[i] + loadd(energy + k), x = px[i] + loadd(px + k);
            vd y = py[i] + loadd(py + k), z = pz[i] + loadd(pz + k);
            vd m2 = e * e - (x * x + y * y + z * z);
            m2 = m2 > EPS ? m2 : EPS - vd{};
            narrow(dphi, angles + half);
            narrow(rapidity[i] - loadd(rapidity + k), distances + half);
            narrow(m2 < LARGEST ? m2 : LARGEST - vd{}, masses + half);
        }
        const vf eps = splat(float(EPS)), largest = splat(float(LARGEST));
        vf angle = load(angles), dy = load(distances), other = load(pt + j);
        vf delta = vsqrt(dy * dy + angle * angle), pt_min = vmin(splat(pt[i]), other);
        store(out + j, vlog(vmin(vmax(pt_min * delta, eps), largest)));
        store(out + ld + j, vlog(vmax(pt_min / vmax(pt[i] + other, eps), eps)));
        store(out + 2 * ld + j, vlog(vmax(delta, eps)));
        store(out + 3 * ld + j, vlog(load(masses)));
    }
}

template <int N>
static void pair_mlp(const NetworkWeights& net, const float* features, long ld, float* out,
                     Workspace& work) {
    const Ones<N> one;
    float* hidden[2];
    hidden[0] = work.pair_hidden.numbers<float>(2 * net.widest * TILE);
    hidden[1] = hidden[0] + net.widest * TILE;
    const float* from = features;
    long stride = ld;
    int rows = 4;
    for (int i = 0; i < net.num_pair; i++) {
        bool last = i + 1 == net.num_pair;
        float* to = last ? out : hidden[i % 2];
        long step = last ? ld : TILE;
        const bool activated = !last || net.pair_activated;
        dense<N>(net.pair[i], from, stride, rows, work, one.values, one.values,
                 [&](int m, int v, vf a) {
                     store(to + m * step + v * W, activated ? vgelu(a) : a);
                 });
        rows = net.pair[i].m;
        from = to;
        stride = TILE;
    }
}

void pair_bias(const NetworkWeights& net, int n, long stride, double* p, float* bias, long width,
               Workspace& work) {
    float* pt = work.momenta.numbers<float>(stride);
    std::fill(pt, pt + stride, 0.f);
    for (int i = 0; i < n; i++) {
        double x = p[i], y = p[stride + i], z = p[2 * stride + i], e = p[3 * stride + i];
        double ratio = 1 + 2 * z / std::max(e - z, SMALLEST), pt2 = x * x + y * y;
        p[4 * stride + i] = 0.5 * std::log(std::max(ratio, SMALLEST));
        p[5 * stride + i] = std::atan2(y, pt2 > 0 ? x : 1.);
        pt[i] = std::min(std::sqrt(pt2), LARGEST);
    }
    long ld = PAIRS + n + 2 * TILE;
    float* features = work.pair.numbers<float>(4 * ld);
    float* out = work.pair_out.numbers<float>(net.pair[net.num_pair - 1].m * ld);
    long count = 0;
    for (int i = 0, first = 0; i < n; i++) {
        pair_features(p, pt, stride, i, features + count, ld);
        count += i + 1;
        if (count < PAIRS && i + 1 < n) continue;
        tiles(count, [&](auto size, long t) {
            pair_mlp<decltype(size)::value>(net, features + t, ld, out + t, work);
        });
        for (int h = 0; h < net.num_heads; h++) {
            const float* value = out + h * ld;
            float* matrix = bias + h * n * width;
            for (int row = first; row <= i; row++) {
                for (int column = 0; column <= row; column++, value++)
                    matrix[row * width + column] = matrix[column * width + row] = *value;
                if (!net.self_pairs) matrix[row * width + row] = 0;
            }
        }
        first = i + 1;
        count = 0;
    }
}

}  // namespace ISA
