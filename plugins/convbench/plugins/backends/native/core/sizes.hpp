// What is checked of a call before a kernel sees it. The kernels multiply sizes by each other, and divide by them, as
// they are: what is not refused here is refused nowhere.
#pragma once

#include <initializer_list>

#include "core.hpp"

constexpr int64_t FAR = int64_t(1) << 31;   // pixels along an axis: the most
constexpr int64_t MANY = int64_t(1) << 44;  // numbers in a tensor, or in a copy of one: the most

inline bool within(std::initializer_list<int64_t> numbers, int64_t least, int64_t most) {
    for (const int64_t number : numbers)
        if (number < least || number > most) return false;
    return true;
}

// Whether the product of sizes, a zero taken for a one, is at most MANY.
inline bool fits(std::initializer_list<int64_t> sizes) {
    int64_t product = 1;
    for (const int64_t size : sizes)
        if (__builtin_mul_overflow(product, size > 0 ? size : 1, &product) || product > MANY) return false;
    return true;
}

// Along one axis: whether the sizes are ones that a call can have, so that no sum or product of two overflows.
inline bool right_axis(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, int64_t outputs) {
    return within({size, pad, outputs}, 0, FAR) && within({kernel, stride, dilation}, 1, FAR) &&
           (kernel - 1) * dilation < FAR && outputs * stride <= 4 * FAR;
}

inline bool right(const Geometry &g) {
    if (!right_axis(g.height, g.kernel_y, g.stride_y, g.pad_y, g.dilation_y, g.rows) ||
        !right_axis(g.width, g.kernel_x, g.stride_x, g.pad_x, g.dilation_x, g.columns) ||
        !within({g.batch, g.channels, g.filters}, 0, MANY) || !within({g.groups}, 1, MANY) ||
        !within({g.activation}, 0, 3) || g.channels % g.groups || g.filters % g.groups)
        return false;
    const int64_t high = (g.kernel_y - 1) * g.dilation_y + 64, wide = (g.kernel_x - 1) * g.dilation_x + 64;
    const int64_t planes = g.channels > g.filters ? g.channels : g.filters;
    return fits({g.batch, g.channels, g.height, g.width}) && fits({g.batch, g.filters, g.rows, g.columns}) &&
           fits({g.filters, g.channels / g.groups, g.kernel_y, g.kernel_x}) &&
           // the copies: of an image, of an upstream gradient, and what is kept of each class of pixels
           fits({planes, (g.rows + 1) * g.stride_y + high, (g.columns + 1) * g.stride_x + wide}) &&
           fits({planes, g.height + high, g.width + wide}) && fits({g.stride_y, g.stride_x, g.kernel_y, 256});
}

inline bool right(const Pooling &p) {
    return right_axis(p.height, p.kernel_y, p.stride_y, p.pad_y, p.dilation_y, p.rows) &&
           right_axis(p.width, p.kernel_x, p.stride_x, p.pad_x, p.dilation_x, p.columns) &&
           within({p.planes}, 0, MANY) && within({p.count_padding}, 0, 1) && within({p.activation}, 0, 3) &&
           fits({p.planes, p.height, p.width}) && fits({p.planes, p.rows, p.columns}) && fits({p.kernel_y, p.kernel_x});
}

// Whether every window sees a pixel: only then is the place of its largest one a place in the image.
inline bool sees_pixels(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, int64_t outputs) {
    const bool begins_inside = (outputs - 1) * stride - pad < size, ends_inside = (kernel - 1) * dilation >= pad;
    return begins_inside && ends_inside && (!pad || dilation <= size);
}

inline bool right_maximum(const Pooling &p) {
    return right(p) && p.kernel_y * p.kernel_x <= 65536 &&  // places are kept as 16 bits
           sees_pixels(p.height, p.kernel_y, p.stride_y, p.pad_y, p.dilation_y, p.rows) &&
           sees_pixels(p.width, p.kernel_x, p.stride_x, p.pad_x, p.dilation_x, p.columns);
}

inline bool right_mean(const Pooling &p) { return right(p) && p.dilation_y == 1 && p.dilation_x == 1; }

// The convolution of a stage must be one, and every window of its pooling lie in what comes out.
inline bool right(const Stage &s) {
    const Geometry &g = s.conv;
    return right(g) && within({s.maximum}, 0, 1) && within({s.pool_y, s.pool_x, s.stride_y, s.stride_x, s.rows, s.columns}, 1, FAR) &&
           s.pool_y * s.pool_x <= 65536 && (s.rows - 1) * s.stride_y + s.pool_y <= g.rows &&
           (s.columns - 1) * s.stride_x + s.pool_x <= g.columns;
}

// Every layer takes what the one before it returns.
inline bool right(const Network &n) {
    if (!within({n.layers}, 1, MOST_LAYERS)) return false;
    for (int64_t i = 0; i < n.layers; i++) {
        const Geometry &g = n.layer[i].conv;
        if (!right(n.layer[i]) || !within({g.batch, g.channels, g.filters, g.height, g.width}, 1, MANY) ||
            g.stride_y != 1 || g.stride_x != 1)
            return false;
        if (!i) continue;
        const Stage &before = n.layer[i - 1];
        const bool same = g.channels == before.conv.filters && g.height == before.rows && g.width == before.columns;
        const bool flat = is_linear(n.layer[i]) && g.channels == before.conv.filters * before.rows * before.columns;
        if (g.batch != before.conv.batch || !(same || flat)) return false;
    }
    return true;
}

inline bool right(const Elements &e) { return within({e.count}, 0, MANY) && within({e.activation}, 0, 3); }

// The same call in other numbers: a stride between no two outputs and a gap between no two taps are one. The copies
// would grow with them.
template <typename Window>  // a Geometry or a Pooling
inline Window plain(Window w) {
    if (w.rows <= 1) w.stride_y = 1;
    if (w.columns <= 1) w.stride_x = 1;
    if (w.kernel_y == 1) w.dilation_y = 1;
    if (w.kernel_x == 1) w.dilation_x = 1;
    return w;
}

inline double numbers(const Geometry &g) {
    return double(g.batch) * g.channels * g.height * g.width + double(g.batch) * g.filters * g.rows * g.columns +
           double(g.filters) * (g.channels / g.groups) * g.kernel_y * g.kernel_x;
}

// Bytes that the copies of a call may take: some times what its tensors take, and a gigabyte in any case.
inline size_t admissible(double numbers, int threads, size_t size_of_number) {
    return (size_t(1) << 30) + static_cast<size_t>((16 + 2.0 * threads) * numbers * size_of_number);
}
