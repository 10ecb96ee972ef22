#include "file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "jetzoo.h"

static const char MAGIC[] = "JETZOO\r\n";
constexpr uint64_t VERSION_AND_ORDER = 0x0102030400000001;
enum Field { MAGIC_WORD, VERSION, SIZE, CHECKSUM, PLAN, PLAN_WORDS, TEXT, TEXT_SIZE, HEADER };

// Of all words but the checksum itself: each is mixed with its place, by the finalizer of
// splitmix64, so that no two changes are likely to cancel.
static uint64_t checksum_of(const char* data, size_t words) {
    uint64_t total = 0;
    for (size_t i = 0; i < words; i++) {
        uint64_t z;
        std::memcpy(&z, data + 8 * i, 8);
        if (i == CHECKSUM) z = 0;
        z += i * 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        total += z ^ (z >> 31);
    }
    return total;
}

File::File(const char* path) {
    const int handle = open(path, O_RDONLY | O_CLOEXEC);
    if (handle < 0) throw Error{JETZOO_NO_FILE};
    struct stat found;
    const bool regular = fstat(handle, &found) == 0 && S_ISREG(found.st_mode);
    const bool whole = regular && found.st_size >= 8 * HEADER && found.st_size % 8 == 0;
    void* mapped = MAP_FAILED;
    if (whole) mapped = mmap(nullptr, found.st_size, PROT_READ, MAP_PRIVATE, handle, 0);
    close(handle);
    if (!regular) throw Error{JETZOO_NO_FILE};
    if (!whole) throw Error{JETZOO_BAD_FILE};
    if (mapped == MAP_FAILED) throw Error{JETZOO_NO_FILE};
    data = static_cast<const char*>(mapped);
    bytes = found.st_size;
    const size_t plan = word(PLAN), words = word(PLAN_WORDS), text = word(TEXT);
    const size_t text_size = word(TEXT_SIZE);
    if (std::memcmp(data, MAGIC, 8) != 0 || word(VERSION) != VERSION_AND_ORDER ||
        word(SIZE) != bytes || word(CHECKSUM) != checksum_of(data, bytes / 8) || plan % 8 != 0 ||
        plan > bytes || words > (bytes - plan) / 8 || text > bytes || text_size == 0 ||
        text_size > bytes - text || data[text + text_size - 1] != 0) {
        munmap(const_cast<char*>(data), bytes);  // the destructor does not run
        throw Error{JETZOO_BAD_FILE};
    }
}

File::~File() { munmap(const_cast<char*>(data), bytes); }

uint64_t File::word(size_t index) const {
    uint64_t value;
    std::memcpy(&value, data + 8 * index, 8);
    return value;
}

const char* File::description() const { return data + word(TEXT); }

Reader::Reader(const File& file)
    : file(file), next(file.word(PLAN) / 8), end(next + file.word(PLAN_WORDS)) {}

uint64_t Reader::word() {
    if (next == end) throw Error{JETZOO_BAD_FILE};
    return file.word(next++);
}

const char* Reader::bytes(size_t size, size_t alignment) {
    const uint64_t offset = word(), found = word();
    if (found != size || offset > file.size() || found > file.size() - offset ||
        offset % alignment != 0)
        throw Error{JETZOO_BAD_FILE};
    return file.begin() + offset;
}

int32_t Reader::integer(int64_t lowest, int64_t highest) {
    const int64_t value = word();
    if (value < lowest || value > highest) throw Error{JETZOO_BAD_FILE};
    return value;
}

float Reader::number() {
    const uint64_t bits = word();
    double value;
    std::memcpy(&value, &bits, 8);
    return value;
}

const char* Reader::text() {
    const int32_t size = integer(1, 1 << 20);
    const char* found = bytes(size, 1);
    if (found[size - 1] != 0) throw Error{JETZOO_BAD_FILE};
    return found;
}
