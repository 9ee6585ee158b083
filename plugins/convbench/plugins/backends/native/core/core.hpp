// What the parts of the library share: the geometry of a call, its threads, and the table of kernels that every
// instruction set fills for itself.
#pragma once

#include <cstddef>
#include <cstdint>

// All in elements; (y, x) is (vertical, horizontal). Padding below and to the right is what the output's size implies.
// Python passes it as an array of int64, in this order.
struct Geometry {
    int64_t batch, channels, height, width;   // of the input
    int64_t filters, kernel_y, kernel_x;      // filters: channels of the output
    int64_t stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x, groups;
    int64_t rows, columns;                    // of the output
    int64_t activation;                       // 0 none, 1 relu, 2 sigmoid, 3 tanh
};

struct Pooling {
    int64_t planes, height, width;            // batch times channels
    int64_t kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x;
    int64_t rows, columns;
    int64_t count_padding, divisor;           // of a mean; a divisor of 0 means the window's own size
    int64_t activation;                       // of the input of a mean, of the output of a maximum
};

// A convolution, its activation, and a pooling without padding of what comes out. A linear layer, too: of one pixel.
struct Stage {
    Geometry conv;
    int64_t maximum, pool_y, pool_x, stride_y, stride_x;  // a mean where it is 0
    int64_t rows, columns;                                // of the output
};

// Of one pixel, and nothing around it: a product of a matrix and a vector.
inline bool is_linear(const Stage &s) {
    const Geometry &g = s.conv;
    return g.height == 1 && g.width == 1 && g.kernel_y == 1 && g.kernel_x == 1 && g.rows == 1 && g.columns == 1 &&
           !g.pad_y && !g.pad_x && g.groups == 1 && !s.maximum && s.pool_y == 1 && s.pool_x == 1;
}

constexpr int64_t MOST_LAYERS = 16;

// Layers one after the other, each of what the one before it returns, flattened for a linear one.
struct Network {
    int64_t layers;
    Stage layer[MOST_LAYERS];  // as many as there are
};

struct Elements {
    int64_t count, activation;
};

// A task is a number below `tasks`; which worker takes it is left to chance, what it computes is not.
typedef void (*Task)(void *context, std::ptrdiff_t task, int worker);

// What a function returns. Nothing is written but in a call that is DONE.
enum Status : int {
    DONE,
    NO_MEMORY,  // for the copies that it makes
    WRONG,      // sizes that no call of its kind has, or a tensor without memory
    TOO_MUCH,   // the copies would take far more memory than the tensors
};

struct Team {
    int threads;
    size_t most = SIZE_MAX / 2;  // bytes that may be reserved
    bool only_counts = false;    // nothing is to be computed: whether the bytes may be reserved is asked
    Status status = DONE;
    bool keeps = false;
    void *own = nullptr;

    void run(std::ptrdiff_t tasks, Task task, void *context) const;
    // Once; aligned to a cache line, gone with the team. Null, and the status says why, where there is no memory.
    void *reserve(size_t bytes);
    ~Team();

  private:
    void *block(size_t bytes);
};

// False where the team has no memory for them. Sizes were checked before (native.cpp): none is zero, no product overflows.
template <class T>
struct Kernels {
    bool (*forward)(const Geometry &, const T *input, const T *weight, const T *bias, T *output, Team &);
    bool (*input_gradient)(const Geometry &, const T *upstream, const T *weight, T *gradient, Team &);
    bool (*weight_gradient)(const Geometry &, const T *upstream, const T *input, T *gradient, T *of_bias, Team &);
    bool (*max_pool)(const Pooling &, const T *input, T *output, uint16_t *choices, Team &);
    bool (*max_pool_gradient)(const Pooling &, const T *upstream, const uint16_t *choices, T *gradient, Team &);
    bool (*avg_pool)(const Pooling &, const T *input, T *output, T *activated, Team &);
    bool (*avg_pool_gradient)(const Pooling &, const T *upstream, const T *activated, T *gradient, Team &);
    int64_t (*network_kept)(const Network &);  // numbers for the gradient; 0 where layers are better one by one
    // weight and bias of each layer, one after the other; a bias may be null
    bool (*network)(const Network &, const T *input, const T *const *parameters, T *output, T *kept, Team &);
    bool (*network_gradients)(const Network &, const T *upstream, const T *input, const T *const *parameters,
                              const T *kept, T *gradient, T *const *gradients, Team &);
    bool (*activation_gradient)(const Elements &, const T *upstream, const T *outputs, T *gradient, Team &);
};

struct InstructionSet {
    const char *name;
    Kernels<float> single;
    Kernels<double> twice;
};
