// Element-wise chains of the blocks, row by row: norms, GELU, dropout and sums, forward and
// backward.
//
// Sums over rows are made chunk by chunk and added in a fixed order, so that they do not depend on
// the threads.
#include <cmath>
#include <vector>

#include "dropout.h"
#include "simd.h"
#include "threads.h"

constexpr int64_t CHUNK = 32;  // rows whose sums are made together

// task(row, sums, scratch) for all rows; adds up `width` sums over the rows.
template <class Task>
static int32_t over_rows(int64_t count, int width, int threads, int scratch_size, float* total,
                         Task task) {
    return status_of([&] {
        const int64_t chunks = (count + CHUNK - 1) / CHUNK;
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
    });
}

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

// jetzoo.native.structures mirrors this structure. Widths are multiples of W.
struct ChainArguments {
    int64_t rows, dim;
    float eps, dropout;
    uint64_t seed;
    const float *x, *residual;          // (rows, dim)
    const float *scale, *gain, *shift;  // (dim)
    float *out, *moments;               // (rows, dim), (rows, 2)
    const float* grad;                  // (rows, dim)
    float *dx, *sums;                   // (rows, dim), (k, dim)
};

EXPORT_SIZE(ChainArguments)

INLINE Moments& moments_of(const ChainArguments& c, int64_t i) {
    return reinterpret_cast<Moments*>(c.moments)[i];
}

// LayerNorm of x.
EXPORT int32_t norm_forward(const ChainArguments* a, int threads) {
    return over_rows(a->rows, 0, threads, 0, nullptr, [&](int64_t i, float*, float*) {
        const float* x = a->x + i * a->dim;
        Moments m = moments_of(*a, i) = moments(x, a->dim, a->eps);
        for (int c = 0; c < a->dim; c += W)
            store(a->out + i * a->dim + c,
                  (load(x + c) - m.mean) * m.inverse * load(a->gain + c) + load(a->shift + c));
    });
}

// Sums: gain, shift.
EXPORT int32_t norm_backward(const ChainArguments* a, int threads) {
    const int d = a->dim;
    return over_rows(a->rows, 2 * d, threads, d, a->sums, [&](int64_t i, float* sums, float* x) {
        float* dx = a->dx + i * d;
        memcpy(x, a->x + i * d, d * sizeof(float));
        memcpy(dx, a->grad + i * d, d * sizeof(float));
        norm_gradient(x, dx, a->gain, moments_of(*a, i), d, sums, sums + d);
    });
}

// LayerNorm of dropout(gelu(x + scale)); `scale` is the bias of the layer that gave x.
EXPORT int32_t gelu_norm_forward(const ChainArguments* a, int threads) {
    const int d = a->dim;
    return over_rows(a->rows, 0, threads, d, nullptr, [&](int64_t i, float*, float* y) {
        Dropout dropout(a->dropout, a->seed, i);
        for (int c = 0; c < d; c += W) {
            vf unused, g = gelu_and_slope(load(a->x + i * d + c) + load(a->scale + c), unused);
            if (a->dropout) g *= dropout.factor(c);
            store(y + c, g);
        }
        Moments m = moments_of(*a, i) = moments(y, d, a->eps);
        for (int c = 0; c < d; c += W)
            store(a->out + i * d + c,
                  (load(y + c) - m.mean) * m.inverse * load(a->gain + c) + load(a->shift + c));
    });
}

// Sums: gain, shift, scale.
EXPORT int32_t gelu_norm_backward(const ChainArguments* a, int threads) {
    const int d = a->dim;
    auto task = [&](int64_t i, float* sums, float* y) {
        float *dx = a->dx + i * d, *slope = y + d;
        Dropout dropout(a->dropout, a->seed, i);
        for (int c = 0; c < d; c += W) {
            vf x = load(a->x + i * d + c) + load(a->scale + c), derivative;
            vf g = gelu_and_slope(x, derivative);
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
    };
    return over_rows(a->rows, 3 * d, threads, 2 * d, a->sums, task);
}

// residual + dropout(LayerNorm(x * scale)).
EXPORT int32_t add_norm_forward(const ChainArguments* a, int threads) {
    const int d = a->dim;
    return over_rows(a->rows, 0, threads, d, nullptr, [&](int64_t i, float*, float* y) {
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

// Sums: gain, shift, scale.
EXPORT int32_t add_norm_backward(const ChainArguments* a, int threads) {
    const int d = a->dim;
    return over_rows(a->rows, 3 * d, threads, d, a->sums, [&](int64_t i, float* sums, float* y) {
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
EXPORT int32_t add_forward(const ChainArguments* a, int threads) {
    const int d = a->dim;
    return over_rows(a->rows, 0, threads, 0, nullptr, [&](int64_t i, float*, float*) {
        Dropout dropout(a->dropout, a->seed, i);
        for (int c = 0; c < d; c += W) {
            vf x = load(a->x + i * d + c);
            if (a->dropout) x *= dropout.factor(c);
            store(a->out + i * d + c, load(a->residual + i * d + c) * load(a->scale + c) + x);
        }
    });
}

// Gradient of x to dx, of the residual to out. Sums: scale.
EXPORT int32_t add_backward(const ChainArguments* a, int threads) {
    const int d = a->dim;
    return over_rows(a->rows, d, threads, 0, a->sums, [&](int64_t i, float* sums, float*) {
        Dropout dropout(a->dropout, a->seed, i);
        for (int c = 0; c < d; c += W) {
            vf g = load(a->grad + i * d + c);
            store(a->out + i * d + c, g * load(a->scale + c));
            accumulate(sums + c, g * load(a->residual + i * d + c));
            store(a->dx + i * d + c, a->dropout ? g * dropout.factor(c) : g);
        }
    });
}
