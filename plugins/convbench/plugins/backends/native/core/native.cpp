// The library's C interface, which Python calls through ctypes; nothing of torch or Python is needed to build it.
//
// Which instruction set runs is found out on the machine it runs on. Threads are torch's: Python hands over the
// GOMP_parallel of the OpenMP that torch has loaded, so that both share one pool, as large and as pinned as torch's
// is, and never wait for cores that the other keeps busy. Without it, a call starts threads of its own.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <pthread.h>

#include "core.hpp"

extern const InstructionSet baseline;
#if defined(WITH_AVX)
extern const InstructionSet avx2, avx512;
#endif

namespace {

const InstructionSet *chosen() {
#if defined(WITH_AVX)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
        return &avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2;
#endif
    return &baseline;
}

const InstructionSet *const best = chosen(), *instructions = best;

typedef void (*OpenMP)(void (*function)(void *), void *data, unsigned threads, unsigned flags);
OpenMP openmp = nullptr;

// Tasks are taken from a counter: a thread that the system holds up takes fewer.
struct Round {
    Task task;
    void *context;
    std::ptrdiff_t tasks;
    std::atomic<std::ptrdiff_t> next;
    std::atomic<int> workers;

    void work() {
        const int worker = workers.fetch_add(1);
        for (std::ptrdiff_t task_ = next.fetch_add(1); task_ < tasks; task_ = next.fetch_add(1))
            task(context, task_, worker);
    }
    static void enter(void *round) { static_cast<Round *>(round)->work(); }
    static void *enter_thread(void *round) { return enter(round), nullptr; }
};

// One block of memory is kept from call to call, for a fresh one costs a page fault every 4 KB. A second caller at the
// same time, and whoever needs very much, gets one of its own.
struct Block {
    std::atomic_flag taken = ATOMIC_FLAG_INIT;
    void *memory = nullptr;
    size_t size = 0;
} kept;

constexpr size_t MOST_KEPT = size_t(1) << 28;

void *allocated(size_t bytes) {
    void *memory = nullptr;
    return posix_memalign(&memory, 64, bytes) ? nullptr : memory;
}

}  // namespace

void Team::run(std::ptrdiff_t tasks, Task task, void *context) const {
    Round round{task, context, tasks, {0}, {0}};
    const int wanted = tasks < threads ? static_cast<int>(tasks) : threads;
    if (wanted <= 1) return round.work();
    if (openmp) return openmp(Round::enter, &round, wanted, 0);
    pthread_t others[64];
    int started = 0;
    while (started < wanted - 1 && started < 64 && !pthread_create(&others[started], nullptr, Round::enter_thread, &round))
        started++;
    round.work();
    for (int i = 0; i < started; i++) pthread_join(others[i], nullptr);
}

void *Team::reserve(size_t bytes) {
    if (bytes <= MOST_KEPT && !kept.taken.test_and_set(std::memory_order_acquire)) {
        keeps = true;
        if (kept.size < bytes) {
            std::free(kept.memory);
            kept.memory = allocated(bytes);
            kept.size = kept.memory ? bytes : 0;
        }
        return kept.memory;
    }
    return own = allocated(bytes);
}

Team::~Team() {
    if (keeps) kept.taken.clear(std::memory_order_release);
    std::free(own);
}

namespace {

// A thread more is worth waking for some microseconds of work, no less.
int worth_waking(int threads, int64_t work, int64_t of_one) {
    const int64_t most = work / of_one + 1;
    return most < threads ? static_cast<int>(most) : threads;
}

int worth_waking(int threads, const Geometry *g) {
    const int64_t taps = g->channels / g->groups * g->kernel_y * g->kernel_x;
    return worth_waking(threads, g->batch * g->filters * g->rows * g->columns * taps, 1 << 18);
}

int worth_waking(int threads, const Pooling *p) {
    return worth_waking(threads, p->planes * p->height * p->width, 1 << 14);
}

}  // namespace

