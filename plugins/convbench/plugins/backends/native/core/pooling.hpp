// Pooling, a row of output at a time: every tap of the window is one pass over the row, which the compiler makes
// vectors of. Windows of 2x2 and stride 2, whose every pixel belongs to one window, need no second pass.
//
// There is little to compute, a comparison or an addition a pixel. What counts is to touch memory once and in order:
// the largest value's place in its window is kept as 16 bits, a third of what torch writes, which keeps 64.
#pragma once

#include "convolution.hpp"

namespace ISA {

// A loop over a row is a function of its own: inlined, GCC forgets that its rows do not overlap.
#define APART __attribute__((noinline))

constexpr Index PIXELS_OF_TASK = 16384;

// Call f(plane, worker) for every plane, a good handful of small ones to a task.
template <class F>
void each_plane(const Pooling &p, const Team &team, const F &f) {
    const Index size = p.height * p.width, fair = divided_up(p.planes, 4 * team.threads);
    const Index planes = larger(1, smaller(fair, divided_up(PIXELS_OF_TASK, size)));
    const Index tasks = divided_up(p.planes, planes);
    parallel(team, tasks, [&](Index task, int worker) {
        for (Index plane = task * planes; plane < smaller(p.planes, (task + 1) * planes); plane++) f(plane, worker);
    });
}

// The outputs [begin, end) along an axis for which a tap lies inside of the image; output j sees pixel j·step + shift.
struct Span {
    Index shift, begin, end;

    Span(Index tap, Index dilation, Index pad, Index step, Index size, Index outputs) {
        shift = tap * dilation - pad;
        begin = smaller(outputs, larger(0, divided_up(-shift, step)));
        end = larger(begin, smaller(outputs, divided_down(size - 1 - shift, step) + 1));
    }
};

// The taps [begin, end) of an axis that lie inside of the image for some output in [first, last].
struct Seen {
    Index begin, end;

