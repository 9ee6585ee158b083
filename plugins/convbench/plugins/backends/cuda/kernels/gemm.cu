// Convolution as a matrix product whose second matrix is never written: an implicit GEMM.
//
//                        columns: positions (n, y, x) of the target           a block:  BM x BN of the target
//                       +---------------------------------+                   a warp:   WM x WN of that
//          k =          |                                 |                   a step:   BK terms of the sums
//   (channel, t, s)     |   source[n, channel, y * step   |
//                       |     + t * gap + origin, ...]    |       WARPS_N warps
//                       |          gathered               |      +----+----+
//          k            +---------------------------------+      | w0 | w1 |  WARPS_M
//   rows: +-----------+ +---------------------------------+      +----+----+  warps
//   the   |  weight   | |            target               |      | w2 | w3 |
//   m     +-----------+ +---------------------------------+      +----+----+
//
// Every step both factors of a block go to shared memory, and the warps multiply from there, each keeping its part
// of the target in registers. Consecutive lanes gather consecutive positions, which lie side by side in the image.
//
// What multiplies is chosen when it is compiled (MATH):
//   FMA    float32 as it is: the thread's own multiply-add, 4 columns by TM rows to a thread. Tensor cores have no
//          float32.
//   TF32   float32 rounded to 10 bits of mantissa, on tensor cores: m16n8k8
//   HALF   bfloat16 or float16 on tensor cores: m16n8k16, fed by ldmatrix
// Sums are float32 in all of them.
//
// float32 is copied to shared memory asynchronously (cp.async) while the step before the last is multiplied: three
// buffers. Such copies take 4 bytes at least, and neighbours in a gathered matrix need not be neighbours in memory:
// 16-bit numbers pass through registers, and have two buffers.
//
// Set by the program that compiles this: ELEMENT, MATH, BM, BN, BK, WARPS_M, WARPS_N, ACTIVATION.
#include "primitives.cuh"
#include "correlation.cuh"

#define FMA 0
#define TF32 1
#define HALF 2

constexpr int THREADS = 32 * WARPS_M * WARPS_N;

#ifdef WEIGHT_GRADIENT
constexpr bool GATHER_ALONG_K = true;
#else
constexpr bool GATHER_ALONG_K = false;
#endif

#if MATH == FMA
constexpr int ROWS = BM / (THREADS / (BN / 4)), COLUMNS = 4;  // of the target, of one thread
#else
constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N;
constexpr int ROWS = WM / 8, COLUMNS = WN / 4;
#endif

// --- the factors in shared memory ----------------------------------------------------------------------------------
// The gaps keep lanes that read together in different banks.

#if MATH == HALF
typedef ELEMENT Factor;
constexpr int GAP_K = 8, GAP_N = 8, BUFFERS = 2;
#else
typedef float Factor;
constexpr int GAP_K = 4, GAP_N = MATH == FMA ? 4 : 8, BUFFERS = 3;
#endif

__device__ __forceinline__ constexpr int place_a(int row, int k) {
    return MATH == FMA ? k * (BM + 4) + row : row * (BK + GAP_K) + k;
}
__device__ __forceinline__ constexpr int place_b(int k, int column) {
    return GATHER_ALONG_K && MATH != FMA ? column * (BK + GAP_K) + k : k * (BN + GAP_N) + column;
}
constexpr int SIZE_A = MATH == FMA ? BK * (BM + 4) : BM * (BK + GAP_K);
constexpr int SIZE_B = GATHER_ALONG_K && MATH != FMA ? BN * (BK + GAP_K) : BK * (BN + GAP_N);

// --- multiplying: BK terms of every sum ----------------------------------------------------------------------------

#if MATH == FMA
// Thread (ty, tx) of the block has ROWS x 4 sums, and reads ROWS + 4 numbers for ROWS * 4 multiply-adds.
__device__ __forceinline__ int row_of(int i) { return threadIdx.x / (BN / 4) * ROWS + i; }
__device__ __forceinline__ int column_of(int i) { return threadIdx.x % (BN / 4) * 4 + i; }

