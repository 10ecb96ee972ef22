#include "threads.h"

#include <dlfcn.h>
#include <pthread.h>

#include <condition_variable>
#include <exception>
#include <list>
#include <mutex>
#include <thread>

namespace {

struct Job {
    const std::function<void()>* body;
    int64_t wanted;  // helpers that may still join
    int64_t running = 0;
    std::exception_ptr error = nullptr;
};

// Any number of threads may hand in jobs at once. A job never waits for a helper: the thread that
// hands it in does all of the work that no helper has taken by then.
class Pool {
    std::mutex mutex;
    std::condition_variable arrived, left;
    std::list<Job*> jobs;
    int64_t workers = 0, idle = 0;

    void work() {
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            idle++;
            arrived.wait(lock, [&] { return !jobs.empty(); });
            idle--;
            Job* job = jobs.front();
            if (--job->wanted == 0) jobs.pop_front();
            job->running++;
            lock.unlock();
            std::exception_ptr error;
            try {
                (*job->body)();
            } catch (...) {
                error = std::current_exception();
            }
            lock.lock();
            if (error && !job->error) job->error = error;
            if (--job->running == 0) left.notify_all();
        }
    }

    // Starts the threads that are missing. Where the system gives no more, there are fewer.
    void grow(int64_t helpers) {
        int64_t wanted = 0;
        for (const Job* job : jobs) wanted += job->wanted;
        const int64_t most = std::max<int64_t>(helpers, std::thread::hardware_concurrency());
        try {
            for (int64_t missing = wanted - idle; missing > 0 && workers < most; missing--) {
                std::thread([this] { work(); }).detach();
                workers++;
            }
        } catch (const std::exception&) {}
    }

  public:
    void run(int64_t helpers, const std::function<void()>& body) {
        Job job{&body, helpers};
        {
            std::lock_guard<std::mutex> lock(mutex);
            jobs.push_back(&job);
            grow(helpers);
        }
        if (helpers == 1)
            arrived.notify_one();
        else
            arrived.notify_all();
        std::exception_ptr error;
        try {
            body();
        } catch (...) {
            error = std::current_exception();
        }
        std::unique_lock<std::mutex> lock(mutex);
        jobs.remove(&job);
        left.wait(lock, [&] { return job.running == 0; });
        if (!error) error = job.error;
        lock.unlock();
        if (error) std::rethrow_exception(error);
    }
};

// Never destroyed: its threads wait for work until the process ends.
std::atomic<Pool*> pool{nullptr};

// The threads do not exist in a forked process, which starts anew with a pool of its own.
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] { pool = nullptr; });

Pool& current_pool() {
    Pool* now = pool;
    if (!now) {
        auto fresh = std::make_unique<Pool>();
        if (pool.compare_exchange_strong(now, fresh.get())) now = fresh.release();
    }
    return *now;
}

}  // namespace

void on_threads(int64_t threads, const std::function<void()>& body) {
    if (threads > 1)
        current_pool().run(threads - 1, body);
    else
        body();
}

namespace {

typedef void (*Team)(void (*)(void*), void*, unsigned, unsigned);

// Of the OpenMP that PyTorch has loaded: GCC's, or LLVM's, which knows it, too.
Team find_team() {
#if defined(OWN_THREADS)
    return nullptr;
#else
    return reinterpret_cast<Team>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#endif
}

}  // namespace

void on_team(int64_t threads, const std::function<void()>& body) {
    static const Team team = find_team();
    if (threads < 2 || !team) {
        on_threads(threads, body);
        return;
    }
    struct Shared {
        const std::function<void()>& body;
        std::mutex mutex;
        std::exception_ptr error;
    } shared{body, {}, nullptr};
    const auto member = [](void* data) {
        auto& shared = *static_cast<Shared*>(data);
        try {
            shared.body();
        } catch (...) {
            std::lock_guard<std::mutex> lock(shared.mutex);
            if (!shared.error) shared.error = std::current_exception();
        }
    };
    team(member, &shared, threads, 0);
    if (shared.error) std::rethrow_exception(shared.error);
}