    Seen(Index kernel, Index dilation, Index pad, Index step, Index size, Index first, Index last) {
        begin = larger(0, divided_up(pad - last * step, dilation));
        end = smaller(kernel, divided_down(size - 1 + pad - first * step, dilation) + 1);
    }
};

INLINE bool is_2x2(const Pooling &p) {
    return p.kernel_y == 2 && p.kernel_x == 2 && p.stride_y == 2 && p.stride_x == 2 && !p.pad_y && !p.pad_x &&
           p.dilation_y == 1 && p.dilation_x == 1 && p.rows * 2 <= p.height && p.columns * 2 <= p.width;
}

template <class F>
INLINE void with_step(Index step, const F &f) {  // the common strides as constants, which loads can be planned for
    if (step == 1) f(std::integral_constant<Index, 1>());
    else if (step == 2) f(std::integral_constant<Index, 2>());
    else f(step);
}

// --- the largest ------------------------------------------------------------------------------------------------

// Places are whole numbers as wide as T while they are chosen, for comparisons give such.
template <class T>
using Place = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// Comparisons must never be branches: their outcome is a coin's.
template <class T, class P>
INLINE void choose(T value, P place, T &best, P &choice) {
    const auto better = (value > best) | (value != value);  // as in torch: the first of equals, and nan over all
    best = better ? value : best;
    choice = better ? place : choice;
}

// L pixels, STEP apart; 0 stands for any step.
template <class T, int L, int STEP>
INLINE typename Lanes<T, L>::Vector spaced(const T *from, Index step) {
    if constexpr (STEP == 1 || L == 1) return Lanes<T, L>::load(from);
    else if constexpr (STEP == 2) return evens<T, L>(from, std::make_integer_sequence<int, L>());
    typename Lanes<T, L>::Vector pixels;
    UNROLL for (int l = 0; l < L; l++) pixels[l] = from[l * step];
    return pixels;
}

template <class T, int L>
INLINE void store_places(uint16_t *to, typename Lanes<Place<T>, L>::Vector places) {
    Lanes<uint16_t, L>::store(to, __builtin_convertvector(places, typename Lanes<uint16_t, L>::Vector));
}

template <class T>
APART void max_row_2x2(const T *above, const T *below, T *to, uint16_t *choices, Index columns) {
    in_vectors<T>(0, columns, [&](auto lanes, Index j) {
        constexpr int L = lanes;
        typedef typename Lanes<Place<T>, L>::Vector Places;
        auto best = spaced<T, L, 2>(above + 2 * j, 2);
        Places choice = {};
        choose(spaced<T, L, 2>(above + 2 * j + 1, 2), choice + 1, best, choice);
        choose(spaced<T, L, 2>(below + 2 * j, 2), Places{} + 2, best, choice);
        choose(spaced<T, L, 2>(below + 2 * j + 1, 2), Places{} + 3, best, choice);
        Lanes<T, L>::store(to + j, best);
        store_places<T, L>(choices + j, choice);
    });
}

template <class T, int STEP>
APART void max_row(const T *pixels, Index step, T *to, Place<T> *chosen, Index begin, Index end, Place<T> place) {
    in_vectors<T>(begin, end, [&](auto lanes, Index j) {
        constexpr int L = lanes;
        typedef Lanes<Place<T>, L> Places;
        auto best = Lanes<T, L>::load(to + j);
        auto choice = Places::load(chosen + j);
        choose(spaced<T, L, STEP>(pixels + j * step, step), typename Places::Vector{} + place, best, choice);
        Lanes<T, L>::store(to + j, best);
        Places::store(chosen + j, choice);
    });
}

template <class T>
bool max_pool(const Pooling &p, const T *input, T *output, uint16_t *choices, Team &team) {
    const bool simple = is_2x2(p);
    Place<T> *lines;
    if (!lay_out(team, [&](Room &room) { lines = room.take<Place<T>>(team.threads * p.columns); })) return false;
    const Seen taps(p.kernel_x, p.dilation_x, p.pad_x, p.stride_x, p.width, 0, p.columns - 1);
    each_plane(p, team, [&](Index plane, int worker) {
        const T *image = input + plane * p.height * p.width;
        Place<T> *chosen = lines + worker * p.columns;
        for (Index i = 0; i < p.rows; i++) {
            T *to = output + (plane * p.rows + i) * p.columns;
            uint16_t *kept = choices + (plane * p.rows + i) * p.columns;
            if (simple) {
                const T *above = image + 2 * i * p.width;
                max_row_2x2(above, above + p.width, to, kept, p.columns);
                continue;
            }
            const Index top = larger(0, divided_up(p.pad_y - i * p.stride_y, p.dilation_y));
            for (Index j = 0; j < p.columns; j++) {  // the first pixel inside, where nothing is larger than -inf
                to[j] = -__builtin_huge_val();
                chosen[j] = top * p.kernel_x + larger(0, divided_up(p.pad_x - j * p.stride_x, p.dilation_x));
            }
            const Seen rows(p.kernel_y, p.dilation_y, p.pad_y, p.stride_y, p.height, i, i);
            for (Index u = rows.begin; u < rows.end; u++) {
                const Index y = i * p.stride_y + u * p.dilation_y - p.pad_y;
                for (Index v = taps.begin; v < taps.end; v++) {
                    const Span s(v, p.dilation_x, p.pad_x, p.stride_x, p.width, p.columns);
                    const auto row = p.stride_x == 1 ? max_row<T, 1> : p.stride_x == 2 ? max_row<T, 2> : max_row<T, 0>;
                    row(image + y * p.width + s.shift, p.stride_x, to, chosen, s.begin, s.end, u * p.kernel_x + v);
                }
            }
            for (Index j = 0; j < p.columns; j++) kept[j] = static_cast<uint16_t>(chosen[j]);
        }
        T *outputs = output + plane * p.rows * p.columns;
        activate(p.activation, outputs, outputs, p.rows * p.columns);  // monotone: the largest is still the largest
    });
    return true;
}

template <class T>
APART void spread_row_2x2(const T *from, const uint16_t *choices, T *above, T *below, Index columns) {
    in_vectors<T>(0, columns, [&](auto lanes, Index j) {
        constexpr int L = lanes;
        typedef Lanes<T, L> Lane;
        const auto all = std::make_integer_sequence<int, L>();
        const auto value = Lane::load(from + j);
        const auto choice =
            __builtin_convertvector(Lanes<uint16_t, L>::load(choices + j), typename Lanes<Place<T>, L>::Vector);
        const typename Lane::Vector none = {};
        if constexpr (L > 1) {
            store_zipped<T, L>(above + 2 * j, choice == 0 ? value : none, choice == 1 ? value : none, all);
            store_zipped<T, L>(below + 2 * j, choice == 2 ? value : none, choice == 3 ? value : none, all);
        } else {
            Lane::store(above + 2 * j, choice == 0 ? value : none);
            Lane::store(above + 2 * j + 1, choice == 1 ? value : none);
            Lane::store(below + 2 * j, choice == 2 ? value : none);
            Lane::store(below + 2 * j + 1, choice == 3 ? value : none);
        }
    });
}

// Pixels outside of all 2x2 windows: the last column and row of an odd size.
template <class T>
void clear_rest_2x2(const Pooling &p, T *image) {
    if (2 * p.columns < p.width)
        for (Index y = 0; y < 2 * p.rows; y++)
            for (Index x = 2 * p.columns; x < p.width; x++) image[y * p.width + x] = T(0);
    std::memset(image + 2 * p.rows * p.width, 0, (p.height - 2 * p.rows) * p.width * sizeof(T));
}

template <class T>
bool max_pool_gradient(const Pooling &p, const T *upstream, const uint16_t *choices, T *gradient, Team &team) {
    const bool simple = is_2x2(p);
    Index *offsets;
    if (!lay_out(team, [&](Room &room) { offsets = room.take<Index>(p.kernel_y * p.kernel_x); })) return false;
    for (Index k = 0; k < p.kernel_y * p.kernel_x; k++)
        offsets[k] = (k / p.kernel_x * p.dilation_y - p.pad_y) * p.width + k % p.kernel_x * p.dilation_x - p.pad_x;
    each_plane(p, team, [&](Index plane, int) {
        T *image = gradient + plane * p.height * p.width;
        if (simple) clear_rest_2x2(p, image);
        else std::memset(image, 0, p.height * p.width * sizeof(T));
        for (Index i = 0; i < p.rows; i++) {
            const T *from = upstream + (plane * p.rows + i) * p.columns;
            const uint16_t *chosen = choices + (plane * p.rows + i) * p.columns;
            if (simple) {
                T *above = image + 2 * i * p.width;
                spread_row_2x2(from, chosen, above, above + p.width, p.columns);
                continue;
            }
            for (Index j = 0; j < p.columns; j++)  // in order: windows may share their largest pixel
                image[i * p.stride_y * p.width + j * p.stride_x + offsets[chosen[j]]] += from[j];
        }
    });
    return true;
}

// --- the mean ---------------------------------------------------------------------------------------------------

// How many rows, or columns, each window of an axis counts: those inside, with `padding` the padded ones as well.
INLINE void window_counts(Index *counts, Index outputs, Index kernel, Index stride, Index pad, Index size, bool padding) {
    const Index low = padding ? -pad : 0, high = size + (padding ? pad : 0);
    for (Index j = 0; j < outputs; j++) {
        const Index start = j * stride - pad;
        counts[j] = smaller(start + kernel, high) - larger(start, low);
    }
}

template <class T>
const T *divisors(const Pooling &p, Team &team, T *&planes) {  // [rows][columns], and a plane for each thread
    Index *down, *across;
    T *table;
    const bool laid_out = lay_out(team, [&](Room &room) {
        down = room.take<Index>(p.rows);
        across = room.take<Index>(p.columns);
        table = room.take<T>(p.rows * p.columns);
        planes = room.take<T>(p.activation ? team.threads * p.height * p.width : 0);
    });
    if (!laid_out) return nullptr;
    window_counts(down, p.rows, p.kernel_y, p.stride_y, p.pad_y, p.height, p.count_padding);
    window_counts(across, p.columns, p.kernel_x, p.stride_x, p.pad_x, p.width, p.count_padding);
    for (Index i = 0; i < p.rows; i++)
        for (Index j = 0; j < p.columns; j++)
            table[i * p.columns + j] = static_cast<T>(p.divisor ? p.divisor : down[i] * across[j]);
    return table;
}

template <class T>
APART void mean_row_2x2(const T *__restrict above, const T *__restrict below, T *__restrict to, T divisor, Index columns) {
    for (Index j = 0; j < columns; j++)
        to[j] = (above[2 * j] + above[2 * j + 1] + below[2 * j] + below[2 * j + 1]) / divisor;
}

template <class T, class Step>
APART void add_row(const T *__restrict pixels, Step step, T *__restrict to, Index begin, Index end) {
    for (Index j = begin; j < end; j++) to[j] += pixels[j * step];
}

template <class T>
bool avg_pool(const Pooling &p, const T *input, T *output, T *activated, Team &team) {
    const bool simple = is_2x2(p);
    T *planes;
    const T *table = divisors<T>(p, team, planes);
    if (!table) return false;
    const Seen taps(p.kernel_x, 1, p.pad_x, p.stride_x, p.width, 0, p.columns - 1);
    each_plane(p, team, [&](Index plane, int worker) {
        const Index size = p.height * p.width;
        const T *image = input + plane * size;
        if (p.activation) {  // kept for the gradient where that is asked for
            T *plane_ = activated ? activated + plane * size : planes + worker * size;
            activate(p.activation, image, plane_, size);
            image = plane_;
        }
        for (Index i = 0; i < p.rows; i++) {
            T *to = output + (plane * p.rows + i) * p.columns;
            if (simple) {
                const T *above = image + 2 * i * p.width;
                mean_row_2x2(above, above + p.width, to, table[0], p.columns);
                continue;
            }
            std::memset(to, 0, p.columns * sizeof(T));
            const Seen rows(p.kernel_y, 1, p.pad_y, p.stride_y, p.height, i, i);
            for (Index u = rows.begin; u < rows.end; u++) {
                const Index y = i * p.stride_y + u - p.pad_y;
                for (Index v = taps.begin; v < taps.end; v++) {
                    const Span s(v, 1, p.pad_x, p.stride_x, p.width, p.columns);
                    with_step(p.stride_x, [&](auto step) {
                        add_row(image + y * p.width + s.shift, step, to, s.begin, s.end);
                    });
                }
            }
            for (Index j = 0; j < p.columns; j++) to[j] /= table[i * p.columns + j];
        }
    });
    return true;
}

template <class T>
APART void spread_mean_2x2(const T *__restrict from, T *__restrict above, T *__restrict below, T divisor, Index columns) {
    for (Index j = 0; j < columns; j++) {
        const T share = from[j] / divisor;
        above[2 * j] = above[2 * j + 1] = share;
        below[2 * j] = below[2 * j + 1] = share;
    }
}

template <class T, class Step>
APART void spread_row(const T *__restrict from, const T *__restrict divisor, T *__restrict pixels, Step step, Index begin,
                Index end) {
    for (Index j = begin; j < end; j++) pixels[j * step] += from[j] / divisor[j];
}

template <class T>
bool avg_pool_gradient(const Pooling &p, const T *upstream, const T *activated, T *gradient, Team &team) {
    const bool simple = is_2x2(p);
    T *planes;
    const T *table = divisors<T>(p, team, planes);
    if (!table) return false;
    const Seen taps(p.kernel_x, 1, p.pad_x, p.stride_x, p.width, 0, p.columns - 1);
    each_plane(p, team, [&](Index plane, int) {
        T *image = gradient + plane * p.height * p.width;
        if (simple) clear_rest_2x2(p, image);
        else std::memset(image, 0, p.height * p.width * sizeof(T));
        for (Index i = 0; i < p.rows; i++) {
            const T *from = upstream + (plane * p.rows + i) * p.columns;
            if (simple) {
                T *above = image + 2 * i * p.width;
                spread_mean_2x2(from, above, above + p.width, table[0], p.columns);
                continue;
            }
            const Seen rows(p.kernel_y, 1, p.pad_y, p.stride_y, p.height, i, i);
            for (Index u = rows.begin; u < rows.end; u++) {
                const Index y = i * p.stride_y + u - p.pad_y;
                for (Index v = taps.begin; v < taps.end; v++) {
                    const Span s(v, 1, p.pad_x, p.stride_x, p.width, p.columns);
                    with_step(p.stride_x, [&](auto step) {
                        spread_row(from, table + i * p.columns, image + y * p.width + s.shift, step, s.begin, s.end);
                    });
                }
            }
        }
        const Index size = p.height * p.width;
        if (p.activation) hand_back(p.activation, image, activated + plane * size, image, size);
    });
    return true;
}

}  // namespace ISA
