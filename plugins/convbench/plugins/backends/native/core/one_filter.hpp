// Correlations with one filter in a group: a gradient to one channel, or a depthwise convolution.
//
// With one filter, a vector of the source that is loaded meets one weight of it, and loads are the bound. Here it is
// kept for all rows of the output that see it: R rows at once, each of K rows of the kernel, need R+K-1 loads in place
// of R·K.
//
//     source row q    +---+---+-- ...      is multiplied by    w[q - r]     and added to row r of the output,
//                     | x | x |                                             for all r from q-K+1 to q
//
// That takes rows of the kernel that meet neighbouring rows of the source: a stride or a dilation of 1.
#pragma once

#include "correlation.hpp"

namespace ISA {

constexpr int ROWS = VECTOR_REGISTERS == 32 ? 8 : 4;  // of the output at once
constexpr int KERNEL_ROWS = 7;                        // at most

template <class T, int L, int K, int R, int S>
void row_block(const T *const *sources, Index source_row, const Index *offsets, Index taps, const T *weights,
               Index weights_of_row, T bias, T floor, T *const *to, Index to_row) {
    typedef Lanes<T, L> Lane;
    typename Lane::Vector sums[R][S];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int s = 0; s < S; s++) sums[r][s] = typename Lane::Vector{} + bias;
    for (Index k = 0; k < taps; k++) {  // of one row of the kernel
        typename Lane::Vector w[K];
        UNROLL for (int y = 0; y < K; y++) w[y] = typename Lane::Vector{} + weights[y * weights_of_row + k];
        UNROLL for (int q = 0; q < R + K - 1; q++)
            UNROLL for (int s = 0; s < S; s++) {
                typename Lane::Vector x = Lane::load(sources[s] + offsets[k] + q * source_row);
                hold(x);
                UNROLL for (int r = 0; r < R; r++)
                    if (q - r >= 0 && q - r < K) sums[r][s] += x * w[q - r];
            }
    }
    UNROLL for (int s = 0; s < S; s++)
        UNROLL for (int r = 0; r < R; r++) Lane::store(to[s] + r * to_row, not_below<T, L>(floor, sums[r][s]));
}

template <class T, int L>
struct RowLanes : PositionLanes<T, L> {
    typedef void (*Block)(const T *const *, Index, const Index *, Index, const T *, Index, T, T, T *const *, Index);

    template <int R, int S, int... K>
    static Block pick(Index kernel_rows, std::integer_sequence<int, K...>) {
        static constexpr Block blocks[] = {row_block<T, L, K + 1, R, S>...};
        return blocks[kernel_rows - 1];
    }

    static Block block(Index kernel_rows, Index rows, Index vectors) {
        const auto all = std::make_integer_sequence<int, KERNEL_ROWS>();
        if (rows == 1) return vectors == 1 ? pick<1, 1>(kernel_rows, all) : pick<1, 2>(kernel_rows, all);
        return vectors == 1 ? pick<ROWS, 1>(kernel_rows, all) : pick<ROWS, 2>(kernel_rows, all);
    }

    static void run(const Correlation<T> &c, const T *source, T *to, Index begin, Index end, T *tile, Index = 1) {
        if (!c.kernel_rows) return PositionLanes<T, L>::run(c, source, to, begin, end, tile);  // nothing but the bias
        const Index of_row = c.taps / c.kernel_rows, across = divided_up(c.columns, L), pieces = divided_up(across, 2);
        const bool downwards = c.kernel_rows == 1 || c.reaches[1] > c.reaches[0];
        const Index first = downwards ? 0 : (c.kernel_rows - 1) * of_row, step = downwards ? of_row : -of_row;
        const bool direct = c.to_column == 1 && c.columns >= L;
        const Index together = end - begin >= ROWS ? ROWS : 1;
        for (Index g = 0; g < c.groups; g++) {
            const T *weights = c.weights + g * c.weights_of_group + first;
            const T *pixels = source + g * c.channels * c.source_channel;
            T *target = to + g * c.to_filter;
            for (Index row_ = begin; row_ < end; row_ += together) {
                const Index row = smaller(row_, end - together);  // the last ones reach back, to the same result
                for (Index piece = 0; piece < pieces; piece++) {
                    const Index slot = across * piece / pieces, here = across * (piece + 1) / pieces - slot;
                    const T *sources[2];
                    T *targets[2], *places[2];
                    for (Index s = 0; s < here; s++) {
                        const Index left = larger(0, smaller((slot + s) * L, c.columns - L));
                        sources[s] = pixels + (row - begin) * c.source_row + left;
                        places[s] = target + row * c.to_row + left * c.to_column;
                        targets[s] = direct ? places[s] : tile + s * ROWS * L;
                    }
                    block(c.kernel_rows, together, here)(sources, c.source_row, c.offsets + first, of_row, weights,
                                                         step, c.bias[g * c.bias_of_group], c.floor, targets,
                                                         direct ? c.to_row : L);
                    if (direct) continue;
                    const Index wide = smaller(L, c.columns);
                    for (Index s = 0; s < here; s++)
                        for (Index r = 0; r < together; r++)
                            for (Index j = 0; j < wide; j++)
                                places[s][r * c.to_row + j * c.to_column] = targets[s][r * L + j];
                }
            }
        }
    }
};

}  // namespace ISA
