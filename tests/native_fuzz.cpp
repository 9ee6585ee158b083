// Calls of the native core with sizes and options drawn at random, degenerate and huge ones among them, for the
// sanitizers to watch (tests/plugins/backends/test_native_fuzz.py compiles and runs it). Every tensor is a block of the heap of its
// exact size, so that a step beyond it is seen.
//
//     native_fuzz SEED CALLS      calls one after the other: tensors that are small are there, others are not
//     native_fuzz SEED CALLS N    the same small calls in N threads at once, each of which also starts threads;
//                                 every answer must be that of one thread
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <pthread.h>
#include <random>
#include <vector>

#include "core.hpp"

#define FUNCTIONS(T, TYPE)                                                                                             \
    extern "C" int conv2d_served_##T(const Geometry *, int);                                                           \
    extern "C" int conv2d_##T(const Geometry *, const TYPE *, const TYPE *, const TYPE *, TYPE *, int);                \
    extern "C" int conv2d_input_gradient_##T(const Geometry *, const TYPE *, const TYPE *, TYPE *, int);               \
    extern "C" int conv2d_weight_gradient_##T(const Geometry *, const TYPE *, const TYPE *, TYPE *, TYPE *, int);      \
    extern "C" int max_pool2d_##T(const Pooling *, const TYPE *, TYPE *, uint16_t *, int);                             \
    extern "C" int max_pool2d_gradient_##T(const Pooling *, const TYPE *, const uint16_t *, TYPE *, int);              \
    extern "C" int avg_pool2d_##T(const Pooling *, const TYPE *, TYPE *, TYPE *, int);                                 \
    extern "C" int avg_pool2d_gradient_##T(const Pooling *, const TYPE *, const TYPE *, TYPE *, int);                  \
    extern "C" int activation_gradient_##T(const Elements *, const TYPE *, const TYPE *, TYPE *, int);                 \
    extern "C" int64_t network_kept_##T(const Network *);                                                              \
    extern "C" int network_##T(const Network *, TYPE *const *, int);                                                   \
    extern "C" int network_gradients_##T(const Network *, TYPE *const *, int);                                         \
    struct Of##T {                                                                                                     \
        typedef TYPE Number;                                                                                           \
        static constexpr auto served = conv2d_served_##T;                                                              \
        static constexpr auto forward = conv2d_##T;                                                                    \
        static constexpr auto input_gradient = conv2d_input_gradient_##T;                                              \
        static constexpr auto weight_gradient = conv2d_weight_gradient_##T;                                            \
        static constexpr auto max_pool = max_pool2d_##T;                                                               \
        static constexpr auto max_pool_gradient = max_pool2d_gradient_##T;                                             \
        static constexpr auto avg_pool = avg_pool2d_##T;                                                               \
        static constexpr auto avg_pool_gradient = avg_pool2d_gradient_##T;                                             \
        static constexpr auto activation_gradient = activation_gradient_##T;                                           \
        static constexpr auto network_kept = network_kept_##T;                                                         \
        static constexpr auto network = network_##T;                                                                   \
        static constexpr auto network_gradients = network_gradients_##T;                                               \
    };
FUNCTIONS(float32, float)
FUNCTIONS(float64, double)

