// The weights file: mapped into memory, checked as a whole, then read piece by piece.
//
// It is made of words of 8 bytes in the byte order of this machine; jetzoo.cpp.weights writes it:
//   magic, version and byte order, size, checksum, offset and number of the words of the plan,
//   offset and size of the description; then arrays, each aligned to 64 bytes, and the plan.
// The plan lists whole numbers, fractions (as double), and offset and size of arrays, in the order
// in which they are read.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

// Thrown and caught within the library.
struct Error {
    int32_t status;
};

class File {
    const char* data = nullptr;
    size_t bytes = 0;

  public:
    explicit File(const char* path);
    File(const File&) = delete;
    ~File();

    const char* begin() const { return data; }
    size_t size() const { return bytes; }
    uint64_t word(size_t index) const;
    const char* description() const;
};

// Reads the plan of a file from its beginning on. What does not fit is an Error.
class Reader {
    const File& file;
    size_t next, end;  // words

    uint64_t word();
    const char* bytes(size_t size, size_t alignment);

  public:
    explicit Reader(const File& file);

    int32_t integer(int64_t lowest, int64_t highest);
    float number();
    const char* text();
    // An array of `count` numbers, of which the file says the size, too.
    template <class Number>
    const Number* array(int64_t count) {
        return reinterpret_cast<const Number*>(bytes(size_t(count) * sizeof(Number), 8));
    }
    bool at_end() const { return next == end; }
};
