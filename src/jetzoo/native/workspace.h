// Memory of one thread, and what all kernels of inference take, whatever they are compiled for.
//
// Nothing here depends on the width of the vectors. What the kernels for one instruction set use of
// this file is inlined into them: a function that they shared with others could be the copy that
// was compiled for a processor with more instructions.
#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#define EXPORT extern "C" __attribute__((visibility("default")))
// Python compares the sizes of its mirrors of the structures (jetzoo.native.structures).
#define EXPORT_SIZE(type) \
    EXPORT int64_t sizeof_##type() { return sizeof(type); }

constexpr size_t KEPT_BYTES = size_t(16) << 20;  // that a thread keeps between calls, at most

// Numbers that are finite when they are new, aligned to the longest vectors.
class Buffer {
    void* data = nullptr;
    size_t bytes = 0;

    void grow(size_t size);

  public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    ~Buffer() { release(); }
    size_t size() const { return bytes; }
    void release();

    // At least `count` numbers; what the buffer held is lost if there were fewer.
    template <class Number>
    __attribute__((always_inline)) Number* numbers(size_t count) {
        if (bytes < count * sizeof(Number)) grow(count * sizeof(Number));
        return static_cast<Number*>(data);
    }
};

// What `jetzoo profile` tells apart.
enum Stage { EMBED, PAIR_EMBED, ATTENTION, FEED_FORWARD, CLASS_ATTENTION, STAGES };

struct Workspace {
    Buffer x, qkv, mixed, tile, hidden, pair, pair_hidden, pair_out, bias, momenta, scores;
    Buffer cls, cls_wide, cls_mean, heads, particles, quantized, column, row;
    double seconds[STAGES] = {};

    // Memory outlives a call, because fresh memory costs a page fault for every 4 KiB. What a long
    // jet needed is given back.
    void trim();
};

// Adds the time since it was last asked to a stage.
struct Clock {
    double* seconds;
    double last = now();

    static double now();
    __attribute__((always_inline)) void add(Stage stage) {
        const double time = now();
        seconds[stage] += time - last;
        last = time;
    }
};
