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
#include "sizes.hpp"

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

const InstructionSet *const best = chosen();
std::atomic<const InstructionSet *> instructions{best};

typedef void (*OpenMP)(void (*function)(void *), void *data, unsigned threads, unsigned flags);
std::atomic<OpenMP> openmp{nullptr};

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
    if (const OpenMP run_on = openmp.load(std::memory_order_acquire)) return run_on(Round::enter, &round, wanted, 0);
    pthread_t others[64];
    int started = 0;
    while (started < wanted - 1 && started < 64 && !pthread_create(&others[started], nullptr, Round::enter_thread, &round))
        started++;
    round.work();
    for (int i = 0; i < started; i++) pthread_join(others[i], nullptr);
}

void *Team::reserve(size_t bytes) {
    if (bytes > most) return status = TOO_MUCH, nullptr;
    if (only_counts) return nullptr;
    void *memory = block(bytes);
    if (!memory) status = NO_MEMORY;
    return memory;
}

void *Team::block(size_t bytes) {
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

constexpr int MOST_THREADS = 1024;

// A thread more is worth waking for some microseconds of work, no less.
int worth_waking(int threads, double work, double of_one) {
    const double most = work / of_one + 1;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    return most < threads ? static_cast<int>(most) : threads > 1 ? threads : 1;
}

double products(const Geometry &g) {
    return double(g.batch) * g.filters * g.rows * g.columns * (g.channels / g.groups) * g.kernel_y * g.kernel_x;
}

int worth_waking(int threads, const Pooling &p) {
    return worth_waking(threads, double(p.planes) * p.height * p.width, 1 << 14);
}

// All that is the same for float32 and float64: a call is checked, what needs no kernel is answered here, and the
// rest is the kernels', none of whose sizes is zero but the number of channels.
template <class T>
struct Calls {
    const Kernels<T> &kernels;

    static Team team(const Geometry &g, int threads) {
        const int woken = worth_waking(threads, products(g), 1 << 18);
        return Team{woken, admissible(numbers(g), woken, sizeof(T))};
    }
    static Team team(const Network &n, int threads) {
        double of_all = 0, sizes = 0;
        for (int64_t i = 0; i < n.layers; i++) of_all += products(n.layer[i].conv), sizes += numbers(n.layer[i].conv);
        const int woken = worth_waking(threads, of_all, 1 << 18);
        return Team{woken, admissible(sizes, woken, sizeof(T))};
    }
    static int cleared(T *to, int64_t count) { return std::memset(to, 0, count * sizeof(T)), DONE; }

    // What the three functions below would return without memory being short, and without touching a tensor.
    int served(const Geometry &asked, int threads) const {
        if (!right(plain(asked))) return WRONG;
        const Geometry g = plain(asked);
        if (!g.batch || !g.filters || !g.rows || !g.columns || !g.height || !g.width) return DONE;
        const auto fit = [&](auto call) {
            Team counting = team(g, threads);
            counting.only_counts = true;
            call(counting);
            return counting.status == DONE;
        };
        return fit([&](Team &t) { kernels.forward(g, nullptr, nullptr, nullptr, nullptr, t); }) &&
                       fit([&](Team &t) { kernels.input_gradient(g, nullptr, nullptr, nullptr, t); }) &&
                       fit([&](Team &t) { kernels.weight_gradient(g, nullptr, nullptr, nullptr, nullptr, t); })
                   ? DONE
                   : TOO_MUCH;
    }

    int forward(const Geometry &asked, const T *input, const T *weight, const T *bias, T *output, int threads) const {
        const Geometry g = plain(asked);
        if (!right(g)) return WRONG;
        if (!g.batch || !g.filters || !g.rows || !g.columns) return DONE;
        const bool sums = g.channels && g.height && g.width;
        if (!output || (sums && !(input && weight))) return WRONG;
        Team t = team(g, threads);
        return kernels.forward(g, input, weight, bias, output, t) ? DONE : t.status;
    }

    int input_gradient(const Geometry &asked, const T *upstream, const T *weight, T *gradient, int threads) const {
        const Geometry g = plain(asked);
        if (!right(g)) return WRONG;
        if (!g.batch || !g.channels || !g.height || !g.width) return DONE;
        if (!gradient) return WRONG;
        if (!g.filters || !g.rows || !g.columns) return cleared(gradient, g.batch * g.channels * g.height * g.width);
        if (!upstream || !weight) return WRONG;
        Team t = team(g, threads);
        return kernels.input_gradient(g, upstream, weight, gradient, t) ? DONE : t.status;
    }

    int weight_gradient(const Geometry &asked, const T *upstream, const T *input, T *gradient, T *of_bias,
                        int threads) const {
        const Geometry g = plain(asked);
        if (!right(g)) return WRONG;
        if (!g.filters) return DONE;
        const int64_t weights = g.filters * (g.channels / g.groups) * g.kernel_y * g.kernel_x;
        if (!of_bias || (weights && !gradient)) return WRONG;
        if (!g.batch || !g.rows || !g.columns)
            return cleared(of_bias, g.filters), weights ? cleared(gradient, weights) : DONE;
        if (!upstream || (g.channels && g.height && g.width && !input)) return WRONG;
        Team t = team(g, threads);
        return kernels.weight_gradient(g, upstream, input, gradient, of_bias, t) ? DONE : t.status;
    }

    int max_pool(const Pooling &asked, const T *input, T *output, uint16_t *choices, int threads) const {
        const Pooling p = plain(asked);
        if (!right(p)) return WRONG;
        if (!p.planes || !p.rows || !p.columns) return DONE;
        if (!right_maximum(p) || !input || !output || !choices) return WRONG;
        Team t{worth_waking(threads, p)};
        return kernels.max_pool(p, input, output, choices, t) ? DONE : t.status;
    }

    int max_pool_gradient(const Pooling &asked, const T *upstream, const uint16_t *choices, T *gradient,
                          int threads) const {
        const Pooling p = plain(asked);
        if (!right(p)) return WRONG;
        if (!p.planes || !p.height || !p.width) return DONE;
        if (!gradient) return WRONG;
        if (!p.rows || !p.columns) return cleared(gradient, p.planes * p.height * p.width);
        if (!right_maximum(p) || !upstream || !choices) return WRONG;
        Team t{worth_waking(threads, p)};
        return kernels.max_pool_gradient(p, upstream, choices, gradient, t) ? DONE : t.status;
    }

    int avg_pool(const Pooling &asked, const T *input, T *output, T *activated, int threads) const {
        const Pooling p = plain(asked);
        if (!right_mean(p)) return WRONG;
        if (!p.planes || !p.rows || !p.columns) return DONE;
        if (!output || !input || !p.height || !p.width) return WRONG;
        Team t{worth_waking(threads, p)};
        return kernels.avg_pool(p, input, output, activated, t) ? DONE : t.status;
    }

    int avg_pool_gradient(const Pooling &asked, const T *upstream, const T *activated, T *gradient,
                          int threads) const {
        const Pooling p = plain(asked);
        if (!right_mean(p)) return WRONG;
        if (!p.planes || !p.height || !p.width) return DONE;
        if (!gradient) return WRONG;
        if (!p.rows || !p.columns) return cleared(gradient, p.planes * p.height * p.width);
        if (!upstream || (p.activation && !activated)) return WRONG;
        Team t{worth_waking(threads, p)};
        return kernels.avg_pool_gradient(p, upstream, activated, gradient, t) ? DONE : t.status;
    }

    // How many numbers a network keeps for its gradient; 0 where its layers are to be computed one by one.
    int64_t network_kept(const Network &n) const { return right(n) ? kernels.network_kept(n) : 0; }

    // `tensors`: input, output, what is kept, and weight and bias of each layer.
    int network(const Network &n, T *const *tensors, int threads) const {
        const T *input = tensors[0], *const *parameters = tensors + 3;
        T *output = tensors[1], *kept = tensors[2];
        if (!network_kept(n) || !input || !output || !kept) return WRONG;
        for (int64_t i = 0; i < n.layers; i++)
            if (!parameters[2 * i]) return WRONG;
        Team t = team(n, threads);
        return kernels.network(n, input, parameters, output, kept, t) ? DONE : t.status;
    }

    // `tensors`: upstream, input, what was kept, the gradient of the input, weight and bias of each layer, and their
    // gradients.
    int network_gradients(const Network &n, T *const *tensors, int threads) const {
        const T *upstream = tensors[0], *input = tensors[1], *kept = tensors[2], *const *parameters = tensors + 4;
        if (!network_kept(n) || !upstream || !input || !kept) return WRONG;
        T *const *gradients = tensors + 4 + 2 * n.layers;
        for (int64_t i = 0; i < n.layers; i++)
            if (!parameters[2 * i] || !gradients[2 * i] || !gradients[2 * i + 1]) return WRONG;
        Team t = team(n, threads);
        return kernels.network_gradients(n, upstream, input, parameters, kept, tensors[3], gradients, t) ? DONE : t.status;
    }

    int activation_gradient(const Elements &e, const T *upstream, const T *outputs, T *gradient, int threads) const {
        if (!right(e)) return WRONG;
        if (!e.count) return DONE;
        if (!upstream || !outputs || !gradient) return WRONG;
        Team t{worth_waking(threads, double(e.count), 1 << 14)};
        return kernels.activation_gradient(e, upstream, outputs, gradient, t) ? DONE : t.status;
    }
};

}  // namespace

