// The correlation of one copied piece of an image (source.hpp) with packed kernels, in registers.
//
//     out[f][position] = bias[f] + sum over taps k of weight[f][k] · source[position + offset[k]]
//
// This is a matrix product, filters x taps times taps x positions, whose second matrix is never written: a position
// is an address and a tap an offset. Both kernels below hold a block of the output in registers while all taps pass by,
// and multiply an outer product into it for each tap. They differ in what lies along the lanes of a register:
//
//     lanes are filters                             lanes are positions
//                  P positions                                   S vectors of positions
//               +---+---+-- ... +                              +---------+---------+
//      M        | a | a |       |   load M of weights,   B     |  a a a  |  a a a  |   load S of the source,
//      vectors  | a | a |       |   broadcast P pixels   fil-  |  a a a  |  a a a  |   broadcast B weights
//      of f     +---+---+-- ... +                        ters  +---------+---------+
//
// The first fills its lanes where there are many filters, and needs its result transposed; the second where rows are
// long, and writes rows as they are. `cost` in convolution.hpp weighs them. With 32 registers (AVX-512) a block has 28
// accumulators, with 16 (AVX2) 12: at two multiply-adds a cycle and a latency of four, eight are needed to keep the
// units busy, and every further one saves loads: 2x14 loads 16 registers for 28 multiply-adds, 6x4 ten for 24.
#pragma once

#include "activation.hpp"
#include "source.hpp"

namespace ISA {

// Along one side of the kernel: tap u of output i is at `i · step + reaches[u]` of an image of `size`.
struct Side {
    Index count = 0;
    const Index *reaches = nullptr;
    Index step = 1, size = 0;

    // Taps [begin, end) that see the image from some output in [first, last]; the others are in the padding.
    void seen(Index first, Index last, Index &begin, Index &end) const {
        const auto hidden = [&](Index u) {
            return last * step + reaches[u] < 0 || first * step + reaches[u] >= size;
        };
        begin = 0, end = count;
        while (begin < end && hidden(begin)) begin++;
        while (begin < end && hidden(end - 1)) end--;
    }
};

// Taps of a block: `runs` of them, one every `step`.
struct Taps {
    Index runs, count, step;
};

// One dense correlation; a strided gradient is several of them.
template <class T>
struct Correlation {
    Index groups, channels, filters;  // channels and filters of one group
    Index taps;                       // of one group: [rows of the kernel][channels][columns of the kernel]
    const Index *offsets;             // of each tap, in the source
    Index kernel_rows;                // that have taps
    const Index *reaches;             // of each, how far from `row · step` of the output its row of the image is
    Index step, height;               // of the image
    const T *weights;                 // packed, one group after the other
    Index weights_of_group;
    const T *bias;                    // [groups][padded filters], zeros where there is none
    Index bias_of_group;
    Index rows, columns;              // of the output
    // steps from one output to the next in its row and column, and from channel to channel
    Index source_row, source_column, source_channel;
    Index to_row, to_column, to_filter, to_image;
    T floor;                          // what is less becomes this: 0 of a ReLU, else -inf
    Index activation;
    Side across = {};                 // columns of the kernel, if taps are in the order [rows][columns][channels]

    // Taps [begin, end) that see rows of the image from some output in [first_row, last_row]; the others are in the
    // padding above or below. In the gradient of a 5x5 kernel on 14x14 pixels that is every fourth multiplication.
    void seen(Index first_row, Index last_row, Index &begin, Index &end) const {
        const Index of_row = kernel_rows ? taps / kernel_rows : 0;
        Side{kernel_rows, reaches, step, height}.seen(first_row, last_row, begin, end);
        begin *= of_row;
        end *= of_row;
    }

    // Of these, those that see columns from some output in [first, last], as runs from `begin` on.
    Taps seen_across(Index first, Index last, Index &begin, Index end) const {
        const Index of_row = kernel_rows ? taps / kernel_rows : 0;
        Index left = 0, right = across.count;
        across.seen(first, last, left, right);
        if (!of_row || right - left == across.count) return {1, end - begin, 0};
        const Index rows_ = (end - begin) / of_row, of_column = of_row / across.count;
        begin += left * of_column;
        return {rows_, (right - left) * of_column, of_row};
    }
};

// The largest blocks that the registers hold.
constexpr int POSITIONS = (VECTOR_REGISTERS - 4) / 2;
constexpr int FILTERS = 6;
constexpr int slots(int filters) {
    const int most = (VECTOR_REGISTERS - 2) / (filters + 1);
    return most < 8 ? most : 8;
}

template <class T, int L, class V = typename Lanes<T, L>::Vector>
INLINE V not_below(T floor, V value) {  // a NaN stays one
    return value < floor ? V{} + floor : value;
}

// --- lanes are filters ------------------------------------------------------------------------------------------

template <class T, int L, int M, int P>
void filter_block(const T *source, const Index *offsets, Index taps, const T *weights, const T *bias, T *tile,
                  T floor) {
    typedef Lanes<T, L> Lane;
    typename Lane::Vector sums[M][P];
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int p = 0; p < P; p++) sums[m][p] = Lane::load(bias + m * L);
    for (Index k = 0; k < taps; k++, weights += M * L) {
        const T *pixels = source + offsets[k];
        typename Lane::Vector w[M];
        UNROLL for (int m = 0; m < M; m++) w[m] = Lane::load(weights + m * L);
        UNROLL for (int p = 0; p < P; p++)
            UNROLL for (int m = 0; m < M; m++) sums[m][p] += w[m] * pixels[p];
    }
    UNROLL for (int p = 0; p < P; p++)
        UNROLL for (int m = 0; m < M; m++) Lane::store(tile + (p * M + m) * L, not_below<T, L>(floor, sums[m][p]));
}

