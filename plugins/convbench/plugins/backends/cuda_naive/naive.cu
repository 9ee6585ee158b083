// Convolution and its gradients as the formula has them, one thread for each number that comes out.
//
//   output[n, o, i, j] = bias[o] + sum over c, u, v of
//       input[n, c, i*stride + u*dilation - pad, j*stride + v*dilation - pad] * weight[o, c, u, v]
//
// Thread number 256 * block + lane has the output of that number, counted as it lies in memory:
//
//      output   | (n,o,i,0) (n,o,i,1) (n,o,i,2) ...      (n,o,i+1,0) ...
//      thread   |     0         1         2                   W'
//
// so neighbours write neighbours, and read neighbours of the input at the same time: both are one access of the
// memory. Every product needs two numbers from memory, though, and whatever the caches do, that is what it waits
// for; `cuda` keeps sums in registers and pixels in shared memory instead.
//
// Set by the program that compiles this: ELEMENT.
#include "primitives.cuh"

#define THREADS 256

struct Geometry {
    int images, channels, height, width;  // of the input
    int filters, rows, columns;           // of the output
    int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;
};

typedef decltype(widened(ELEMENT())) Sum;  // double for double, float for everything else

__device__ __forceinline__ long long thread_number() { return (long long)blockIdx.x * THREADS + threadIdx.x; }

KERNEL conv2d(const Geometry g, const ELEMENT *input, const ELEMENT *weight, const ELEMENT *bias, ELEMENT *output) {
    const long long index = thread_number();
    if (index >= (long long)g.images * g.filters * g.rows * g.columns) return;
    const int j = index % g.columns, i = index / g.columns % g.rows;
    const int o = index / g.columns / g.rows % g.filters, n = index / g.columns / g.rows / g.filters;

    const int depth = g.channels / g.groups, first = o / (g.filters / g.groups) * depth;  // channels of its group
    Sum sum = 0;
    for (int c = 0; c < depth; ++c)
        for (int u = 0; u < g.kernel_h; ++u)
            for (int v = 0; v < g.kernel_w; ++v) {
                const int y = i * g.stride_h + u * g.dilation_h - g.pad_h;
                const int x = j * g.stride_w + v * g.dilation_w - g.pad_w;
                if (y < 0 || y >= g.height || x < 0 || x >= g.width) continue;  // the padding is zero
                sum += widened(input[(((long long)n * g.channels + first + c) * g.height + y) * g.width + x]) *
                       widened(weight[(((long long)o * depth + c) * g.kernel_h + u) * g.kernel_w + v]);
            }
    if (bias) sum += widened(bias[o]);
    round_to(output[index], sum);
}

// The chain rule sends upstream[n, o, i, j] to every pixel that output (n, o, i, j) has seen. Turned around, pixel
// (y, x) collects from the outputs that have seen it: by tap (u, v), those with i * stride = y + pad - u * dilation,
// where that divides. Nobody else writes this pixel, so no additions collide.
KERNEL conv2d_input_gradient(const Geometry g, const ELEMENT *upstream, const ELEMENT *weight, ELEMENT *gradient) {
    const long long index = thread_number();
    if (index >= (long long)g.images * g.channels * g.height * g.width) return;
    const int x = index % g.width, y = index / g.width % g.height;
    const int channel = index / g.width / g.height % g.channels, n = index / g.width / g.height / g.channels;

    const int depth = g.channels / g.groups, per_group = g.filters / g.groups;
    const int first = channel / depth * per_group, c = channel % depth;  // filters of its group
    Sum sum = 0;
    for (int o = first; o < first + per_group; ++o)
        for (int u = 0; u < g.kernel_h; ++u)
            for (int v = 0; v < g.kernel_w; ++v) {
                const int top = y + g.pad_h - u * g.dilation_h, left = x + g.pad_w - v * g.dilation_w;
                if (top < 0 || left < 0 || top % g.stride_h || left % g.stride_w) continue;
                const int i = top / g.stride_h, j = left / g.stride_w;
                if (i >= g.rows || j >= g.columns) continue;
                sum += widened(upstream[(((long long)n * g.filters + o) * g.rows + i) * g.columns + j]) *
                       widened(weight[(((long long)o * depth + c) * g.kernel_h + u) * g.kernel_w + v]);
            }
    round_to(gradient[index], sum);
}

// One thread for each weight: a walk over all positions of all images. LeNet's first layer has 150 weights, so 150
// threads are all that work, on a machine with room for a hundred thousand: what to improve first.
KERNEL conv2d_weight_gradient(const Geometry g, const ELEMENT *upstream, const ELEMENT *input, ELEMENT *gradient) {
    const long long index = thread_number();
    const int depth = g.channels / g.groups;
    if (index >= (long long)g.filters * depth * g.kernel_h * g.kernel_w) return;
    const int v = index % g.kernel_w, u = index / g.kernel_w % g.kernel_h;
    const int c = index / g.kernel_w / g.kernel_h % depth, o = index / g.kernel_w / g.kernel_h / depth;

    const int channel = o / (g.filters / g.groups) * depth + c;
    Sum sum = 0;
    for (int n = 0; n < g.images; ++n)
        for (int i = 0; i < g.rows; ++i)
            for (int j = 0; j < g.columns; ++j) {
                const int y = i * g.stride_h + u * g.dilation_h - g.pad_h;
                const int x = j * g.stride_w + v * g.dilation_w - g.pad_w;
                if (y < 0 || y >= g.height || x < 0 || x >= g.width) continue;
                sum += widened(upstream[(((long long)n * g.filters + o) * g.rows + i) * g.columns + j]) *
                       widened(input[(((long long)n * g.channels + channel) * g.height + y) * g.width + x]);
            }
    round_to(gradient[index], sum);
}

KERNEL conv2d_bias_gradient(const Geometry g, const ELEMENT *upstream, ELEMENT *gradient) {
    const long long o = thread_number();
    if (o >= g.filters) return;
    Sum sum = 0;
    for (int n = 0; n < g.images; ++n)
        for (int i = 0; i < g.rows * g.columns; ++i)
            sum += widened(upstream[((long long)n * g.filters + o) * g.rows * g.columns + i]);
    round_to(gradient[o], sum);
}