namespace {

typedef std::mt19937_64 Random;
constexpr __int128 SMALL = 20000;  // numbers of a tensor that is there

int64_t one_of(Random &random, std::initializer_list<int64_t> values) { return values.begin()[random() % values.size()]; }

int64_t between(Random &random, int64_t least, int64_t most) { return least + random() % (most - least + 1); }

// Mostly what a call would have, and now and then what none has, or one in a million.
int64_t drawn(Random &random, bool wild, int64_t least, int64_t most) {
    if (wild && random() % 6 == 0)
        return one_of(random, {0, -1, 1, 1000, 100000, 1000003, (1LL << 31) - 1, 1LL << 31, 1LL << 32, 1LL << 40, 1LL << 62,
                               INT64_MAX, INT64_MIN, INT64_MAX / 3, 65536, 65537});
    return between(random, least, most);
}

int64_t times(int64_t a, int64_t b) {
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? a : product;
}

// Outputs along an axis, as Python reckons them; in 128 bits, for it has no others.
int64_t outputs(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t over, int64_t dilation) {
    const __int128 room = __int128(size) + pad + pad + over - __int128(dilation) * (__int128(kernel) - 1) - 1;
    if (stride < 1 || room < 0) return 0;
    const __int128 count = room / stride + 1;
    return count > INT64_MAX ? INT64_MAX : static_cast<int64_t>(count);
}

// How many numbers a tensor has; -1 where it is too large to be there, or one of its sizes is negative.
int64_t numbers(std::initializer_list<int64_t> sizes) {
    __int128 product = 1;
    for (const int64_t size : sizes)
        if (size < 0) return -1;
        else if (size == 0) product = 0;
    for (const int64_t size : sizes) {
        product *= size;
        if (product > SMALL) return -1;
    }
    return static_cast<int64_t>(product);
}

template <class T>
struct Tensor {  // of exactly so many numbers
    std::vector<T> numbers;

