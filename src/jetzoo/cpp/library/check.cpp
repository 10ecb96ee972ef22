// Compares the scores of stored jets with those of PyTorch, which are stored beside them with the
// largest difference that is allowed: on one thread, then on four at once, which must give the very
// same, and after the jets have been seen once without allocating anything.
#include <atomic>
#include <cstdio>
#include <exception>
#include <new>
#include <thread>

#include "csv.hpp"

// Allocations of the library are counted where its calls of operator new come here.
static std::atomic<long> allocations{0};

static void* counted(std::size_t size, std::size_t alignment) {
    allocations++;
    void* memory = nullptr;
    if (posix_memalign(&memory, std::max(alignment, sizeof(void*)), std::max<size_t>(size, 1)))
        throw std::bad_alloc();
    return memory;
}

void* operator new(std::size_t size) { return counted(size, 0); }
void* operator new(std::size_t size, std::align_val_t to) { return counted(size, size_t(to)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

using Scores = std::vector<std::vector<float>>;

// The scores of a second time, when the workspace knows all sizes; `allocated` counts what was
// allocated then, by any thread.
static Scores score_all(const jetzoo::Network& network, const std::vector<CsvJet>& jets,
                        long& allocated) {
    jetzoo::Workspace workspace;
    Scores scores(jets.size(), std::vector<float>(network.classes().size()));
    std::vector<std::vector<const float*>> pointers;
    for (const CsvJet& jet : jets) pointers.push_back(jet.pointers());
    for (int round = 0; round < 2; round++) {
        const long before = allocations;
        for (size_t j = 0; j < jets.size(); j++)
            network.predict(workspace, pointers[j].data(), jets[j].size, scores[j].data());
        allocated = allocations - before;
    }
    return scores;
}

int main(int count, char** arguments) {
    if (count != 4) return 2;
    try {
        const jetzoo::Network network(arguments[1]);
        const std::vector<CsvJet> jets = read_jets(arguments[2], network);
        long allocated = 0;
        const Scores found = score_all(network, jets, allocated);
        if (allocated) throw std::runtime_error("jets of known sizes have allocated memory");

        std::ifstream file(arguments[3]);
        std::string line;
        std::getline(file, line);
        const float allowed = number_in(line, arguments[3]);
        float largest = 0;
        size_t row = 0;
        for (; std::getline(file, line) && row < found.size(); row++) {
            const std::vector<std::string> cells = split(line);
            if (cells.size() != found[row].size()) throw std::runtime_error("other classes");
            for (size_t c = 0; c < cells.size(); c++) {
                const float expected = number_in(cells[c], arguments[3]), score = found[row][c];
                if (std::isnan(expected) != std::isnan(score))
                    throw std::runtime_error("jet " + std::to_string(row) + " is NaN in one only");
                if (!std::isnan(score)) largest = std::max(largest, std::fabs(score - expected));
            }
        }
        if (row != found.size() || row == 0) throw std::runtime_error("another number of jets");
        std::printf("%s: %zu jets, largest difference %.2g of %.2g\n",
                    network.instruction_set().c_str(), row, largest, allowed);
        if (!(largest <= allowed)) return 1;

        std::vector<std::thread> threads;
        std::atomic<int> different{0};
        for (int i = 0; i < 4; i++)
            threads.emplace_back([&] {
                try {
                    long unused = 0;
                    const Scores own = score_all(network, jets, unused);
                    for (size_t j = 0; j < own.size(); j++)
                        for (size_t c = 0; c < own[j].size(); c++)
                            different += own[j][c] != found[j][c] && !std::isnan(found[j][c]);
                } catch (const std::exception&) {
                    different++;
                }
            });
        for (std::thread& thread : threads) thread.join();
        if (different) throw std::runtime_error("threads give other scores");
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        const bool lacking = std::string(error.what()).find("JETZOO_ISA") != std::string::npos;
        return lacking ? 77 : 1;  // 77: skipped
    }
}