template <class T, int L>
struct FilterLanes {
    typedef ISA::Source Source;
    static constexpr int IMAGES = 1;
    static constexpr bool ACTIVATES = false;  // more than the floor does
    typedef void (*Block)(const T *, const Index *, Index, const T *, const T *, T *, T);

    template <int M, int... P>
    static Block pick(Index positions, std::integer_sequence<int, P...>) {
        static constexpr Block blocks[] = {filter_block<T, L, M, P + 1>...};
        return blocks[positions - 1];
    }

    static Block block(Index vectors, Index positions) {
        const auto all = std::make_integer_sequence<int, POSITIONS>();
        return vectors == 1 ? pick<1>(positions, all) : pick<2>(positions, all);
    }

    static Index padded(Index filters) { return divided_up(filters, L) * L; }

    // [block][tap][2L filters], the last block narrower where half of it is enough.
    template <class Weight>
    static void pack(T *packed, Index filters, Index taps, Weight weight) {
        for (Index first = 0; first < filters; first += 2 * L) {
            const Index width = padded(smaller(2 * L, filters - first));
            for (Index k = 0; k < taps; k++)
                for (Index f = 0; f < width; f++) *packed++ = first + f < filters ? weight(first + f, k) : T(0);
        }
    }

    static Index tile_rows(Index columns) { return larger(1, 4096 / (2 * L * columns)); }
    static Index tile(Index columns) { return tile_rows(columns) * columns * 2 * L; }

    // Rows [begin, end) of the output; `source` is what the first of them needs, `to` where the plane begins.
    static void run(const Correlation<T> &c, const T *source, T *to, Index begin, Index end, T *tile, Index = 1) {
        const Index pieces = divided_up(c.columns, POSITIONS), high = tile_rows(c.columns);
        for (Index g = 0; g < c.groups; g++)
            for (Index first = 0; first < c.filters; first += 2 * L) {
                const Index here = smaller(2 * L, c.filters - first), width = padded(here);
                const T *weights = c.weights + g * c.weights_of_group + first * c.taps;
                const T *bias = c.bias + g * c.bias_of_group + first;
                for (Index row = begin; row < end; row += high) {
                    const Index rows = smaller(high, end - row);
                    const T *pixels = source + g * c.channels * c.source_channel + (row - begin) * c.source_row;
                    for (Index piece = 0; piece < pieces; piece++) {  // of nearly equal width
                        const Index left = c.columns * piece / pieces, right = c.columns * (piece + 1) / pieces;
                        const Block run_block = block(width / L, right - left);
                        for (Index r = 0; r < rows; r++) {
                            Index tap, last;
                            c.seen(row + r, row + r, tap, last);
                            run_block(pixels + r * c.source_row + left, c.offsets + tap, last - tap,
                                      weights + tap * width, bias, tile + (r * c.columns + left) * width, c.floor);
                        }
                    }
                    T *target = to + (g * c.filters + first) * c.to_filter + row * c.to_row;
                    put(c, tile, width, here, target, rows);
                }
            }
    }

    // tile[position][filter] -> planes of filters.
    static void put(const Correlation<T> &c, const T *tile, Index width, Index filters, T *to, Index rows) {
        if (c.to_column == 1 && c.to_row == c.columns) {
            transpose<T, L, true, false>(tile, width, to, c.to_filter, rows * c.columns, filters);
            return;
        }
        for (Index f = 0; f < filters; f++)
            for (Index r = 0; r < rows; r++)
                for (Index j = 0; j < c.columns; j++)
                    to[f * c.to_filter + r * c.to_row + j * c.to_column] = tile[(r * c.columns + j) * width + f];
    }
};

// --- lanes are positions ----------------------------------------------------------------------------------------

