// The last step of a weight gradient: partial sums are added up, always in the same order, and rounded once.
//
// numbers = filters * numbers of a filter, which are those of the weight and, where it is asked for, one of the bias.
#include "primitives.cuh"

#define THREADS 128

__device__ __forceinline__ void put(int number, int of_filter, float total, ELEMENT *weight, ELEMENT *bias) {
    const int filter = number / of_filter, i = number - filter * of_filter;
    if (i < of_filter - 1)
        round_to(weight[(long long)filter * (of_filter - 1) + i], total);
    else if (bias)
        round_to(bias[filter], total);
}

// Many partial sums of few numbers, partial[number][block]: a warp for each number.
KERNEL __launch_bounds__(THREADS) sum_rows(const int numbers, const int of_filter, const int blocks,
                                           const float *__restrict__ partial, ELEMENT *__restrict__ weight,
                                           ELEMENT *__restrict__ bias) {
    const int number = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    float total = 0.0f;
    if (number < numbers)
        for (int i = lane; i < blocks; i += 32) total += partial[(long long)number * blocks + i];
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) total += shuffle_xor(total, apart);
    if (number < numbers && lane == 0) put(number, of_filter, total, weight, bias);
}

// Few partial sums of many numbers, partial[split][number]: a thread for each number.
KERNEL __launch_bounds__(THREADS) sum_columns(const int numbers, const int of_filter, const int splits,
                                              const float *__restrict__ partial, ELEMENT *__restrict__ weight,
                                              ELEMENT *__restrict__ bias) {
    const int number = blockIdx.x * THREADS + threadIdx.x;
    if (number >= numbers) return;
    float total = 0.0f;
    for (int i = 0; i < splits; ++i) total += partial[(long long)i * numbers + number];
    put(number, of_filter, total, weight, bias);
}
