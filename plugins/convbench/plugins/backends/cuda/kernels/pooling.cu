// Pooling: one thread for each output forward, and one for each input pixel backward, which gathers from all windows
// that have it: nobody adds to what another thread writes, so the sums have one order.
//
//      input  . . . . . .        a window of 3, a stride of 2: pixel x lies in windows 0 and 1
//             [0   ]             its places there are 2 (of window 0) and 0 (of window 1)
//                 x
//                 [1   ]
//
// Set by the program that compiles this: ELEMENT; with FIXED the numbers of the window too, so that its loops are
// unrolled and divisions by the stride are multiplications.
#include "primitives.cuh"

#define THREADS 256  // and at least 4 blocks at once: up to 64 registers, so that nothing is spilled to save some

struct Window {
    int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

struct Pooling {
    long long planes;  // images times channels
    int height, width, rows, columns;
    Window window;
    int count_padding, divisor;  // of a mean; a divisor of 0 is the number of pixels
};

#ifdef FIXED
__device__ __forceinline__ Window window_of(const Pooling &) { return {FIXED}; }
#else
__device__ __forceinline__ Window window_of(const Pooling &p) { return p.window; }
#endif

typedef decltype(widened(ELEMENT())) Sum;  // double for double, float for everything else

// The thread's place among `planes` planes of rows x columns; false for those behind the last.
__device__ __forceinline__ bool position(long long planes, int rows, int columns, long long &plane, int &i, int &j) {
    const long long index = (long long)blockIdx.x * THREADS + threadIdx.x;
    const int area = rows * columns;
    plane = index / area;
    const int place = (int)(index - plane * area);
    i = place / columns, j = place - i * columns;
    return plane < planes;
}

// The largest, the first of equals, a NaN above all; `choices` has its place in the window.
KERNEL __launch_bounds__(THREADS, 4) max_pool2d(const Pooling p, const ELEMENT *__restrict__ input,
                                             ELEMENT *__restrict__ output, unsigned short *__restrict__ choices) {
    const Window w = window_of(p);
    long long plane;
    int i, j;
    if (!position(p.planes, p.rows, p.columns, plane, i, j)) return;
    const ELEMENT *const image = input + plane * p.height * p.width;
    ELEMENT largest = {};
    int choice = -1;
    for (int u = 0; u < w.kernel_h; ++u)
        for (int v = 0; v < w.kernel_w; ++v) {
            const int y = i * w.stride_h - w.pad_h + u * w.dilation_h, x = j * w.stride_w - w.pad_w + v * w.dilation_w;
            if (y < 0 || y >= p.height || x < 0 || x >= p.width) continue;
            const ELEMENT value = image[y * p.width + x];
            const Sum number = widened(value);
            if (choice < 0 || number > widened(largest) || number != number) largest = value, choice = u * w.kernel_w + v;
        }
    const long long place = (plane * p.rows + i) * p.columns + j;
    output[place] = largest;
    choices[place] = (unsigned short)choice;
}

KERNEL __launch_bounds__(THREADS, 4) max_pool2d_gradient(const Pooling p, const ELEMENT *__restrict__ upstream,
                                                      const unsigned short *__restrict__ choices,
                                                      ELEMENT *__restrict__ gradient) {
    const Window w = window_of(p);
    long long plane;
    int y, x;
    if (!position(p.planes, p.height, p.width, plane, y, x)) return;
    Sum sum = 0;
    for (int u = 0; u < w.kernel_h; ++u)
        for (int v = 0; v < w.kernel_w; ++v) {
            const int top = y + w.pad_h - u * w.dilation_h, left = x + w.pad_w - v * w.dilation_w;
            const int i = top / w.stride_h, j = left / w.stride_w;
            if (top < 0 || left < 0 || i * w.stride_h != top || j * w.stride_w != left || i >= p.rows || j >= p.columns)
                continue;
            const long long place = (plane * p.rows + i) * p.columns + j;
            if (choices[place] == u * w.kernel_w + v) sum += widened(upstream[place]);
        }
    round_to(gradient[(plane * p.height + y) * p.width + x], sum);
}

// How many pixels the mean at (i, j) is over: those in the image, or in its padding too, but never what hangs over.
__device__ __forceinline__ int pixels_of(const Pooling &p, const Window &w, int i, int j) {
    if (p.divisor) return p.divisor;
    const int top = i * w.stride_h - w.pad_h, left = j * w.stride_w - w.pad_w;
    const int pad_h = p.count_padding ? w.pad_h : 0, pad_w = p.count_padding ? w.pad_w : 0;
    return (min(top + w.kernel_h, p.height + pad_h) - max(top, -pad_h)) *
           (min(left + w.kernel_w, p.width + pad_w) - max(left, -pad_w));
}

KERNEL __launch_bounds__(THREADS, 4) avg_pool2d(const Pooling p, const ELEMENT *__restrict__ input,
                                             ELEMENT *__restrict__ output) {
    const Window w = window_of(p);
    long long plane;
    int i, j;
    if (!position(p.planes, p.rows, p.columns, plane, i, j)) return;
    const ELEMENT *const image = input + plane * p.height * p.width;
    Sum sum = 0;
    for (int u = 0; u < w.kernel_h; ++u)
        for (int v = 0; v < w.kernel_w; ++v) {
            const int y = i * w.stride_h - w.pad_h + u, x = j * w.stride_w - w.pad_w + v;
            if (y >= 0 && y < p.height && x >= 0 && x < p.width) sum += widened(image[y * p.width + x]);
        }
    round_to(output[(plane * p.rows + i) * p.columns + j], sum / pixels_of(p, w, i, j));
}

KERNEL __launch_bounds__(THREADS, 4) avg_pool2d_gradient(const Pooling p, const ELEMENT *__restrict__ upstream,
                                                      ELEMENT *__restrict__ gradient) {
    const Window w = window_of(p);
    long long plane;
    int y, x;
    if (!position(p.planes, p.height, p.width, plane, y, x)) return;
    Sum sum = 0;
    for (int u = 0; u < w.kernel_h; ++u)
        for (int v = 0; v < w.kernel_w; ++v) {
            const int top = y + w.pad_h - u, left = x + w.pad_w - v;
            const int i = top / w.stride_h, j = left / w.stride_w;
            if (top < 0 || left < 0 || i * w.stride_h != top || j * w.stride_w != left || i >= p.rows || j >= p.columns)
                continue;
            sum += widened(upstream[(plane * p.rows + i) * p.columns + j]) / pixels_of(p, w, i, j);
        }
    round_to(gradient[(plane * p.height + y) * p.width + x], sum);
}
