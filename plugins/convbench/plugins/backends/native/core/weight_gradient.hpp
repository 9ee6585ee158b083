// The gradient of the weights, in registers: filters along the lanes, taps side by side.
//
//     dW[f][k] += sum over positions of upstream[f][position] · source[position + offset[k]]
//
//                  B taps
//              +---+---+-- ... +
//     M        | a | a |       |     for each position: load M vectors of the upstream gradient, which was
//     vectors  | a | a |       |     transposed to [position][filter], and broadcast the B pixels that the
//     of f     +---+---+-- ... +     taps see from there
//
// The accumulators stay in registers over all positions of a band, and meet memory once for each band. A tap is a
// pointer, so B is bounded by the general registers, of which there are 16.
#pragma once

#include "vectors.hpp"

namespace ISA {

constexpr int TAPS = VECTOR_REGISTERS == 32 ? 10 : 6;

template <class T, int L, int M, int B>
void tap_block(const T *source, const Index *offsets, Index source_row, const T *upstream, Index rows, Index columns,
               T *sums_in_memory) {
    typedef Lanes<T, L> Lane;
    typename Lane::Vector sums[M][B];
    const T *pixels[B];
    UNROLL for (int b = 0; b < B; b++) pixels[b] = source + offsets[b];
    UNROLL for (int b = 0; b < B; b++)
        UNROLL for (int m = 0; m < M; m++) sums[m][b] = Lane::load(sums_in_memory + (b * M + m) * L);
    Index at = 0;
    for (Index r = 0; r < rows; r++, at += source_row - columns)
        for (const Index end = at + columns; at < end; at++, upstream += M * L) {
            typename Lane::Vector g[M];
            UNROLL for (int m = 0; m < M; m++) g[m] = Lane::load(upstream + m * L);
            UNROLL for (int b = 0; b < B; b++)
                UNROLL for (int m = 0; m < M; m++) sums[m][b] += g[m] * pixels[b][at];
        }
    UNROLL for (int b = 0; b < B; b++)
        UNROLL for (int m = 0; m < M; m++) Lane::store(sums_in_memory + (b * M + m) * L, sums[m][b]);
}

template <class T, int L>
struct TapBlocks {
    typedef void (*Block)(const T *, const Index *, Index, const T *, Index, Index, T *);

    template <int M, int... B>
    static Block pick(Index taps, std::integer_sequence<int, B...>) {
        static constexpr Block blocks[] = {tap_block<T, L, M, B + 1>...};
        return blocks[taps - 1];
    }

    // All taps of M·L filters; `sums` is [tap][filter].
    static void run(Index vectors, const T *source, const Index *offsets, Index taps, Index source_row,
                    const T *upstream, Index rows, Index columns, T *sums) {
        const auto all = std::make_integer_sequence<int, TAPS>();
        const Index blocks = divided_up(taps, TAPS);
        for (Index block = 0; block < blocks; block++) {  // of nearly equal size
            const Index first = taps * block / blocks, here = taps * (block + 1) / blocks - first;
            const Block run_block = vectors == 1 ? pick<1>(here, all) : pick<2>(here, all);
            run_block(source, offsets + first, source_row, upstream, rows, columns, sums + first * vectors * L);
        }
    }

    // The bias sees every position once.
    static void add(Index vectors, const T *upstream, Index positions, T *sums) {
        typedef Lanes<T, L> Lane;
        for (Index m = 0; m < vectors; m++) {
            typename Lane::Vector sum[4] = {};  // four chains of additions, which each wait for themselves
            Index p = 0;
            for (; p + 4 <= positions; p += 4)
                UNROLL for (int i = 0; i < 4; i++) sum[i] += Lane::load(upstream + ((p + i) * vectors + m) * L);
            for (; p < positions; p++) sum[0] += Lane::load(upstream + (p * vectors + m) * L);
            Lane::store(sums + m * L, Lane::load(sums + m * L) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
        }
    }
};

}  // namespace ISA
