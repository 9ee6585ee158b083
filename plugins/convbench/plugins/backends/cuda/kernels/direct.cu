// Convolutions of few channels: LeNet's first layer, every network's first, depthwise ones.
//
// Too little is summed for a matrix product to pay, so the image goes to shared memory once and every thread keeps
// a strip of PIXELS outputs of FILTERS filters in registers:
//
//        columns of the target ->                            one thread:  PIXELS = 4
//      +----+----+----+----+----+----+----+                 +-----------+
//   r  | t0 | t1 | t2 | t3 | t4 | t5 | t6 |   one row       | x x x x   |  filter f
//   o  +----+----+----+----+----+----+----+                 | x x x x   |  filter f+1
//   w  | t7 | t8 | ...          strips = 7|                 |   ...     |  FILTERS of them
//   s  +----+----+----+----+----+----+----+                 +-----------+
//   |  one block: `strips` strips in each of `rows` rows, of one image and FILTERS filters
//
// For each row of taps a thread reads a window of its strip once, as float4, and uses each pixel of it for up to
// TAPS * FILTERS multiply-adds:
//
//      window  [ p0 p1 p2 p3 p4 p5 p6 p7 ]      sums[f][0] += p0*w0 + p1*w1 + p2*w2 + p3*w3 + p4*w4
//      taps      w0 w1 w2 w3 w4                 sums[f][1] += p1*w0 + p2*w1 + ...
//
// Weights lie beside the image in shared memory, filters innermost; all lanes read the same, which is one access.
//
// Set by the program that compiles this: ELEMENT, FILTERS, TAPS (columns of the kernel), STEP and GAP (stride and
// dilation along columns), ROWS_OF_TAPS (of weight_gradient).
#include "primitives.cuh"
#include "correlation.cuh"

#define MOST_THREADS 128  // of a block; small images have smaller ones
#define PIXELS 4
#define SPAN ((PIXELS - 1) * STEP + (TAPS - 1) * GAP + 1)  // of the window under a strip
#define QUADS ((SPAN + 3) / 4)

struct Tile {  // of one block, in strips, and its shared memory, in floats
    int strips, rows;
    int patch_rows, pitch;  // of one channel of the source; the pitch is a multiple of 4
    int depth;              // channels of the source that are there at once
    int tiles_x, tiles_y;   // blocks of an image
    int images;             // that a block of weight_gradient goes through
};

// Copy the pixels under a block's tile, as floats, zeros around them.
__device__ __forceinline__ void load_patch(float *patch, const ELEMENT *channel, int channels, const Correlation &c,
                                           const Tile &tile, int top, int left) {
    const int area = tile.patch_rows * tile.pitch;
    for (int i = threadIdx.x; i < channels * area; i += blockDim.x) {
        const int k = i / area, place = i - k * area, row = place / tile.pitch;
        const int y = top + row, x = left + place - row * tile.pitch;
        patch[i] = c.inside(y, x) ? widened(channel[(k * c.source_height + y) * c.source_width + x]) : 0.0f;
    }
}

__device__ __forceinline__ void load_window(float (&window)[4 * QUADS], const float *row) {
#pragma unroll
    for (int i = 0; i < QUADS; ++i) {
        const float4 quad = reinterpret_cast<const float4 *>(row)[i];
        window[4 * i] = quad.x, window[4 * i + 1] = quad.y, window[4 * i + 2] = quad.z, window[4 * i + 3] = quad.w;
    }
}

