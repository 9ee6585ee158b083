// One description for a convolution and for the gradient of its input, which is one or several convolutions again.
//
//   target[n, m, y * out_h + start_h, x * out_w + start_w] =
//       sum over k, t, s of  source[n, k, y * step_h + t * gap_h + origin_h, x * step_w + s * gap_w + origin_w]
//                          * weight[first + m * of_target + k * of_source + t * of_row + s * of_column]
//
// for y < rows and x < columns; what lies outside of the source is zero. Of a group, m and k count from its first
// channels. `kernel_arguments.py` fills it in.
#pragma once

// Division by a number that is known beforehand: one multiplication, for dividends from 0 to 2^31 - 1.
// Granlund and Montgomery, "Division by invariant integers using multiplication" (1994).
struct Divisor {
    int divisor;
    unsigned multiplier;
    int shift;

    __device__ __forceinline__ int quotient(int n) const {
        return divisor == 1 ? n : (int)(__umulhi((unsigned)n, multiplier) >> shift);
    }

    __device__ __forceinline__ int split(int n, int &remainder) const {
        int q = quotient(n);
        remainder = n - q * divisor;
        return q;
    }
};

struct Correlation {
    int images, groups;
    int source_channels, source_height, source_width;  // channels of a group
    int target_channels, target_height, target_width;
    int rows, columns;                                 // of the target that are computed
    int out_h, out_w, start_h, start_w;                // where they lie in it
    int taps_h, taps_w;
    int step_h, step_w, gap_h, gap_w, origin_h, origin_w;
    int first, of_target, of_source, of_row, of_column, of_group;  // places in the weight
    Divisor by_taps, by_taps_w, by_pixels, by_columns;  // by taps_h * taps_w, taps_w, rows * columns, columns

    __device__ __forceinline__ long long source_image(int n, int group) const {
        return ((long long)n * groups + group) * source_channels * source_height * source_width;
    }

    __device__ __forceinline__ long long target_image(int n, int group) const {
        return ((long long)n * groups + group) * target_channels * target_height * target_width;
    }

    __device__ __forceinline__ bool inside(int y, int x) const {
        return (unsigned)y < (unsigned)source_height && (unsigned)x < (unsigned)source_width;
    }
};

// What comes after the sum and its bias; chosen when the kernel is compiled.
#define NO_ACTIVATION 0
#define RELU 1
#define SIGMOID 2
#define TANH 3
#ifndef ACTIVATION
#define ACTIVATION NO_ACTIVATION
#endif

__device__ __forceinline__ float activated(float x) {
#if ACTIVATION == RELU
    return x < 0 ? 0.0f : x;  // a NaN stays one
#elif ACTIVATION == SIGMOID
    return 1.0f / (1.0f + expf(-x));
#elif ACTIVATION == TANH
    return tanhf(x);
#else
    return x;
#endif
}