// Every function returns 0, or 1 where there is no memory for its copies.
#define EXPORT extern "C" __attribute__((visibility("default")))
#define FUNCTIONS(T, TYPE, set)                                                                                        \
    EXPORT int conv2d_##T(const Geometry *g, const TYPE *input, const TYPE *weight, const TYPE *bias, TYPE *output,    \
                          int threads) {                                                                               \
        Team team{worth_waking(threads, g)};                                                                           \
        return !instructions->set.forward(*g, input, weight, bias, output, team);                                      \
    }                                                                                                                  \
    EXPORT int conv2d_input_gradient_##T(const Geometry *g, const TYPE *upstream, const TYPE *weight, TYPE *gradient,  \
                                         int threads) {                                                                \
        Team team{worth_waking(threads, g)};                                                                           \
        return !instructions->set.input_gradient(*g, upstream, weight, gradient, team);                                \
    }                                                                                                                  \
    EXPORT int conv2d_weight_gradient_##T(const Geometry *g, const TYPE *upstream, const TYPE *input, TYPE *gradient,  \
                                          TYPE *of_bias, int threads) {                                                \
        Team team{worth_waking(threads, g)};                                                                           \
        return !instructions->set.weight_gradient(*g, upstream, input, gradient, of_bias, team);                       \
    }                                                                                                                  \
    EXPORT int max_pool2d_##T(const Pooling *p, const TYPE *input, TYPE *output, uint16_t *choices, int threads) {     \
        Team team{worth_waking(threads, p)};                                                                           \
        return !instructions->set.max_pool(*p, input, output, choices, team);                                          \
    }                                                                                                                  \
    EXPORT int max_pool2d_gradient_##T(const Pooling *p, const TYPE *upstream, const uint16_t *choices,                \
                                       TYPE *gradient, int threads) {                                                  \
        Team team{worth_waking(threads, p)};                                                                           \
        return !instructions->set.max_pool_gradient(*p, upstream, choices, gradient, team);                            \
    }                                                                                                                  \
    EXPORT int avg_pool2d_##T(const Pooling *p, const TYPE *input, TYPE *output, TYPE *activated, int threads) {       \
        Team team{worth_waking(threads, p)};                                                                           \
        return !instructions->set.avg_pool(*p, input, output, activated, team);                                        \
    }                                                                                                                  \
    EXPORT int avg_pool2d_gradient_##T(const Pooling *p, const TYPE *upstream, const TYPE *activated, TYPE *gradient,  \
                                       int threads) {                                                                  \
        Team team{worth_waking(threads, p)};                                                                           \
        return !instructions->set.avg_pool_gradient(*p, upstream, activated, gradient, team);                          \
    }                                                                                                                  \
    EXPORT int activation_gradient_##T(const Elements *e, const TYPE *upstream, const TYPE *outputs, TYPE *gradient,   \
                                       int threads) {                                                                  \
        Team team{worth_waking(threads, e->count, 1 << 14)};                                                           \
        return !instructions->set.activation_gradient(*e, upstream, outputs, gradient, team);                          \
    }

FUNCTIONS(float32, float, single)
FUNCTIONS(float64, double, twice)

// Run on this OpenMP's threads from now on.
EXPORT void use_openmp(void *gomp_parallel) { openmp = reinterpret_cast<OpenMP>(gomp_parallel); }

EXPORT const char *instruction_set() { return instructions->name; }

// Choose another one that this machine has, for tests and comparisons; 1 where there is none of that name.
EXPORT int use_instruction_set(const char *name) {
    const InstructionSet *sets[] = {&baseline,
#if defined(WITH_AVX)
                                    &avx2, &avx512,
#endif
    };
    for (const InstructionSet *set : sets) {
        if (!std::strcmp(set->name, name)) return instructions = set, 0;
        if (set == best) break;  // those behind it, the machine does not have
    }
    return 1;
}

// What it was built from: Python loads no library that does not belong to the sources beside it.
EXPORT const char *source_digest() { return SOURCE_DIGEST; }
