// Batch norm and ReLU of rows in a training step, and the mean of what they give over groups of
// rows: what ParticleNet does with its edges. Only the rows before the norm are read, forward and
// backward.
//
// Sums over rows are made chunk by chunk and added in a fixed order, so that they do not depend on
// the threads.
#include <vector>

#include "simd.h"
#include "threads.h"

constexpr int64_t GROUPS = 16;  // groups of rows whose sums are made together
constexpr int64_t FIRST = 96;   // rows whose mean is near enough to that of all for float32

// jetzoo.native.structures mirrors this structure. Widths are multiples of W.
struct EdgeArguments {
    int64_t groups, size, dim;     // rows are groups * size
    const float *x;                // (rows, dim)
    const float *scale, *shift;    // (dim), the norm is x * scale + shift
    float *mean;                   // (dim)
    const float *slope, *offset;   // (dim), its gradient is scale * g + slope * x + offset
    const float *grad;             // (groups, dim)
    float *out, *dx;               // (groups, dim), (rows, dim)
    double *sums;                  // (2, dim)
};

EXPORT_SIZE(EdgeArguments)

// task(group, sums) for all groups; adds up `width` sums.
template <class Task>
static void over_groups(const EdgeArguments& a, int threads, int64_t width, Task task) {
    const int64_t chunks = (a.groups + GROUPS - 1) / GROUPS;
    std::vector<float> partial(chunks * width);
    parallel(chunks, threads, [&](int64_t chunk, Scratch&) {
        for (int64_t g = chunk * GROUPS; g < std::min(a.groups, (chunk + 1) * GROUPS); g++)
            task(g, partial.data() + chunk * width);
    });
    for (int64_t c = 0; c < width; c++) a.sums[c] = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++)
        for (int64_t c = 0; c < width; c++) a.sums[c] += partial[chunk * width + c];
}

// Sums over the rows of x - mean and of its square; `mean` is a guess that is made here.
EXPORT int32_t edges_statistics(const EdgeArguments* a, int threads) {
    const int64_t dim = a->dim, rows = a->groups * a->size;
    return status_of([&] {
        const int64_t first = std::min(rows, FIRST);
        for (int64_t c = 0; c < dim; c++) a->mean[c] = 0;
        for (int64_t i = 0; i < first; i++)
            for (int64_t c = 0; c < dim; c++) a->mean[c] += a->x[i * dim + c] / first;
        over_groups(*a, threads, 2 * dim, [&](int64_t g, float* sums) {
            const float* x = a->x + g * a->size * dim;
            for (int64_t c = 0; c < dim; c += W) {
                vf s1{}, s2{}, mean = load(a->mean + c);
                for (int64_t i = 0; i < a->size; i++) {
                    vf d = load(x + i * dim + c) - mean;
                    s1 += d;
                    s2 += d * d;
                }
                accumulate(sums + c, s1);
                accumulate(sums + dim + c, s2);
            }
        });
    });
}

EXPORT int32_t edges_forward(const EdgeArguments* a, int threads) {
    const int64_t dim = a->dim;
    const vf share = splat(1.f / a->size);
    return status_of([&] {
        over_groups(*a, threads, 0, [&](int64_t g, float*) {
            const float* x = a->x + g * a->size * dim;
            for (int64_t c = 0; c < dim; c += W) {
                vf total{}, scale = load(a->scale + c), shift = load(a->shift + c);
                for (int64_t i = 0; i < a->size; i++)
                    total += vmax(load(x + i * dim + c) * scale + shift, vf{});
                store(a->out + g * dim + c, total * share);
            }
        });
    });
}

// The gradient before the ReLU of row `x`.
INLINE vf before_relu(vf x, vf scale, vf shift, vf grad) {
    return x * scale + shift > 0.f ? grad : vf{};
}

// Sums over the rows of the gradient before the ReLU, and of it times x - mean.
EXPORT int32_t edges_sums(const EdgeArguments* a, int threads) {
    const int64_t dim = a->dim;
    const vf share = splat(1.f / a->size);
    return status_of([&] {
        over_groups(*a, threads, 2 * dim, [&](int64_t g, float* sums) {
            const float* x = a->x + g * a->size * dim;
            for (int64_t c = 0; c < dim; c += W) {
                vf s1{}, s2{}, scale = load(a->scale + c), shift = load(a->shift + c);
                vf mean = load(a->mean + c), grad = load(a->grad + g * dim + c) * share;
                for (int64_t i = 0; i < a->size; i++) {
                    vf in = load(x + i * dim + c), out = before_relu(in, scale, shift, grad);
                    s1 += out;
                    s2 += out * (in - mean);
                }
                accumulate(sums + c, s1);
                accumulate(sums + dim + c, s2);
            }
        });
    });
}

EXPORT int32_t edges_backward(const EdgeArguments* a, int threads) {
    const int64_t dim = a->dim;
    const vf share = splat(1.f / a->size);
    return status_of([&] {
        over_groups(*a, threads, 0, [&](int64_t g, float*) {
            const float* x = a->x + g * a->size * dim;
            float* dx = a->dx + g * a->size * dim;
            for (int64_t c = 0; c < dim; c += W) {
                vf scale = load(a->scale + c), shift = load(a->shift + c);
                vf slope = load(a->slope + c), offset = load(a->offset + c);
                vf grad = load(a->grad + g * dim + c) * share;
                for (int64_t i = 0; i < a->size; i++) {
                    vf in = load(x + i * dim + c), out = before_relu(in, scale, shift, grad);
                    store(dx + i * dim + c, out * scale + in * slope + offset);
                }
            }
        });
    });
}