__device__ __forceinline__ void multiply(float (&sums)[ROWS][COLUMNS], const float *a, const float *b) {
#pragma unroll
    for (int k = 0; k < BK; ++k) {
        float left[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; i += 4) {
            const float4 quad = *reinterpret_cast<const float4 *>(a + place_a(row_of(i), k));
            left[i] = quad.x, left[i + 1] = quad.y, left[i + 2] = quad.z, left[i + 3] = quad.w;
        }
        const float4 right = *reinterpret_cast<const float4 *>(b + place_b(k, column_of(0)));
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            sums[i][0] += left[i] * right.x;
            sums[i][1] += left[i] * right.y;
            sums[i][2] += left[i] * right.z;
            sums[i][3] += left[i] * right.w;
        }
    }
}
#else
// The sums of a warp are tiles of 16 x 8, of which a lane has rows g and g + 8, and columns 2t and 2t + 1.
__device__ __forceinline__ int warp_row() { return threadIdx.x / 32 / WARPS_N * WM; }
__device__ __forceinline__ int warp_column() { return threadIdx.x / 32 % WARPS_N * WN; }
__device__ __forceinline__ int row_of(int i) { return warp_row() + i * 8 + threadIdx.x % 32 / 4; }
__device__ __forceinline__ int column_of(int i) {
    return warp_column() + i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
}

#if MATH == TF32
__device__ __forceinline__ void multiply(float (&sums)[ROWS][COLUMNS], const float *a, const float *b) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < BK; k += 8) {
        float left[WM / 16][4], right[WN / 8][2];
#pragma unroll
        for (int i = 0; i < WM / 16; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                left[i][e] =
                    round_to_tf32(a[place_a(warp_row() + i * 16 + g + e % 2 * 8, k + t + e / 2 * 4)]);
#pragma unroll
        for (int j = 0; j < WN / 8; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e)
                right[j][e] = round_to_tf32(b[place_b(k + t + e * 4, warp_column() + j * 8 + g)]);
#else
__device__ __forceinline__ void multiply(float (&sums)[ROWS][COLUMNS], const Factor *a, const Factor *b) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < BK; k += 16) {
        unsigned left[WM / 16][4], right[WN / 8][2];
#pragma unroll
        for (int i = 0; i < WM / 16; ++i)
            load_matrices(left[i], a + place_a(warp_row() + i * 16 + lane % 16, k + lane / 16 * 8));
#pragma unroll
        for (int j = 0; j < WN / 8; j += 2) {  // two tiles of 8 columns at once
            unsigned four[4];
            const int column = warp_column() + j * 8;
            if (GATHER_ALONG_K)
                load_matrices(four, b + place_b(k + lane / 8 % 2 * 8, column + lane / 16 * 8 + lane % 8));
            else
                load_transposed(four, b + place_b(k + lane % 16, column + lane / 16 * 8));
            right[j][0] = four[0], right[j][1] = four[1], right[j + 1][0] = four[2], right[j + 1][1] = four[3];
        }
#endif
#pragma unroll
        for (int i = 0; i < WM / 16; ++i)
#pragma unroll
            for (int j = 0; j < WN / 8; ++j) {
                float tile[4] = {sums[2 * i][2 * j], sums[2 * i][2 * j + 1], sums[2 * i + 1][2 * j],
                                 sums[2 * i + 1][2 * j + 1]};
#if MATH == TF32
                multiply_add(tile, left[i], right[j]);
#else
                multiply_add(tile, left[i], right[j], ELEMENT());
#endif
                sums[2 * i][2 * j] = tile[0], sums[2 * i][2 * j + 1] = tile[1];
                sums[2 * i + 1][2 * j] = tile[2], sums[2 * i + 1][2 * j + 1] = tile[3];
            }
    }
}
#endif

// --- the steps -----------------------------------------------------------------------------------------------------
// `gather(step, put_a, put_b)` calls put(i, place, address, there) for what this thread brings of each factor: the
// i-th of its numbers goes to that place in shared memory, from that address, or is zero.

constexpr int BRINGS_A = BM * BK / THREADS, BRINGS_B = BN * BK / THREADS;

