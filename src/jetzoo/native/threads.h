// Threads that outlive the calls, and the border that no exception crosses.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>

#include "simd.h"

// What a kernel returns; jetzoo.native.calls knows the numbers.
enum Status : int32_t { DONE = 0, NO_MEMORY = 1, FAILED = 2 };

// Calls body() on this thread and on up to `threads - 1` others, and returns when all are through.
// Another thread may not get to it at all, so a body takes its share of the work from a counter.
// The first exception of any thread is thrown again here.
void on_threads(int64_t threads, const std::function<void()>& body);

// The same on the threads that PyTorch's own operations run on, if there are any. In a training step
// these are awake, from the operation before, where those of on_threads would have to be woken.
void on_team(int64_t threads, const std::function<void()>& body);

// The status of what function() does; every kernel that Python calls is wrapped in this.
template <class Function>
int32_t status_of(Function function) noexcept {
    try {
        function();
        return DONE;
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    } catch (const std::length_error&) {  // a vector larger than the address space
        return NO_MEMORY;
    } catch (...) {
        return FAILED;
    }
}

// Memory of one thread, aligned to vectors.
class Scratch {
    std::unique_ptr<float[]> data;
    size_t capacity = 0, used = 0;

  public:
    void reset(size_t size) {
        if (capacity < size + W) {
            data.reset();  // before there is a second one
            capacity = 0;
            data.reset(new float[size + 2 * W]);
            capacity = size + W;
        }
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
void parallel(int64_t count, int threads, Task task) {
    std::atomic<int64_t> next{0};
    on_team(std::min<int64_t>(threads, count), [&] {
        try {
            Scratch scratch;
            for (int64_t i; (i = next++) < count;) task(i, scratch);
        } catch (...) {
            next = count;  // the other threads stop, too
            throw;
        }
    });
}
