// Images along the lanes: one vector holds the same pixel of as many images of a batch.
//
// Nothing depends on the sizes then. One channel, rows of 14 pixels, strides and dilations all fill whole registers:
// a position is an address, as in correlation.hpp, and its block of products is the one that computes. The price is a
// transposition of what comes in and goes out, of L·log2(L) shuffles for L·L numbers, and a batch of L images.
//
//     batch, [image][channel][row][column]   ->   block of L images, [channel][row][column][image]
#pragma once

#include "correlation.hpp"

namespace ISA {

// Load L numbers of each of `images` images into a square, `count` of them where there are fewer; zeros for the rest.
template <class T, int L>
INLINE void load_square(typename Lanes<T, L>::Vector (&square)[L], const T *from, Index image_step, Index images,
                        Index count) {
    typedef Lanes<T, L> Lane;
    if (count >= L) {
        UNROLL for (int k = 0; k < L; k++)
            square[k] = k < images ? Lane::load(from + k * image_step) : typename Lane::Vector{};
        return;
    }
    T line[L] = {};
    UNROLL for (int k = 0; k < L; k++) {
        for (Index i = 0; i < count; i++) line[i] = k < images ? from[k * image_step + i] : T(0);
        square[k] = Lane::load(line);
    }
}

// tile[position][image] -> to[image][position], positions `to_column` apart.
template <class T, int L>
void put_images(const T *tile, Index count, T *to, Index to_column, Index to_image, Index images) {
    typedef Lanes<T, L> Lane;
    const bool whole = to_column == 1 && count >= L;
    for (Index i = 0; i < count; i += L) {
        const Index at = whole ? smaller(i, count - L) : i, here = smaller(L, count - at);
        typename Lane::Vector square[L];
        UNROLL for (int k = 0; k < L; k++)
            square[k] = k < here ? Lane::load(tile + (at + k) * L) : typename Lane::Vector{};
        Square<T, L>::transpose(square);
        T *place = to + at * to_column;
        UNROLL for (int k = 0; k < L; k++) {
            if (k >= images) break;
            if (whole) {
                Lane::store(place + k * to_image, square[k]);
                continue;
            }
            T line[L];
            Lane::store(line, square[k]);
            for (Index l = 0; l < here; l++) place[k * to_image + l * to_column] = line[l];
        }
    }
}

// As `Source`, of a block of images; a stride is a step in it, and needs no planes of its own.
template <class T, int L>
struct ImageSource {
    Index channels, rows, planes, pitch, first_column;  // [channels][rows][planes · pitch][L]

    static constexpr Index SPARE = 0;

    Index row() const { return planes * pitch * L; }
    Index channel() const { return rows * row(); }
    Index size() const { return channels * channel(); }
    Index column() const { return planes * L; }  // from one output to the next
    Index offset(Index channel_, Index row_, Index column) const {
        return channel_ * channel() + row_ * row() + column * L;
    }

    void fill(T *copy, const T *image, Index height, Index width, Index first_row, Index image_step,
              Index images) const {
        typedef Lanes<T, L> Lane;
        const Index wide = planes * pitch;
        const Index top = smaller(rows, larger(0, -first_row)), bottom = larger(top, smaller(rows, height - first_row));
        const Index left = smaller(wide, larger(0, -first_column));
        const Index right = larger(left, smaller(wide, width - first_column));
        for (Index c = 0; c < channels; c++, copy += channel()) {
            std::memset(copy, 0, top * row() * sizeof(T));
            std::memset(copy + bottom * row(), 0, (rows - bottom) * row() * sizeof(T));
            for (Index r = top; r < bottom; r++) {
                std::memset(copy + r * row(), 0, left * L * sizeof(T));
                std::memset(copy + r * row() + right * L, 0, (wide - right) * L * sizeof(T));
            }
            if (bottom == top || left == right) continue;
            // Rows of an image lie one behind the other: a square is as many pixels as there are lanes, of any row.
            const T *pixels = image + (c * height + first_row + top) * width;
            const Index count = (bottom - top) * width;
            for (Index i = 0; i < count; i += L) {
                const Index at = larger(0, smaller(i, count - L));
                typename Lane::Vector square[L];
                load_square<T, L>(square, pixels + at, image_step, images, count - at);
                Square<T, L>::transpose(square);
                T *line = copy + (top + at / width) * row() - first_column * L;
                Index x = at % width;
                UNROLL for (int l = 0; l < L; l++) {
                    const Index place = x + -first_column;
                    if (at + l < count && place >= left && place < right) Lane::store(line + x * L, square[l]);
                    if (++x == width) x = 0, line += row();
                }
            }
        }
    }
};

// A correlation of a block of images. Its blocks are those of position_block, whose vectors of positions are one
// position of L images here.
template <class T, int L>
struct ImageLanes : PositionLanes<T, L> {
    typedef ImageSource<T, L> Source;
    static constexpr int IMAGES = L;
    static constexpr bool ACTIVATES = true;

