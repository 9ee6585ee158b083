// The piece of an image that a task reads, copied once into a thread's own cache, with its padding written out.
//
// Columns are dealt out to as many planes as the stride says, so that the pixels which neighbouring outputs meet under
// one tap of the kernel are neighbours too, whatever the stride:
//
//     stride 2, padding 1:   . 0 1 2 3 4 5 .      ->      . 1 3 5  |  0 2 4 .
//
// With that, a tap is nothing but an offset from the pixel under the kernel's corner, and one table of offsets stands
// for every kernel size, dilation and stride. The copy costs one load and store a pixel, to O·kh·kw multiplications.
#pragma once

#include "vectors.hpp"

namespace ISA {

struct Source {
    Index channels, rows, planes, pitch;  // laid out as [channels][rows][planes][pitch]
    Index first_column;                   // of the image, in the copy's first column; padding is below zero

    Index row() const { return planes * pitch; }
    Index channel() const { return rows * row(); }
    Index size() const { return channels * channel(); }
    Index column() const { return 1; }  // from one output to the next

    // Where the pixel (row, column) lies, counted from the copy's first row and column.
    Index offset(Index channel_, Index row_, Index column) const {
        return channel_ * channel() + row_ * row() + column % planes * pitch + column / planes;
    }

    // Copy rows [first_row, first_row + rows) of every channel; what is outside of the image becomes zero.
    template <class T>
    void fill(T *copy, const T *image, Index height, Index width, Index first_row, Index = 0, Index = 1) const {
        for (Index c = 0; c < channels; c++)
            for (Index r = 0; r < rows; r++, copy += row()) {
                const Index y = first_row + r;
                if (y < 0 || y >= height) {
                    clear(copy, 0, row());
                    continue;
                }
                const T *pixels = image + (c * height + y) * width;
                for (Index plane = 0; plane < planes; plane++) fill_plane(copy + plane * pitch, pixels, width, plane);
            }
    }

    // What a copy takes beyond its size: zeros are written in whole vectors.
    static constexpr Index SPARE = 64;

  private:
    // Zeros from begin to end, and into what lies behind, which is written afterwards. Rows are short: a call of
    // memset takes longer.
    template <class T>
    static INLINE void clear(T *line, Index begin, Index end) {
        constexpr int L = FULL<T>;
        for (Index i = begin; i < end; i += L) Lanes<T, L>::store(line + i, typename Lanes<T, L>::Vector{});
    }

    template <class T>
    void fill_plane(T *line, const T *pixels, Index width, Index plane) const {
        const Index start = first_column + plane;  // line[i] is pixels[start + i·planes]
        const Index begin = smaller(pitch, larger(0, divided_up(-start, planes)));
        const Index end = larger(begin, smaller(pitch, divided_up(width - start, planes)));
        clear(line, 0, begin);
        if (planes == 1) {
            in_vectors<T>(begin, end, [&](auto lanes, Index i) {
                typedef Lanes<T, lanes> Lane;
                Lane::store(line + i, Lane::load(pixels + start + i));
            });
        } else {
            for (Index i = begin; i < end; i++) line[i] = pixels[start + i * planes];
        }
        clear(line, end, pitch);
    }
};

}  // namespace ISA