#if MATH == HALF
template <class Gather>
__device__ __forceinline__ void all_steps(float (&sums)[ROWS][COLUMNS], unsigned char *memory, int steps,
                                          const Gather &gather) {
    Factor *const a = reinterpret_cast<Factor *>(memory), *const b = a + BUFFERS * SIZE_A;
    Factor brought_a[BRINGS_A], brought_b[BRINGS_B];
    int place_in_a[BRINGS_A], place_in_b[BRINGS_B];  // known when it is compiled, but for the thread's own part
    for (int step = 0; step <= steps; ++step) {
        if (step < steps)
            gather(
                step,
                [&](int i, int place, const ELEMENT *from, bool there) {
                    place_in_a[i] = place;
                    brought_a[i] = there ? *from : Factor{0};
                },
                [&](int i, int place, const ELEMENT *from, bool there) {
                    place_in_b[i] = place;
                    brought_b[i] = there ? *from : Factor{0};
                });
        if (step) multiply(sums, a + (step - 1) % 2 * SIZE_A, b + (step - 1) % 2 * SIZE_B);
        if (step < steps) {
#pragma unroll
            for (int i = 0; i < BRINGS_A; ++i) a[step % 2 * SIZE_A + place_in_a[i]] = brought_a[i];
#pragma unroll
            for (int i = 0; i < BRINGS_B; ++i) b[step % 2 * SIZE_B + place_in_b[i]] = brought_b[i];
        }
        __syncthreads();
    }
}
#else
template <class Gather>
__device__ __forceinline__ void all_steps(float (&sums)[ROWS][COLUMNS], unsigned char *memory, int steps,
                                          const Gather &gather) {
    float *const a = reinterpret_cast<float *>(memory), *const b = a + BUFFERS * SIZE_A;
    const auto ask_for = [&](int step) {
        float *const to_a = a + step % 3 * SIZE_A, *const to_b = b + step % 3 * SIZE_B;
        if (step < steps)
            gather(
                step,
                [&](int, int place, const float *from, bool there) { copy_async(to_a + place, from, there); },
                [&](int, int place, const float *from, bool there) { copy_async(to_b + place, from, there); });
        end_group_of_copies();  // an empty one after the last step, so that counting them goes on
    };
    ask_for(0);
    ask_for(1);
    for (int step = 0; step < steps; ++step) {
        wait_for_copies<1>();  // this thread's of this step are there
        __syncthreads();       // so are everybody's, and the buffer of the step before is done with
        ask_for(step + 2);
        multiply(sums, a + step % 3 * SIZE_A, b + step % 3 * SIZE_B);
    }
    wait_for_copies<0>();
}
#endif

#ifndef WEIGHT_GRADIENT
// target = weight x gathered source. Thread i gathers column i % BN, rows i / BN, i / BN + THREADS / BN, ... of the
// second factor; of the first it brings column i % BK.
//
// grid: (columns / BN, rows / BM, groups)
KERNEL __launch_bounds__(THREADS, THREADS > 128 ? 1 : 3) gemm(const Correlation c, const ELEMENT *__restrict__ source,
                                       const ELEMENT *__restrict__ weight, const ELEMENT *__restrict__ bias,
                                       ELEMENT *__restrict__ target) {
    SHARED_MEMORY(memory);
    const int group = blockIdx.z, first_row = blockIdx.y * BM, first_column = blockIdx.x * BN;
    const int pixels = c.by_pixels.divisor, columns = c.images * pixels;
    const int terms = c.source_channels * c.by_taps.divisor;

    const int gathered = first_column + threadIdx.x % BN;
    int position, x0;
    const int n = c.by_pixels.split(min(gathered, columns - 1), position);
    const int y0 = c.by_columns.split(position, x0) * c.step_h + c.origin_h;
    x0 = x0 * c.step_w + c.origin_w;
    const ELEMENT *const image = source + c.source_image(n, group);
    const ELEMENT *const kernels = weight + c.first + (long long)group * c.of_group;

    const auto gather = [&](int step, auto put_a, auto put_b) {
        {
            const int column = threadIdx.x % BK, k = step * BK + column;
            int tap, s;
            const int channel = c.by_taps.split(k, tap), t = c.by_taps_w.split(tap, s);
            const ELEMENT *const from = kernels + channel * c.of_source + t * c.of_row + s * c.of_column;
#pragma unroll
            for (int i = 0; i < BRINGS_A; ++i) {
                const int row = threadIdx.x / BK + i * (THREADS / BK), m = first_row + row;
                const bool there = m < c.target_channels && k < terms;
                put_a(i, place_a(row, column), there ? from + (long long)m * c.of_target : weight, there);
            }
        }
#pragma unroll
        for (int i = 0; i < BRINGS_B; ++i) {
            const int row = threadIdx.x / BN + i * (THREADS / BN), k = step * BK + row;
            int tap, s;
            const int channel = c.by_taps.split(k, tap), t = c.by_taps_w.split(tap, s);
            const int y = y0 + t * c.gap_h, x = x0 + s * c.gap_w;
            const bool there = k < terms && gathered < columns && c.inside(y, x);
            put_b(i, place_b(row, threadIdx.x % BN),
                  there ? image + (channel * c.source_height + y) * c.source_width + x : source, there);
        }
    };
    float sums[ROWS][COLUMNS] = {};
    all_steps(sums, memory, (terms + BK - 1) / BK, gather);

#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
        const int column = first_column + column_of(j);
        if (column >= columns) continue;
        int place, x;
        const int of = c.by_pixels.split(column, place), y = c.by_columns.split(place, x);
        ELEMENT *const pixel = target + c.target_image(of, group) +
                               (y * c.out_h + c.start_h) * c.target_width + x * c.out_w + c.start_w;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const int m = first_row + row_of(i);
            if (m >= c.target_channels) continue;
            const float shift = bias ? widened(bias[group * c.target_channels + m]) : 0.0f;
            round_to(pixel[(long long)m * c.target_height * c.target_width], activated(sums[i][j] + shift));
        }
    }
}
#else
// The gradient of the weight: upstream x gathered source, and k is the position now.
//
//   gradient[m, (channel, t, s)] = sum over (n, y, x) of upstream[n, m, y, x] * source[n, channel, ...]
//
// One more column, of ones, has the sum of the upstream gradient, which is the gradient of the bias. There are few
// columns and a great many positions, so these are shared out: grid z has `splits` parts of them for every group,
// which write sums of their own, partial[split][number], for `sum_columns` (sums.cu) to add up in order.
//
// Thread i gathers row i % BK of both factors.
enum Kind { NONE, OF_WEIGHT, OF_ONES };

