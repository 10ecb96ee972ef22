#include "workspace.h"

#include <chrono>
#include <cstring>
#include <new>

constexpr std::align_val_t ALIGNMENT{64};

void Buffer::grow(size_t size) {
    release();  // before there is a second one
    data = ::operator new(size, ALIGNMENT);
    bytes = size;
    std::memset(data, 0, size);
}

void Buffer::release() {
    if (data) ::operator delete(data, ALIGNMENT);
    data = nullptr;
    bytes = 0;
}

void Workspace::trim() {
    Buffer* const all[] = {&x,    &qkv,    &mixed, &tile,     &hidden,   &pair,
                           &pair_hidden,   &pair_out, &bias,  &momenta,  &scores,
                           &cls,  &cls_wide, &cls_mean, &heads, &particles, &quantized, &column, &row};
    size_t total = 0;
    for (const Buffer* buffer : all) total += buffer->size();
    if (total <= KEPT_BYTES) return;
    for (Buffer* buffer : all) buffer->release();
}

double Clock::now() {
    const auto time = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(time).count();
}