    Tensor(Random &random, int64_t count) : numbers(count < 0 ? 0 : count) {
        for (T &number : numbers) number = static_cast<T>(static_cast<int64_t>(random() % 2001) - 1000) / 100;
        numbers.shrink_to_fit();
    }
    T *data() { return numbers.empty() ? nullptr : numbers.data(); }
    bool operator!=(const Tensor &other) const {
        return numbers.size() && std::memcmp(numbers.data(), other.numbers.data(), numbers.size() * sizeof(T));
    }
};

[[noreturn]] void fail(const char *what, const int64_t *sizes, int count) {
    std::fprintf(stderr, "%s:", what);
    for (int i = 0; i < count; i++) std::fprintf(stderr, " %lld", static_cast<long long>(sizes[i]));
    std::fprintf(stderr, "\n");
    std::abort();
}

Geometry geometry(Random &random, bool wild) {
    Geometry g;
    g.groups = drawn(random, wild, 1, 3);
    const int64_t groups = g.groups > 0 && g.groups < 1000 ? g.groups : 1;
    g.batch = drawn(random, wild, 0, random() % 4 ? 3 : 40);  // few, or an image for every lane of a vector
    g.channels = times(drawn(random, wild, 0, 5), groups);
    g.filters = times(drawn(random, wild, 0, 9), groups);
    g.height = drawn(random, wild, 0, 20), g.width = drawn(random, wild, 0, 40);
    g.kernel_y = drawn(random, wild, 1, 7), g.kernel_x = drawn(random, wild, 1, 7);
    g.stride_y = drawn(random, wild, 1, 4), g.stride_x = drawn(random, wild, 1, 4);
    g.pad_y = drawn(random, wild, 0, 4), g.pad_x = drawn(random, wild, 0, 4);
    g.dilation_y = drawn(random, wild, 1, 3), g.dilation_x = drawn(random, wild, 1, 3);
    g.rows = outputs(g.height, g.kernel_y, g.stride_y, g.pad_y, 0, g.dilation_y);
    g.columns = outputs(g.width, g.kernel_x, g.stride_x, g.pad_x, 0, g.dilation_x);
    if (wild && random() % 20 == 0) g.rows = drawn(random, true, 0, 9);  // others than that
    g.activation = drawn(random, wild && random() % 8 == 0, 0, 3);
    return g;
}

template <class Of>
void convolutions(Random &random, bool wild, bool compare) {
    typedef typename Of::Number T;
    const Geometry g = geometry(random, wild);
    const int64_t *const sizes = &g.batch;
    const int served = Of::served(&g, 3);
    const int64_t of_group = g.groups > 0 ? g.channels / g.groups : -1;
    const int64_t images = numbers({g.batch, g.channels, g.height, g.width});
    const int64_t kernels = numbers({g.filters, of_group, g.kernel_y, g.kernel_x});
    const int64_t results = numbers({g.batch, g.filters, g.rows, g.columns});
    const bool there = images >= 0 && kernels >= 0 && results >= 0 && g.filters >= 0 && g.filters < SMALL;
    Tensor<T> input(random, images), weight(random, kernels), bias(random, there ? g.filters : 0);
    Tensor<T> output(random, results), upstream(random, results), of_input(random, images), of_weight(random, kernels);
    Tensor<T> of_bias(random, there ? g.filters : 0);
    if (served != DONE || !there) {  // must be refused as well, or have nothing to do: no tensor is there to be touched
        if (served == DONE && results > 0) return;
        T *const none = nullptr;
        if (served == TOO_MUCH) return;
        const int answer = Of::forward(&g, there ? input.data() : none, none, none, none, 3);
        if (served == WRONG && answer != WRONG) fail("a wrong convolution was computed", sizes, 17);
        return;
    }
    const int threads = compare ? 4 : static_cast<int>(between(random, 1, 3));
    const auto run = [&](int with, Tensor<T> &to, Tensor<T> &to_input, Tensor<T> &to_weight, Tensor<T> &to_bias) {
        return Of::forward(&g, input.data(), weight.data(), bias.data(), to.data(), with) +
               Of::input_gradient(&g, upstream.data(), weight.data(), to_input.data(), with) +
               Of::weight_gradient(&g, upstream.data(), input.data(), to_weight.data(), to_bias.data(), with);
    };
    if (run(threads, output, of_input, of_weight, of_bias)) fail("a convolution was not computed", sizes, 17);
    if (!compare) return;
    Tensor<T> alone(output), of_input_alone(of_input);
    run(1, alone, of_input_alone, of_weight, of_bias);
    if (alone != output || of_input_alone != of_input) fail("threads change a convolution", sizes, 17);
}

template <class Of>
void poolings(Random &random, bool wild, bool compare) {
    typedef typename Of::Number T;
    Pooling p;
    p.planes = drawn(random, wild, 0, 6);
    p.height = drawn(random, wild, 0, 20), p.width = drawn(random, wild, 0, 40);
    p.kernel_y = drawn(random, wild, 1, 5), p.kernel_x = drawn(random, wild, 1, 5);
    p.stride_y = drawn(random, wild, 1, 4), p.stride_x = drawn(random, wild, 1, 4);
    p.pad_y = drawn(random, wild, 0, 2), p.pad_x = drawn(random, wild, 0, 2);
    const bool means = random() % 2;
    p.dilation_y = means ? 1 : drawn(random, wild, 1, 3), p.dilation_x = means ? 1 : drawn(random, wild, 1, 3);
    const int64_t over_y = between(random, 0, 3), over_x = between(random, 0, 3);  // of ceil_mode
    p.rows = outputs(p.height, p.kernel_y, p.stride_y, p.pad_y, over_y, p.dilation_y);
    p.columns = outputs(p.width, p.kernel_x, p.stride_x, p.pad_x, over_x, p.dilation_x);
    p.count_padding = random() % 2, p.divisor = random() % 3 ? 0 : static_cast<int64_t>(random());
    p.activation = drawn(random, wild && random() % 8 == 0, 0, 3);
    const int64_t images = numbers({p.planes, p.height, p.width}), results = numbers({p.planes, p.rows, p.columns});
    if (p.pad_x > 100000 || p.pad_y > 100000) p.columns = p.columns > 1 ? -1 : p.columns;  // takes for ever, or is wrong
    const int threads = compare ? 4 : static_cast<int>(between(random, 1, 3));
    Tensor<T> input(random, images), output(random, results), upstream(random, results), gradient(random, images);
    Tensor<T> activated(random, images);
    Tensor<uint16_t> choices(random, results);
    if (images < 0 || results < 0 || p.columns < 0) {  // nothing of it may be touched
        if (results != 0) {
            Of::max_pool(&p, nullptr, nullptr, nullptr, threads);
            Of::avg_pool(&p, nullptr, nullptr, nullptr, threads);
        }
        if (images != 0) {
            Of::max_pool_gradient(&p, nullptr, nullptr, nullptr, threads);
            Of::avg_pool_gradient(&p, nullptr, nullptr, nullptr, threads);
        }
        return;
    }
    if (means) {
        if (!Of::avg_pool(&p, input.data(), output.data(), activated.data(), threads))
            Of::avg_pool_gradient(&p, upstream.data(), activated.data(), gradient.data(), threads);
        return;
    }
    if (Of::max_pool(&p, input.data(), output.data(), choices.data(), threads)) return;
    if (Of::max_pool_gradient(&p, upstream.data(), choices.data(), gradient.data(), threads))
        fail("a maximum has no gradient", &p.planes, 16);
    if (!compare) return;
    Tensor<T> alone(output);
    Of::max_pool(&p, input.data(), alone.data(), choices.data(), 1);
    if (alone != output) fail("threads change a maximum", &p.planes, 16);
}

// A convolution and a pooling of what comes out of `before`, or of anything.
Stage stage(Random &random, bool wild, const Stage *before) {
    Stage s;
    s.conv = geometry(random, wild);
    if (random() % 8) s.conv.stride_y = s.conv.stride_x = 1;
    Geometry &g = s.conv;
    if (before) {
        g.batch = before->conv.batch, g.channels = before->conv.filters, g.groups = 1;
        g.height = before->rows, g.width = before->columns;
    }
    g.rows = outputs(g.height, g.kernel_y, g.stride_y, g.pad_y, 0, g.dilation_y);
    g.columns = outputs(g.width, g.kernel_x, g.stride_x, g.pad_x, 0, g.dilation_x);
    s.maximum = random() % 2;
    s.pool_y = drawn(random, wild, 1, 3), s.pool_x = drawn(random, wild, 1, 3);
    s.stride_y = drawn(random, wild, 1, s.pool_y > 0 && s.pool_y < 4 ? s.pool_y : 3);
    s.stride_x = drawn(random, wild, 1, s.pool_x > 0 && s.pool_x < 4 ? s.pool_x : 3);
    s.rows = outputs(g.rows, s.pool_y, s.stride_y, 0, 0, 1), s.columns = outputs(g.columns, s.pool_x, s.stride_x, 0, 0, 1);
    return s;
}

Stage linear(Random &random, bool wild, const Stage *before) {
    const int64_t batch = before ? before->conv.batch : drawn(random, wild, 0, 40);
    const int64_t channels = before ? times(before->conv.filters, times(before->rows, before->columns))
                                    : drawn(random, wild, 1, 50);
    const int64_t filters = drawn(random, wild, 1, 30), activation = drawn(random, wild && random() % 8 == 0, 0, 3);
    return {{batch, channels, 1, 1, filters, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, activation}, 0, 1, 1, 1, 1, 1, 1};
}

template <class Of>
void networks(Random &random, bool wild, bool compare) {
    typedef typename Of::Number T;
    Network n;
    n.layers = between(random, 1, 4);
    const int64_t stages = between(random, 0, n.layers);
    for (int64_t i = 0; i < n.layers; i++) {
        const Stage *const before = i ? &n.layer[i - 1] : nullptr;
        n.layer[i] = i < stages ? stage(random, wild, before) : linear(random, wild, before);
    }
    if (wild && random() % 20 == 0) n.layers = drawn(random, true, 0, 20);
    const Geometry &g = n.layer[0].conv;
    const int64_t kept = Of::network_kept(&n), images = numbers({g.batch, g.channels, g.height, g.width});
    if (!kept) {
        T *const none[4 + 4 * MOST_LAYERS] = {};
        if (Of::network(&n, none, 3) != WRONG || Of::network_gradients(&n, none, 3) != WRONG)
            fail("a wrong network was computed", &n.layers, 25);
        return;
    }
    const Stage &last = n.layer[n.layers - 1];
    const int64_t results = numbers({g.batch, last.conv.filters, last.rows, last.columns});
    if (images < 0 || results < 0 || kept > 100 * SMALL) return;
    Tensor<T> input(random, images), output(random, results), held(random, kept), upstream(random, results);
    Tensor<T> of_input(random, images);
    std::vector<Tensor<T>> parameters, gradients;
    for (int64_t i = 0; i < n.layers; i++) {
        const Geometry &c = n.layer[i].conv;
        const int64_t kernels = numbers({c.filters, c.channels / c.groups, c.kernel_y, c.kernel_x});
        if (kernels < 0) return;
        for (const int64_t count : {kernels, c.filters}) {
            parameters.emplace_back(random, count);
            gradients.emplace_back(random, count);
        }
    }
    const bool wanted = random() % 3, biased = random() % 2;
    const auto run = [&](int with, Tensor<T> &to, Tensor<T> &to_input, std::vector<Tensor<T>> &to_parameters) {
        std::vector<T *> forth{input.data(), to.data(), held.data()};
        std::vector<T *> back{upstream.data(), input.data(), held.data(), wanted ? to_input.data() : nullptr};
        for (size_t i = 0; i < parameters.size(); i++) {
            T *const each = i % 2 && !biased ? nullptr : parameters[i].data();
            forth.push_back(each), back.push_back(each);
        }
        for (auto &each : to_parameters) back.push_back(each.data());
        return Of::network(&n, forth.data(), with) + Of::network_gradients(&n, back.data(), with);
    };
    if (run(compare ? 4 : static_cast<int>(between(random, 1, 3)), output, of_input, gradients))
        fail("a network was not computed", &n.layers, 25);
    if (!compare) return;
    Tensor<T> alone(output), of_input_alone(of_input);
    std::vector<Tensor<T>> others(gradients);
    run(1, alone, of_input_alone, others);
    if (alone != output || of_input_alone != of_input) fail("threads change a network", &n.layers, 25);
}

template <class Of>
void slopes(Random &random, bool wild) {
    const Elements e{drawn(random, wild, 0, 500), drawn(random, wild, 0, 3)};
    const int64_t count = numbers({e.count});
    Tensor<typename Of::Number> upstream(random, count), outputs(random, count), gradient(random, count);
    Of::activation_gradient(&e, upstream.data(), outputs.data(), gradient.data(), 2);
}

template <class Of>
void any(Random &random, bool wild, bool compare) {
    switch (random() % 6) {
    case 0: case 1: return poolings<Of>(random, wild, compare);
    case 2: return slopes<Of>(random, wild);
    case 3: return networks<Of>(random, wild, compare);
    default: return convolutions<Of>(random, wild, compare);
    }
}

struct Caller {
    uint64_t seed;
    long calls;
    bool wild, compare;

    static void *run(void *caller) {
        const Caller &c = *static_cast<Caller *>(caller);
        for (long i = 0; i < c.calls; i++) {
            Random random(c.seed + i);  // of each call: one that fails is repeated by its seed
            if (random() % 2) any<Offloat32>(random, c.wild && random() % 2, c.compare);
            else any<Offloat64>(random, c.wild && random() % 2, c.compare);
        }
        return nullptr;
    }
};

}  // namespace

int main(int count, char **words) {
    const uint64_t seed = std::strtoull(words[1], nullptr, 10);
    const long calls = std::strtol(words[2], nullptr, 10);
    const int threads = count > 3 ? std::atoi(words[3]) : 1;
    std::vector<Caller> callers;
    std::vector<pthread_t> started(threads);
    for (int i = 0; i < threads; i++) callers.push_back({seed + uint64_t(i) * calls, calls, threads == 1, threads > 1});
    for (int i = 0; i < threads; i++)
        if (pthread_create(&started[i], nullptr, Caller::run, &callers[i])) return 2;
    for (int i = 0; i < threads; i++) pthread_join(started[i], nullptr);
    std::printf("%ld calls\n", calls * threads);
}