struct Column {
    int offset, y, x;  // from the pixel under the kernel's corner
    Kind kind;
};

__device__ const unsigned ONES[] = {0x3f800000u, 0x3f80u, 0x3c00u};  // in memory, where copies can take it from
__device__ __forceinline__ const float *one(float) { return reinterpret_cast<const float *>(ONES); }
__device__ __forceinline__ const bf16 *one(bf16) { return reinterpret_cast<const bf16 *>(ONES + 1); }
__device__ __forceinline__ const fp16 *one(fp16) { return reinterpret_cast<const fp16 *>(ONES + 2); }

KERNEL __launch_bounds__(THREADS, THREADS > 128 ? 1 : 3)
    gemm_weight_gradient(const Correlation c, const int splits, const int length, const int with_bias,
                         const ELEMENT *__restrict__ source, const ELEMENT *__restrict__ upstream,
                         float *__restrict__ partial) {
    SHARED_MEMORY(memory);
    Column *const table = reinterpret_cast<Column *>(memory);
    const int group = blockIdx.z / splits, split = blockIdx.z - group * splits;
    const int first_row = blockIdx.y * BM, first_column = blockIdx.x * BN;
    const int pixels = c.by_pixels.divisor, begin = split * length, end = min(begin + length, c.images * pixels);
    const int numbers = c.source_channels * c.by_taps.divisor;

    for (int i = threadIdx.x; i < BN; i += THREADS) {
        const int column = first_column + i;
        int tap, s;
        const int channel = c.by_taps.split(column, tap), t = c.by_taps_w.split(tap, s);
        const int y = t * c.gap_h, x = s * c.gap_w;
        table[i] = {(channel * c.source_height + y) * c.source_width + x, y, x,
                    column < numbers ? OF_WEIGHT : column == numbers && with_bias ? OF_ONES : NONE};
    }
    __syncthreads();

    const auto gather = [&](int step, auto put_a, auto put_b) {
        const int row = threadIdx.x % BK, k = begin + step * BK + row;
        int position, x0;
        const int n = c.by_pixels.split(min(k, end - 1), position);
        const int y0 = c.by_columns.split(position, x0) * c.step_h + c.origin_h;
        x0 = x0 * c.step_w + c.origin_w;
        const ELEMENT *const incoming = upstream + c.target_image(n, group) + position;
        const ELEMENT *const image = source + c.source_image(n, group);
#pragma unroll
        for (int i = 0; i < BRINGS_A; ++i) {
            const int of = threadIdx.x / BK + i * (THREADS / BK), m = first_row + of;
            const bool there = m < c.target_channels && k < end;
            put_a(i, place_a(of, row), there ? incoming + (long long)m * pixels : upstream, there);
        }
#pragma unroll
        for (int i = 0; i < BRINGS_B; ++i) {
            const int column = threadIdx.x / BK + i * (THREADS / BK);
            const Column of = table[column];
            const bool pixel = of.kind == OF_WEIGHT && k < end && c.inside(y0 + of.y, x0 + of.x);
            const ELEMENT *const from = pixel ? image + of.offset + y0 * c.source_width + x0 : one(ELEMENT());
            put_b(i, place_b(row, column), from, pixel || (of.kind == OF_ONES && k < end));
        }
    };
    float sums[ROWS][COLUMNS] = {};
    all_steps(sums, memory + BN * sizeof(Column), (end - begin + BK - 1) / BK, gather);

#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        const int m = first_row + row_of(i);
        if (m >= c.target_channels) continue;
        const long long line =
            ((long long)split * c.groups + group) * c.target_channels * (numbers + 1) + (long long)m * (numbers + 1);
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) {
            const int column = first_column + column_of(j);
            if (column < numbers + with_bias) partial[line + column] = sums[i][j];
        }
    }
}
#endif