    static Index tile_rows(Index columns) { return larger(1, 512 / columns); }
    static Index tile(Index columns) { return tile_rows(columns) * columns * FILTERS * L; }

    // Rows [row, row + rows) of `filters` filters from `first` on: to[filter][position][L], planes `to_filter` apart.
    static void rows(const Correlation<T> &c, const T *source, Index group, Index first, Index filters, Index row,
                     Index rows, T *to, Index to_filter) {
        const T *weights = c.weights + group * c.weights_of_group + first * c.taps;
        const T *bias = c.bias + group * c.bias_of_group + first;
        const Index pieces = divided_up(c.columns, slots(static_cast<int>(filters)));
        for (Index r = 0; r < rows; r++) {
            const T *pixels = source + group * c.channels * c.source_channel + r * c.source_row;
            Index first_tap, last;
            c.seen(row + r, row + r, first_tap, last);
            for (Index piece = 0; piece < pieces; piece++) {
                const Index left = c.columns * piece / pieces, right = c.columns * (piece + 1) / pieces;
                Index tap = first_tap;
                const Taps taps = c.seen_across(left, right - 1, tap, last);
                const T *sources[8];
                T *targets[8];
                for (Index s = 0; s < right - left; s++) {
                    sources[s] = pixels + (left + s) * c.source_column;
                    targets[s] = to + (r * c.columns + left + s) * L;
                }
                PositionLanes<T, L>::block(filters, right - left)(sources, c.offsets + tap, taps,
                                                                 weights + tap * filters, bias, targets, to_filter,
                                                                 c.floor);
            }
        }
    }

    // Call f(group, first filter, filters) for every block of filters that is computed together.
    template <class F>
    static void each_block(const Correlation<T> &c, const F &f) {
        const Index blocks = divided_up(c.filters, FILTERS);
        for (Index g = 0; g < c.groups; g++)
            for (Index block = 0; block < blocks; block++) {
                const Index first = c.filters * block / blocks;
                f(g, first, c.filters * (block + 1) / blocks - first);
            }
    }

    // All of it, and activated, to[filter][position][L].
    static void sums(const Correlation<T> &c, const T *source, T *to) {
        const Index plane = c.rows * c.columns * L;
        each_block(c, [&](Index g, Index first, Index filters) {
            T *mine = to + (g * c.filters + first) * plane;
            for (Index row = 0; row < c.rows; row++)
                rows(c, source + row * c.source_row, g, first, filters, row, 1, mine + row * c.columns * L, plane);
            activate(c.activation, mine, mine, filters * plane);
        });
    }

    static void run(const Correlation<T> &c, const T *source, T *to, Index begin, Index end, T *tile, Index images) {
        const Index high = tile_rows(c.columns);
        const bool one_run = c.to_column == 1 && c.to_row == c.columns;
        each_block(c, [&](Index g, Index first, Index filters) {
            for (Index row = begin; row < end; row += high) {
                const Index count = smaller(high, end - row), positions = count * c.columns;
                rows(c, source + (row - begin) * c.source_row, g, first, filters, row, count, tile, positions * L);
                activate(c.activation, tile, tile, filters * positions * L);
                T *target = to + (g * c.filters + first) * c.to_filter + row * c.to_row;
                for (Index f = 0; f < filters; f++)
                    for (Index r = 0; r < (one_run ? 1 : count); r++)
                        put_images<T, L>(tile + (f * positions + r * c.columns) * L, one_run ? positions : c.columns,
                                         target + f * c.to_filter + r * c.to_row, c.to_column, c.to_image, images);
            }
        });
    }
};

// --- the gradient of the weights --------------------------------------------------------------------------------

constexpr int IMAGE_FILTERS = VECTOR_REGISTERS == 32 ? 4 : 2, IMAGE_TAPS = 5;

// sums[f][k] += upstream[f][position] · source[position + offset[k]], over the rows of a band; each lane for itself.
template <class T, int L, int B, int K>
void image_tap_block(const T *source, const Index *offsets, Index source_row, Index source_column, const T *upstream,
                     Index filter, Index upstream_row, Index rows, Index columns, T *sums_in_memory,
                     Index sums_of_filter) {
    typedef Lanes<T, L> Lane;
    typename Lane::Vector sums[B][K];
    const T *pixels[K];
    UNROLL for (int k = 0; k < K; k++) pixels[k] = source + offsets[k];
    UNROLL for (int b = 0; b < B; b++)
        UNROLL for (int k = 0; k < K; k++) sums[b][k] = Lane::load(sums_in_memory + b * sums_of_filter + k * L);
    for (Index r = 0; r < rows; r++) {
        Index at = r * source_row;
        const T *here = upstream + r * upstream_row;
        for (Index j = 0; j < columns; j++, at += source_column, here += L) {
            typename Lane::Vector g[B];
            UNROLL for (int b = 0; b < B; b++) g[b] = Lane::load(here + b * filter);
            UNROLL for (int k = 0; k < K; k++) {
                typename Lane::Vector x = Lane::load(pixels[k] + at);
                hold(x);
                UNROLL for (int b = 0; b < B; b++) sums[b][k] += g[b] * x;
            }
        }
    }
    UNROLL for (int b = 0; b < B; b++)
        UNROLL for (int k = 0; k < K; k++) Lane::store(sums_in_memory + b * sums_of_filter + k * L, sums[b][k]);
}

template <class T, int L>
struct ImageTaps {
    typedef void (*Block)(const T *, const Index *, Index, Index, const T *, Index, Index, Index, Index, T *, Index);