// Every function returns a Status.
#define EXPORT extern "C" __attribute__((visibility("default")))
#define CALLS(TYPE, set) (Calls<TYPE>{instructions.load(std::memory_order_relaxed)->set})
#define FUNCTIONS(T, TYPE, set)                                                                                        \
    EXPORT int conv2d_served_##T(const Geometry *g, int threads) { return CALLS(TYPE, set).served(*g, threads); }      \
    EXPORT int conv2d_##T(const Geometry *g, const TYPE *input, const TYPE *weight, const TYPE *bias, TYPE *output,    \
                          int threads) {                                                                               \
        return CALLS(TYPE, set).forward(*g, input, weight, bias, output, threads);                                     \
    }                                                                                                                  \
    EXPORT int conv2d_input_gradient_##T(const Geometry *g, const TYPE *upstream, const TYPE *weight, TYPE *gradient,  \
                                         int threads) {                                                                \
        return CALLS(TYPE, set).input_gradient(*g, upstream, weight, gradient, threads);                               \
    }                                                                                                                  \
    EXPORT int conv2d_weight_gradient_##T(const Geometry *g, const TYPE *upstream, const TYPE *input, TYPE *gradient,  \
                                          TYPE *of_bias, int threads) {                                                \
        return CALLS(TYPE, set).weight_gradient(*g, upstream, input, gradient, of_bias, threads);                      \
    }                                                                                                                  \
    EXPORT int max_pool2d_##T(const Pooling *p, const TYPE *input, TYPE *output, uint16_t *choices, int threads) {     \
        return CALLS(TYPE, set).max_pool(*p, input, output, choices, threads);                                         \
    }                                                                                                                  \
    EXPORT int max_pool2d_gradient_##T(const Pooling *p, const TYPE *upstream, const uint16_t *choices,                \
                                       TYPE *gradient, int threads) {                                                  \
        return CALLS(TYPE, set).max_pool_gradient(*p, upstream, choices, gradient, threads);                           \
    }                                                                                                                  \
    EXPORT int avg_pool2d_##T(const Pooling *p, const TYPE *input, TYPE *output, TYPE *activated, int threads) {       \
        return CALLS(TYPE, set).avg_pool(*p, input, output, activated, threads);                                       \
    }                                                                                                                  \
    EXPORT int avg_pool2d_gradient_##T(const Pooling *p, const TYPE *upstream, const TYPE *activated, TYPE *gradient,  \
                                       int threads) {                                                                  \
        return CALLS(TYPE, set).avg_pool_gradient(*p, upstream, activated, gradient, threads);                         \
    }                                                                                                                  \
    EXPORT int64_t network_kept_##T(const Network *n) { return CALLS(TYPE, set).network_kept(*n); }                    \
    EXPORT int network_##T(const Network *n, TYPE *const *tensors, int threads) {                                      \
        return CALLS(TYPE, set).network(*n, tensors, threads);                                                         \
    }                                                                                                                  \
    EXPORT int network_gradients_##T(const Network *n, TYPE *const *tensors, int threads) {                            \
        return CALLS(TYPE, set).network_gradients(*n, tensors, threads);                                               \
    }                                                                                                                  \
    EXPORT int activation_gradient_##T(const Elements *e, const TYPE *upstream, const TYPE *outputs, TYPE *gradient,   \
                                       int threads) {                                                                  \
        return CALLS(TYPE, set).activation_gradient(*e, upstream, outputs, gradient, threads);                         \
    }

FUNCTIONS(float32, float, single)
FUNCTIONS(float64, double, twice)

// Run on this OpenMP's threads from now on.
EXPORT void use_openmp(void *gomp_parallel) { openmp = reinterpret_cast<OpenMP>(gomp_parallel); }

// In a process that was forked: OpenMP's threads are not there any more, and waiting for them would last for ever; who
// held the block is not there either.
EXPORT void forked() {
    openmp = nullptr;
    kept.taken.clear();
}

EXPORT const char *instruction_set() { return instructions.load()->name; }

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