#ifndef ROWS_OF_TAPS
// grid: (tiles of an image * images, groups * blocks of filters)
KERNEL __launch_bounds__(MOST_THREADS) direct(const Correlation c, const Tile tile, const ELEMENT *__restrict__ source,
                                         const ELEMENT *__restrict__ weight, const ELEMENT *__restrict__ bias,
                                         ELEMENT *__restrict__ target) {
    SHARED_MEMORY(memory);
    float *const patch = reinterpret_cast<float *>(memory);                 // [depth][patch_rows][pitch]
    float *const kernels = patch + tile.depth * tile.patch_rows * tile.pitch;  // [depth][taps_h][TAPS][FILTERS]

    const int blocks = (c.target_channels + FILTERS - 1) / FILTERS;
    const int group = blockIdx.y / blocks, filter = (blockIdx.y - group * blocks) * FILTERS;
    const int tiles = tile.tiles_x * tile.tiles_y, image = blockIdx.x / tiles, place = blockIdx.x - image * tiles;
    const int tile_y = place / tile.tiles_x, tile_x = place - tile_y * tile.tiles_x;
    const int row = threadIdx.x / tile.strips, strip = threadIdx.x - row * tile.strips;
    const int y = tile_y * tile.rows + row, x = (tile_x * tile.strips + strip) * PIXELS;
    const int top = tile_y * tile.rows * c.step_h + c.origin_h;
    const int left = tile_x * tile.strips * PIXELS * STEP + c.origin_w;

    float sums[FILTERS][PIXELS] = {};
    for (int k = 0; k < c.source_channels; k += tile.depth) {
        const int depth = min(tile.depth, c.source_channels - k);
        const long long channel = c.source_image(image, group) + (long long)k * c.source_height * c.source_width;
        if (k) __syncthreads();  // the last channels are done with
        load_patch(patch, source + channel, depth, c, tile, top, left);
        for (int i = threadIdx.x; i < depth * c.taps_h * TAPS * FILTERS; i += blockDim.x) {
            const int f = i % FILTERS, s = i / FILTERS % TAPS, t = i / (FILTERS * TAPS) % c.taps_h;
            const int of = k + i / (FILTERS * TAPS) / c.taps_h;
            const int at = c.first + group * c.of_group + (filter + f) * c.of_target + of * c.of_source +
                           t * c.of_row + s * c.of_column;
            kernels[i] = filter + f < c.target_channels ? widened(weight[at]) : 0.0f;
        }
        __syncthreads();
        if (row < tile.rows) {
            for (int d = 0; d < depth; ++d) {
                for (int t = 0; t < c.taps_h; ++t) {
                    float window[4 * QUADS];
                    load_window(window, patch + (d * tile.patch_rows + row * c.step_h + t * c.gap_h) * tile.pitch +
                                            strip * PIXELS * STEP);
                    const float *const taps = kernels + (d * c.taps_h + t) * TAPS * FILTERS;
#pragma unroll
                    for (int s = 0; s < TAPS; ++s)
#pragma unroll
                        for (int f = 0; f < FILTERS; ++f) {
                            const float w = taps[s * FILTERS + f];
#pragma unroll
                            for (int p = 0; p < PIXELS; ++p) sums[f][p] += window[p * STEP + s * GAP] * w;
                        }
                }
            }
        }
    }
    if (row >= tile.rows || y >= c.rows) return;
#pragma unroll
    for (int f = 0; f < FILTERS; ++f) {
        if (filter + f >= c.target_channels) break;
        const float shift = bias ? widened(bias[group * c.target_channels + filter + f]) : 0.0f;
        ELEMENT *const line = target + c.target_image(image, group) +
                              ((long long)(filter + f) * c.target_height + y * c.out_h + c.start_h) * c.target_width +
                              c.start_w;
#pragma unroll
        for (int p = 0; p < PIXELS; ++p)
            if (x + p < c.columns) round_to(line[(x + p) * c.out_w], activated(sums[f][p] + shift));
    }
}

#else
// The gradient of the weight: few numbers, each the sum over all positions of all images.
//
//   gradient[m, k, t, s] = sum over n, y, x of upstream[n, m, y, x] * source[n, k, y*step + t*gap + origin, ...]
//
// A block goes through `tile.images` images at one place of the tile, for one channel of the source, FILTERS
// filters and ROWS_OF_TAPS rows of taps; a thread has its strip as above, and sums of its own for all of these:
//
//      upstream  [ g0 g1 g2 g3 ]  registers      sums[f][t][s] += g0*p[s] + g1*p[s+1] + g2*p[s+2] + g3*p[s+3]
//      window    [ p0 p1 ... p7 ]  shared memory
//
// Then the block adds its threads up, in the same order whenever it runs: across the lanes of a warp by exchanging
// halves (below), across warps through shared memory. Blocks leave their sums as partial[number][block], and
// `sum_rows` (sums.cu) adds these up, again in order. The sum of the upstream gradient, which is that of the bias,
// comes along.
#define SUMS (FILTERS * ROWS_OF_TAPS * TAPS + FILTERS)  // the last are those of the bias
#define PADDED ((SUMS + 31) / 32 * 32)

// Sum PADDED numbers of each lane over the lanes: lane l ends up with the totals l, l + 32, ... of them, in front.
//
//   16 lanes apart: a lane keeps one half of its numbers and gives the other away    n     -> n / 2
//    8 lanes apart: the same with what it has now                                    n / 2 -> n / 4   ...
//
// which takes n exchanges for n numbers, where adding up each of them would take 5 n.
template <int COUNT>
__device__ __forceinline__ void sum_over_lanes(float (&numbers)[COUNT]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int base = 0; base < COUNT; base += 32)
#pragma unroll
        for (int step = 0; step < 5; ++step)
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int half = 16 >> step;
                if (i >= half) continue;
                const bool upper = lane & half;
                const float low = numbers[base + i], high = numbers[base + i + half];
                numbers[base + i] = (upper ? high : low) + shuffle_xor(upper ? low : high, half);
            }
}

