// Batches of jets, group by group; what Python calls.
#include <atomic>
#include <mutex>
#include <vector>

#include "part_kernels.h"
#include "threads.h"

EXPORT_SIZE(DenseWeights)
EXPORT_SIZE(FeedForwardWeights)
EXPORT_SIZE(ParticleBlockWeights)
EXPORT_SIZE(ClassBlockWeights)
EXPORT_SIZE(NetworkWeights)
EXPORT_SIZE(JetArguments)

// The batch in groups of about `tokens` particles and at most W jets.
struct Groups {
    std::vector<int32_t> positions;  // of the particles of all jets, one jet after the other
    std::vector<int64_t> starts;     // of each jet in `positions`
    std::vector<int64_t> first;      // jet of each group, and the number of jets

    Groups(const JetArguments& a, int threads) : starts{0}, first{0} {
        const auto* bytes = static_cast<const uint8_t*>(a.mask);
        const auto* floats = static_cast<const float*>(a.mask);
        for (int64_t b = 0; b < a.batch; b++) {
            for (int64_t i = 0; i < a.length; i++) {
                const int64_t at = b * a.length + i;
                if (a.mask_of_floats ? floats[at] != 0 : bytes[at] != 0) positions.push_back(i);
            }
            starts.push_back(positions.size());
        }
        const int64_t tokens =
            std::max<int64_t>(1, std::min<int64_t>(a.tokens, starts.back() / std::max(threads, 1)));
        for (int64_t b = 1; b < a.batch; b++)
            if (starts[b + 1] - starts[first.back()] > tokens || b - first.back() == W)
                first.push_back(b);
        first.push_back(a.batch);
    }

    void jets(int64_t group, std::vector<Jet>& out) const {
        out.clear();
        for (int64_t b = first[group]; b < first[group + 1]; b++)
            out.push_back(
                {b, 0, int32_t(starts[b + 1] - starts[b]), positions.data() + starts[b], 0, true});
    }
};

static thread_local Workspace workspace;

// Class tokens of a batch of jets.
EXPORT int32_t part_forward(const NetworkWeights* net, const JetArguments* arguments, int threads) {
    return status_of([&] {
        const Groups groups(*arguments, threads);
        const int64_t count = groups.first.size() - 1;
        std::atomic<int64_t> next{0};
        std::mutex mutex;
        std::fill(arguments->seconds, arguments->seconds + STAGES, 0.0);
        on_threads(std::min<int64_t>(threads, count), [&] {
            Workspace& work = workspace;  // of the thread that runs this
            std::fill(work.seconds, work.seconds + STAGES, 0.0);
            try {
                std::vector<Jet> jets;
                for (int64_t g; (g = next++) < count;) {
                    groups.jets(g, jets);
                    ISA::part_group(*net, *arguments, {jets.data(), jets.data() + jets.size()}, work);
                }
            } catch (...) {
                next = count;  // the other threads stop, too
                work.trim();
                throw;
            }
            work.trim();
            std::lock_guard<std::mutex> lock(mutex);
            for (int s = 0; s < STAGES; s++) arguments->seconds[s] += work.seconds[s];
        });
    });
}