template <class T, int L, int B, int S>
void position_block(const T *const *sources, const Index *offsets, Taps taps, const T *weights, const T *bias,
                    T *const *to, Index to_filter, T floor) {
    typedef Lanes<T, L> Lane;
    typename Lane::Vector sums[B][S];
    const T *pixels[S];
    UNROLL for (int s = 0; s < S; s++) pixels[s] = sources[s];
    UNROLL for (int b = 0; b < B; b++)
        UNROLL for (int s = 0; s < S; s++) sums[b][s] = typename Lane::Vector{} + bias[b];
    for (; taps.runs > 0; taps.runs--, offsets += taps.step, weights += taps.step * B) {
        const T *w = weights;
        for (Index k = 0; k < taps.count; k++, w += B) {
            const Index offset = offsets[k];
            typename Lane::Vector x[S];
            UNROLL for (int s = 0; s < S; s++) x[s] = Lane::load(pixels[s] + offset);
            UNROLL for (int b = 0; b < B; b++)
                UNROLL for (int s = 0; s < S; s++) sums[b][s] += x[s] * w[b];
        }
    }
    UNROLL for (int s = 0; s < S; s++)
        UNROLL for (int b = 0; b < B; b++) Lane::store(to[s] + b * to_filter, not_below<T, L>(floor, sums[b][s]));
}

template <class T, int L>
struct PositionLanes {
    typedef ISA::Source Source;
    static constexpr int IMAGES = 1;
    static constexpr bool ACTIVATES = false;  // more than the floor does
    typedef void (*Block)(const T *const *, const Index *, Taps, const T *, const T *, T *const *, Index, T);

    template <int B, int... S>
    static Block pick(Index vectors, std::integer_sequence<int, S...>) {
        static constexpr Block blocks[] = {position_block<T, L, B, S + 1>...};
        return blocks[vectors - 1];
    }

    template <int B = FILTERS>
    static Block block(Index filters, Index vectors) {
        if constexpr (B > 1)
            if (filters < B) return block<B - 1>(filters, vectors);
        return pick<B>(vectors, std::make_integer_sequence<int, slots(B)>());
    }

    static Index padded(Index filters) { return filters; }
    static Index tile(Index) { return FILTERS * 8 * L; }

    // [block][tap][filters of the block], blocks of nearly equal size.
    template <class Weight>
    static void pack(T *packed, Index filters, Index taps, Weight weight) {
        const Index blocks = divided_up(filters, FILTERS);
        for (Index block = 0; block < blocks; block++) {
            const Index first = filters * block / blocks, last = filters * (block + 1) / blocks;
            for (Index k = 0; k < taps; k++)
                for (Index f = first; f < last; f++) *packed++ = weight(f, k);
        }
    }

    static void run(const Correlation<T> &c, const T *source, T *to, Index begin, Index end, T *tile, Index = 1) {
        const Index blocks = divided_up(c.filters, FILTERS);
        // Rows are covered by vectors of L, the last of which reaches back over its neighbour and computes some
        // positions twice, to the same result. Only a row shorter than L, or one with gaps, goes through the tile.
        const Index across = divided_up(c.columns, L), total = (end - begin) * across;
        const bool direct = c.to_column == 1 && c.columns >= L;
        for (Index g = 0; g < c.groups; g++)
            for (Index block_ = 0; block_ < blocks; block_++) {
                const Index first = c.filters * block_ / blocks, filters = c.filters * (block_ + 1) / blocks - first;
                const T *weights = c.weights + g * c.weights_of_group + first * c.taps;
                const T *bias = c.bias + g * c.bias_of_group + first;
                const T *pixels = source + g * c.channels * c.source_channel;
                T *target = to + (g * c.filters + first) * c.to_filter;
                // As many slots as the registers hold; but two short rows at most, for what one of them can leave
                // out the other may need.
                const Index most = smaller(slots(static_cast<int>(filters)), larger(divided_up(12, filters), 2 * across));
                const Index pieces = divided_up(total, most);
                for (Index piece = 0; piece < pieces; piece++) {
                    const Index slot = total * piece / pieces, here = total * (piece + 1) / pieces - slot;
                    Index tap, last;
                    c.seen(begin + slot / across, begin + (slot + here - 1) / across, tap, last);
                    const T *sources[8];
                    T *targets[8], *places[8];
                    for (Index s = 0; s < here; s++) {
                        const Index r = (slot + s) / across;
                        const Index left = larger(0, smaller((slot + s) % across * L, c.columns - L));
                        sources[s] = pixels + r * c.source_row + left;
                        places[s] = target + (begin + r) * c.to_row + left * c.to_column;
                        targets[s] = direct ? places[s] : tile + s * L;
                    }
                    block(filters, here)(sources, c.offsets + tap, {1, last - tap, 0}, weights + tap * filters, bias,
                                         targets, direct ? c.to_filter : 8 * L, c.floor);
                    if (!direct) {
                        const Index wide = smaller(L, c.columns);
                        for (Index f = 0; f < filters; f++)
                            for (Index s = 0; s < here; s++)
                                for (Index j = 0; j < wide; j++)
                                    places[s][f * c.to_filter + j * c.to_column] = tile[f * 8 * L + s * L + j];
                    }
                }
            }
    }
};

}  // namespace ISA