// grid: (tiles of an image * chunks of images, groups * blocks of filters, channels of the source * rows of taps)
KERNEL __launch_bounds__(MOST_THREADS, 3)  // up to 168 registers; left to itself, the compiler spills to save some
    direct_weight_gradient(const Correlation c, const Tile tile, const ELEMENT *__restrict__ source,
                           const ELEMENT *__restrict__ upstream, float *__restrict__ partial) {
    SHARED_MEMORY(memory);
    float *const patch = reinterpret_cast<float *>(memory);  // [patch_rows][pitch], and [warps][PADDED] in the end

    const int blocks = (c.target_channels + FILTERS - 1) / FILTERS;
    const int group = blockIdx.y / blocks, filter = (blockIdx.y - group * blocks) * FILTERS;
    const int channel = blockIdx.z % c.source_channels, first_tap = blockIdx.z / c.source_channels * ROWS_OF_TAPS;
    const int tiles = tile.tiles_x * tile.tiles_y, chunk = blockIdx.x / tiles, place = blockIdx.x - chunk * tiles;
    const int tile_y = place / tile.tiles_x, tile_x = place - tile_y * tile.tiles_x;
    const int row = threadIdx.x / tile.strips, strip = threadIdx.x - row * tile.strips;
    const int y = tile_y * tile.rows + row, x = (tile_x * tile.strips + strip) * PIXELS;
    const int top = tile_y * tile.rows * c.step_h + c.origin_h + first_tap * c.gap_h;
    const int left = tile_x * tile.strips * PIXELS * STEP + c.origin_w;

    float sums[PADDED] = {};
    const int end = min(c.images, (chunk + 1) * tile.images);
    for (int n = chunk * tile.images; n < end; ++n) {
        __syncthreads();  // the last image is done with
        load_patch(patch, source + c.source_image(n, group) + (long long)channel * c.source_height * c.source_width, 1,
                   c, tile, top, left);
        __syncthreads();
        if (row < tile.rows && y < c.rows) {
            float incoming[FILTERS][PIXELS];
#pragma unroll
            for (int f = 0; f < FILTERS; ++f)
#pragma unroll
                for (int p = 0; p < PIXELS; ++p) {
                    const bool there = filter + f < c.target_channels && x + p < c.columns;
                    const long long at = c.target_image(n, group) +
                                         ((long long)(filter + f) * c.target_height + y) * c.target_width + x + p;
                    incoming[f][p] = there ? widened(upstream[at]) : 0.0f;
                    sums[FILTERS * ROWS_OF_TAPS * TAPS + f] += incoming[f][p];
                }
#pragma unroll
            for (int t = 0; t < ROWS_OF_TAPS; ++t) {
                float window[4 * QUADS];
                load_window(window, patch + (row * c.step_h + t * c.gap_h) * tile.pitch + strip * PIXELS * STEP);
#pragma unroll
                for (int f = 0; f < FILTERS; ++f)
#pragma unroll
                    for (int s = 0; s < TAPS; ++s)
#pragma unroll
                        for (int p = 0; p < PIXELS; ++p)
                            // What hangs over the image is zero times whatever is there, which may be no number.
                            sums[(f * ROWS_OF_TAPS + t) * TAPS + s] +=
                                x + p < c.columns ? incoming[f][p] * window[p * STEP + s * GAP] : 0.0f;
            }
        }
    }
    sum_over_lanes(sums);
    __syncthreads();  // the patch is done with
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int base = 0; base < PADDED; base += 32) patch[warp * PADDED + base + lane] = sums[base];
    __syncthreads();
    const int taps = c.taps_h * TAPS, numbers = c.source_channels * taps + 1;  // of a filter, its bias the last
    for (int i = threadIdx.x; i < SUMS; i += blockDim.x) {
        const bool of_bias = i >= FILTERS * ROWS_OF_TAPS * TAPS;
        const int f = of_bias ? i - FILTERS * ROWS_OF_TAPS * TAPS : i / (ROWS_OF_TAPS * TAPS);
        const int t = first_tap + i / TAPS % ROWS_OF_TAPS;
        if (filter + f >= c.target_channels || (of_bias ? blockIdx.z > 0 : t >= c.taps_h)) continue;
        float total = 0.0f;
        for (int w = 0; w < blockDim.x / 32; ++w) total += patch[w * PADDED + i];
        const int number = of_bias ? numbers - 1 : channel * taps + t * TAPS + i % TAPS;
        const long long of = (long long)(group * c.target_channels + filter + f) * numbers + number;
        partial[of * gridDim.x + blockIdx.x] = total;
    }
}
#endif