    template <int B, int... K>
    static Block pick(Index taps, std::integer_sequence<int, K...>) {
        static constexpr Block blocks[] = {image_tap_block<T, L, B, K + 1>...};
        return blocks[taps - 1];
    }

    template <int B = IMAGE_FILTERS>
    static Block block(Index filters, Index taps) {
        if constexpr (B > 1)
            if (filters < B) return block<B - 1>(filters, taps);
        return pick<B>(taps, std::make_integer_sequence<int, IMAGE_TAPS>());
    }

    // All taps of the filters of a group; `sums` is [filter][tap, and one more for the bias][L].
    static void run(const ImageSource<T, L> &of, const T *source, const Index *offsets, Index taps, Index source_row,
                    const T *upstream, Index plane, Index upstream_row, Index filters, Index rows, Index columns,
                    T *sums) {
        const Index of_filter = (taps + 1) * L;
        const Index blocks = divided_up(filters, IMAGE_FILTERS), pieces = divided_up(taps, IMAGE_TAPS);
        for (Index block_ = 0; block_ < blocks; block_++) {
            const Index first = filters * block_ / blocks, here = filters * (block_ + 1) / blocks - first;
            for (Index piece = 0; piece < pieces; piece++) {  // of nearly equal size
                const Index tap = taps * piece / pieces, count = taps * (piece + 1) / pieces - tap;
                block(here, count)(source, offsets + tap, source_row, of.column(), upstream + first * plane, plane,
                                   upstream_row, rows, columns, sums + first * of_filter + tap * L, of_filter);
            }
        }
        for (Index f = 0; f < filters; f++)
            for (Index r = 0; r < rows; r++)
                add(upstream + f * plane + r * upstream_row, columns, sums + f * of_filter + taps * L);
    }

    // The bias sees every position once.
    static void add(const T *upstream, Index positions, T *sum) {
        typedef Lanes<T, L> Lane;
        typename Lane::Vector sums[4] = {};  // four chains of additions, which each wait for themselves
        Index p = 0;
        for (; p + 4 <= positions; p += 4)
            UNROLL for (int i = 0; i < 4; i++) sums[i] += Lane::load(upstream + (p + i) * L);
        for (; p < positions; p++) sums[0] += Lane::load(upstream + p * L);
        Lane::store(sum, Lane::load(sum) + ((sums[0] + sums[1]) + (sums[2] + sums[3])));
    }
};

// to[i] = the sum over lanes of from[i][L], for i < count, added up over `parts` that lie `step` apart, in their order.
template <class T, int L>
void add_lanes(const T *from, Index parts, Index step, T *to, Index count) {
    typedef Lanes<T, L> Lane;
    for (Index i = 0; i < count; i += L) {
        typename Lane::Vector square[L];
        UNROLL for (int k = 0; k < L; k++) {
            square[k] = typename Lane::Vector{};
            if (i + k < count)
                for (Index part = 0; part < parts; part++) square[k] += Lane::load(from + part * step + (i + k) * L);
        }
        Square<T, L>::transpose(square);
        UNROLL for (int k = 1; k < L; k++) square[0] += square[k];
        T line[L];
        Lane::store(line, square[0]);
        std::memcpy(to + i, line, smaller(L, count - i) * sizeof(T));
    }
}

}  // namespace ISA
