// A convolution and its gradients, put together from correlations: tables of taps, packed weights, and tasks.
//
//   forward            a correlation of the padded image.
//   gradient of input  a correlation of the padded upstream gradient with kernels whose filters and channels are
//                      exchanged. With a stride s the pixels fall into s·s classes by their position modulo s, each
//                      of which sees its own taps only; every class is a dense correlation of its own.
//   of the weights     weight_gradient.hpp, summed over chunks of the batch in an order that does not depend on
//                      who computed them.
//
// A task is a band of rows of one image: as much as lets its copy stay in the second-level cache.
#pragma once

#include "image_lanes.hpp"
#include "one_filter.hpp"
#include "weight_gradient.hpp"

namespace ISA {

constexpr Index CACHE = 256 * 1024;  // bytes of a band's copy: half of a small second-level cache
constexpr Index STRIPE = 256;        // positions whose upstream gradient, transposed, stays in the first-level cache

// Memory dealt out from one block; from none at all, it only counts.
struct Room {
    char *begin;
    size_t used = 0;

    template <class T>
    T *take(Index count) {
        T *place = begin ? reinterpret_cast<T *>(begin + used) : nullptr;
        size_t bytes;
        if (__builtin_mul_overflow(count, sizeof(T), &bytes) || __builtin_add_overflow(used, bytes, &used) ||
            __builtin_add_overflow(used, size_t(63), &used))
            used = SIZE_MAX;  // more than there is: a negative count, too
        used = used / 64 * 64;
        return place;
    }
};

template <class F>
bool lay_out(Team &team, const F &deal) {  // false where there is no memory
    Room counted{nullptr};
    deal(counted);
    Room room{static_cast<char *>(team.reserve(counted.used))};
    if (!room.begin) return false;
    deal(room);
    return true;
}

// How the rows of an output are dealt out: bands whose copies fit the cache, and enough of them for every thread.
struct Bands {
    Index high, count;

    Bands(Index rows, Index images, int threads, Index bytes_of_row, Index halo_rows, Index step) {
        high = larger(1, smaller(rows, (CACHE / larger(1, bytes_of_row) - halo_rows) / step));
        const Index wanted = 4 * threads;
        if (images < wanted) high = larger(1, smaller(high, rows * images / wanted));
        count = divided_up(rows, high);
        high = divided_up(rows, larger(1, count));
    }
};

// --- which lanes ------------------------------------------------------------------------------------------------

// Multiply-adds of a row of output, in time of a whole register's, with what the way of computing adds to them: idle
// lanes, the wait for too few accumulators, loads that straddle cache lines, the transposition of a tile.
INLINE double width_time(bool whole) { return whole ? 1.0 : 0.55; }

template <class T, int L>
double cost_of_filter_lanes(Index filters, Index columns, Index taps, bool) {
    const Index vectors = divided_up(filters, L);
    const double positions = static_cast<double>(columns) / divided_up(columns, POSITIONS);
    const double chains = positions * smaller(2, vectors);
    const double waiting = chains < 8 ? 8 / chains : 1;
    return columns * vectors * width_time(L == FULL<T>) * (taps * waiting + 12);
}

template <class T, int L>
double cost_of_position_lanes(Index filters, Index columns, Index taps, bool gaps) {
    const Index blocks = divided_up(filters, FILTERS);
    const double vectors = divided_up(columns, L), in_block = static_cast<double>(filters) / blocks;
    const double moved = gaps || columns < L ? static_cast<double>(columns) * filters : 0;
    return vectors * filters * width_time(L == FULL<T>) * (taps * (in_block < 2 ? 2 : 1.05) + 3) + moved;
}

// `pixels` are those of the source that a row of output takes, `bytes` those of all rows that the kernel sees at once.
template <class T, int L>
double cost_of_image_lanes(Index batch, Index filters, Index columns, Index taps, Index pixels, Index bytes) {
    if (bytes * L > 2 * CACHE) return __builtin_huge_val();
    const double in_block = static_cast<double>(filters) / divided_up(filters, FILTERS);
    const double full = static_cast<double>(batch) / (divided_up(batch, L) * L);
    return (columns * filters * (taps * (in_block < 2 ? 1.9 : 1.0) + 4) + 8.0 * pixels) / L / full;
}

// Call f with the cheapest way. `neighbours` says that rows of the kernel meet neighbouring rows of the source.
template <class T, class F>
auto cheapest(Index batch, Index filters, Index columns, Index taps, Index pixels, Index bytes, bool gaps,
              bool neighbours, const F &f) {
    constexpr int WHOLE = FULL<T>, HALF = WHOLE > 2 ? WHOLE / 2 : WHOLE;
    const double of_images = cost_of_image_lanes<T, WHOLE>(batch, filters, columns, taps, pixels, bytes);
    if (filters == 1 && neighbours) {
        const double whole = divided_up(columns, WHOLE), half = divided_up(columns, HALF);
        if (whole * width_time(true) <= half * width_time(false)) return f(RowLanes<T, WHOLE>());
        return f(RowLanes<T, HALF>());
    }
    const double costs[] = {
        cost_of_filter_lanes<T, WHOLE>(filters, columns, taps, gaps),
        cost_of_filter_lanes<T, HALF>(filters, columns, taps, gaps),
        cost_of_position_lanes<T, WHOLE>(filters, columns, taps, gaps),
        cost_of_position_lanes<T, HALF>(filters, columns, taps, gaps),
    };
    int best = 0;
    for (int i = 1; i < 4; i++)
        if (costs[i] < costs[best]) best = i;
    if (of_images < costs[best]) return f(ImageLanes<T, WHOLE>());
    switch (best) {
    case 0: return f(FilterLanes<T, WHOLE>());
    case 1: return f(FilterLanes<T, HALF>());
    case 2: return f(PositionLanes<T, WHOLE>());
    default: return f(PositionLanes<T, HALF>());
    }
}

// --- forward ----------------------------------------------------------------------------------------------------

template <class T, class Way>
bool forward_with(const Geometry &g, const T *input, const T *weight, const T *bias, T *output, Team &team) {
    const Index channels = g.channels / g.groups, filters = g.filters / g.groups;
    const Index kernel = g.kernel_y * g.kernel_x, taps = channels * kernel, padded = Way::padded(filters);
    const Index halo = (g.kernel_y - 1) * g.dilation_y + 1 - g.stride_y;
    const Index pitch = g.columns + (g.kernel_x - 1) * g.dilation_x / g.stride_x;
    const Index blocks = divided_up(g.batch, Way::IMAGES), bytes_of_row = g.channels * pitch * g.stride_x * sizeof(T);
    const Bands bands(g.rows, blocks, team.threads, Way::IMAGES * bytes_of_row, halo, g.stride_y);
    const typename Way::Source source{g.channels, bands.high * g.stride_y + halo, g.stride_x, pitch, -g.pad_x};

    Index *offsets, *places, *reaches;
    T *packed, *biases, *copies, *tiles;
    const Index copy = source.size() + source.SPARE, tile = Way::tile(g.columns) + 64;
    const bool laid_out = lay_out(team, [&](Room &room) {
        offsets = room.take<Index>(taps);
        places = room.take<Index>(taps);
        reaches = room.take<Index>(g.kernel_y);
        packed = room.take<T>(g.groups * padded * taps);
        biases = room.take<T>(g.groups * padded);
        copies = room.take<T>(team.threads * copy);
        tiles = room.take<T>(team.threads * tile);
    });
    if (!laid_out) return false;
    Index tap = 0;
    for (Index y = 0; y < g.kernel_y; y++) {
        reaches[y] = y * g.dilation_y - g.pad_y;
        for (Index c = 0; c < channels; c++)
            for (Index x = 0; x < g.kernel_x; x++, tap++) {
                offsets[tap] = source.offset(c, y * g.dilation_y, x * g.dilation_x);
                places[tap] = c * kernel + y * g.kernel_x + x;
            }
    }
    parallel(team, g.groups, [&](Index group, int) {
        const T *from = weight + group * filters * taps;
        Way::pack(packed + group * padded * taps, filters, taps,
                  [&](Index f, Index k) { return from[f * taps + places[k]]; });
        for (Index f = 0; f < padded; f++)
            biases[group * padded + f] = bias && f < filters ? bias[group * filters + f] : T(0);
    });
    const Index plane = g.rows * g.columns, size = g.channels * g.height * g.width;
    const Correlation<T> correlation{g.groups, channels, filters, taps, offsets,
                                     g.kernel_y, reaches, g.stride_y, g.height, packed, padded * taps, biases, padded,
                                     g.rows, g.columns, g.stride_y * source.row(), source.column(), source.channel(),
                                     g.columns, 1, plane, g.filters * plane,
                                     g.activation == RELU ? T(0) : -T(__builtin_huge_val()),
                                     g.activation > RELU ? g.activation : NONE};
    parallel(team, blocks * bands.count, [&](Index task, int worker) {
        const Index image = task / bands.count * Way::IMAGES, begin = task % bands.count * bands.high;
        const Index images = smaller(Way::IMAGES, g.batch - image);
        T *mine = copies + worker * copy;
        source.fill(mine, input + image * size, g.height, g.width, begin * g.stride_y - g.pad_y, size, images);
        T *to = output + image * g.filters * plane;
        const Index end = smaller(g.rows, begin + bands.high);
        Way::run(correlation, mine, to, begin, end, tiles + worker * tile, images);
        if (g.activation > RELU && !Way::ACTIVATES)  // while the band is still in the cache
            for (Index f = 0; f < g.filters; f++) {
                T *rows = to + f * plane + begin * g.columns;
                activate(g.activation, rows, rows, (end - begin) * g.columns);
            }
    });
    return true;
}

template <class T>
bool forward(const Geometry &g, const T *input, const T *weight, const T *bias, T *output, Team &team) {
    const Index taps = g.channels / g.groups * g.kernel_y * g.kernel_x;
    const bool neighbours = g.stride_y == 1 && g.dilation_y == 1 && g.kernel_y <= KERNEL_ROWS;
    const Index pixels = g.channels / g.groups * g.width * g.stride_y;
    const Index bytes = g.channels * ((g.kernel_y - 1) * g.dilation_y + 1) * (g.width + 2 * g.pad_x) * sizeof(T);
    return cheapest<T>(g.batch, g.filters / g.groups, g.columns, taps, pixels, bytes, false, neighbours, [&](auto way) {
        return forward_with<T, decltype(way)>(g, input, weight, bias, output, team);
    });
}

// --- the gradient of the input ----------------------------------------------------------------------------------

// Along one axis: pixel p = class + s·q has the gradient of output q + reach(class, tap), where that is whole.
struct Axis {
    Index stride, pad, dilation, kernel;

    Index lowest() const { return divided_down(pad - (kernel - 1) * dilation, stride); }
    Index highest() const { return divided_down(stride - 1 + pad, stride); }
    bool sees(Index class_, Index tap) const { return rest(class_ + pad - tap * dilation, stride) == 0; }
    Index reach(Index class_, Index tap) const { return divided_down(class_ + pad - tap * dilation, stride); }
    Index taps(Index class_) const {
        Index count = 0;
        for (Index tap = 0; tap < kernel; tap++) count += sees(class_, tap);
        return count;
    }
};

template <class T, class Way>
bool input_gradient_with(const Geometry &g, const T *upstream, const T *weight, T *gradient, Team &team) {
    const Axis down{g.stride_y, g.pad_y, g.dilation_y, g.kernel_y};
    const Axis across{g.stride_x, g.pad_x, g.dilation_x, g.kernel_x};
    const Index channels = g.channels / g.groups, filters = g.filters / g.groups, padded = Way::padded(channels);
    const Index kernel = g.kernel_y * g.kernel_x;
    const Index wide = smaller(g.stride_x, g.width), classes = smaller(g.stride_y, g.height) * wide;  // that have pixels
    const Index rows = divided_up(g.height, g.stride_y), columns = divided_up(g.width, g.stride_x);
    const Index halo = down.highest() - down.lowest(), pitch = columns + across.highest() - across.lowest();
    const Index blocks = divided_up(g.batch, Way::IMAGES), bytes_of_row = g.filters * pitch * sizeof(T);
    const Bands bands(rows, blocks, team.threads, Way::IMAGES * bytes_of_row, halo, 1);
    const typename Way::Source source{g.filters, bands.high + halo, 1, pitch, across.lowest()};

    Correlation<T> *correlations;
    Index *offsets, *places, *reaches;
    T *packed, *biases, *copies, *tiles;
    const Index taps_of_all = filters * kernel;  // every tap belongs to one class
    const Index size = g.channels * g.height * g.width;
    const Index copy = source.size() + source.SPARE, tile = Way::tile(columns) + 64;
    const bool laid_out = lay_out(team, [&](Room &room) {
        correlations = room.take<Correlation<T>>(classes);
        offsets = room.take<Index>(taps_of_all);
        places = room.take<Index>(taps_of_all);
        reaches = room.take<Index>(classes * g.kernel_y);
        packed = room.take<T>(g.groups * padded * taps_of_all);
        biases = room.take<T>(g.groups * padded);
        copies = room.take<T>(team.threads * copy);
        tiles = room.take<T>(team.threads * tile);
    });
    if (!laid_out) return false;
    std::memset(biases, 0, g.groups * padded * sizeof(T));
    Index first = 0;
    for (Index class_ = 0; class_ < classes; class_++) {
        const Index b = class_ % wide, a = class_ / wide;
        Index taps = 0, kernel_rows = 0, *of_class = reaches + class_ * g.kernel_y;
        for (Index y = 0; y < g.kernel_y; y++) {
            if (!down.sees(a, y)) continue;
            of_class[kernel_rows++] = down.reach(a, y);
            for (Index f = 0; f < filters; f++)
                for (Index x = 0; x < g.kernel_x; x++) {
                    if (!across.sees(b, x)) continue;
                    offsets[first + taps] =
                        source.offset(f, down.reach(a, y) - down.lowest(), across.reach(b, x) - across.lowest());
                    places[first + taps++] = f * channels * kernel + y * g.kernel_x + x;
                }
        }
        correlations[class_] = {g.groups, filters, channels, taps, offsets + first,
                                kernel_rows, of_class, 1, g.rows,
                                packed + g.groups * padded * first, padded * taps, biases, padded,
                                divided_up(g.height - a, g.stride_y), divided_up(g.width - b, g.stride_x),
                                source.row(), source.column(), source.channel(),
                                g.stride_y * g.width, g.stride_x, g.height * g.width, size,
                                -T(__builtin_huge_val()), NONE};
        first += taps;
    }
    parallel(team, g.groups * classes, [&](Index task, int) {
        const Index group = task / classes;
        const Correlation<T> &c = correlations[task % classes];
        const T *from = weight + group * filters * channels * kernel;
        const Index *where = places + (c.offsets - offsets);
        Way::pack(const_cast<T *>(c.weights) + group * c.weights_of_group, channels, c.taps,
                  [&](Index channel, Index k) { return from[where[k] + channel * kernel]; });
    });
    const Index plane = g.rows * g.columns;
    parallel(team, blocks * bands.count, [&](Index task, int worker) {
        const Index image = task / bands.count * Way::IMAGES, begin = task % bands.count * bands.high;
        const Index images = smaller(Way::IMAGES, g.batch - image);
        T *mine = copies + worker * copy;
        source.fill(mine, upstream + image * g.filters * plane, g.rows, g.columns, begin + down.lowest(),
                    g.filters * plane, images);
        for (Index class_ = 0; class_ < classes; class_++) {
            const Correlation<T> &c = correlations[class_];
            T *to = gradient + image * size + class_ / wide * g.width + class_ % wide;
            const Index end = smaller(c.rows, begin + bands.high);
            if (begin < end && c.columns > 0) Way::run(c, mine, to, begin, end, tiles + worker * tile, images);
        }
    });
    return true;
}

template <class T>
bool input_gradient(const Geometry &g, const T *upstream, const T *weight, T *gradient, Team &team) {
    const Index taps = divided_up(g.filters / g.groups * g.kernel_y * g.kernel_x, g.stride_y * g.stride_x);
    const bool neighbours = g.dilation_y == 1 && divided_up(g.kernel_y, g.stride_y) <= KERNEL_ROWS;
    const Index columns = divided_up(g.width, g.stride_x), pixels = g.filters / g.groups * g.columns / g.stride_y;
    const Index bytes = g.filters * divided_up(g.kernel_y * g.dilation_y, g.stride_y) * (g.columns + g.kernel_x) * sizeof(T);
    return cheapest<T>(g.batch, g.channels / g.groups, columns, taps, pixels, bytes, g.stride_x > 1, neighbours, [&](auto way) {
        return input_gradient_with<T, decltype(way)>(g, upstream, weight, gradient, team);
    });
}

// --- the gradients of weights and bias --------------------------------------------------------------------------

template <class T, int L>
bool weight_gradient_with(const Geometry &g, const T *upstream, const T *input, T *gradient, T *of_bias, Team &team) {
    typedef TapBlocks<T, L> Way;
    const Index channels = g.channels / g.groups, filters = g.filters / g.groups;
    const Index padded = divided_up(filters, L) * L, kernel = g.kernel_y * g.kernel_x, taps = channels * kernel;
    const Index halo = (g.kernel_y - 1) * g.dilation_y + 1 - g.stride_y;
    const Index pitch = g.columns + (g.kernel_x - 1) * g.dilation_x / g.stride_x;
    const Bands bands(g.rows, g.batch, team.threads, g.channels * pitch * g.stride_x * sizeof(T), halo, g.stride_y);
    const Source source{g.channels, bands.high * g.stride_y + halo, g.stride_x, pitch, -g.pad_x};
    const Index stripe = larger(1, smaller(bands.high, STRIPE / g.columns));  // rows

    // Each chunk of the batch has sums of its own: more chunks than threads even out the load, few keep them small.
    const Index size = g.groups * padded * (taps + 1), pieces = g.batch * bands.count;
    const Index few = team.threads, many = smaller(4 * few, 4194304 / size);
    const Index chunks = smaller(pieces, larger(few, many));

    Index *offsets;
    T *sums, *copies, *turned;
    const Index copy = source.size() + source.SPARE, turn = stripe * g.columns * 2 * L;
    const bool laid_out = lay_out(team, [&](Room &room) {
        offsets = room.take<Index>(taps);
        sums = room.take<T>(chunks * size);
        copies = room.take<T>(team.threads * copy);
        turned = room.take<T>(team.threads * turn);
    });
    if (!laid_out) return false;
    for (Index k = 0; k < taps; k++) {
        const Index y = k / g.kernel_x % g.kernel_y, x = k % g.kernel_x;
        offsets[k] = source.offset(k / kernel, y * g.dilation_y, x * g.dilation_x);
    }
    const Index plane = g.rows * g.columns;
    parallel(team, chunks, [&](Index chunk, int worker) {
        T *mine = copies + worker * copy, *g_turned = turned + worker * turn, *chunk_sums = sums + chunk * size;
        std::memset(chunk_sums, 0, size * sizeof(T));
        for (Index piece = pieces * chunk / chunks; piece < pieces * (chunk + 1) / chunks; piece++) {
            const Index image = piece / bands.count, begin = piece % bands.count * bands.high;
            const Index end = smaller(g.rows, begin + bands.high);
            source.fill(mine, input + image * g.channels * g.height * g.width, g.height, g.width,
                        begin * g.stride_y - g.pad_y);
            for (Index row = begin; row < end; row += stripe) {
                const Index rows = smaller(stripe, end - row);
                const T *pixels = mine + (row - begin) * g.stride_y * source.row();
                T *to = chunk_sums;
                for (Index group = 0; group < g.groups; group++, pixels += channels * source.channel())
                    for (Index first = 0; first < filters; first += 2 * L) {
                        const Index here = smaller(2 * L, filters - first), vectors = divided_up(here, L);
                        const T *from = upstream + ((image * g.groups + group) * filters + first) * plane;
                        transpose<T, L, false, true>(from + row * g.columns, plane, g_turned, vectors * L, here,
                                                     rows * g.columns);
                        Way::run(vectors, pixels, offsets, taps, g.stride_y * source.row(), g_turned, rows, g.columns,
                                 to);
                        to += vectors * L * taps;
                        Way::add(vectors, g_turned, rows * g.columns, to);
                        to += vectors * L;
                    }
            }
        }
    });
    // The chunks are added up in their order, and the sums turned to where torch wants them.
    const Index blocks = divided_up(filters, 2 * L);
    parallel(team, g.groups * blocks, [&](Index task, int) {
        const Index group = task / blocks, first = task % blocks * 2 * L;
        const Index here = smaller(2 * L, filters - first), width = divided_up(here, L) * L;
        T *total = sums + (group * padded + first) * (taps + 1);
        for (Index chunk = 1; chunk < chunks; chunk++) {
            const T *part = total + chunk * size;
            for (Index i = 0; i < width * (taps + 1); i++) total[i] += part[i];
        }
        T *to = gradient + (group * filters + first) * taps;
        if (chunks) transpose<T, L, true, false>(total, width, to, taps, taps, here);
        else std::memset(to, 0, here * taps * sizeof(T));
        for (Index f = 0; f < here; f++) of_bias[group * filters + first + f] = chunks ? total[width * taps + f] : T(0);
    });
    return true;
}

// The same with images along the lanes: every chunk's sums are those of each lane.
template <class T>
bool weight_gradient_by_images(const Geometry &g, const T *upstream, const T *input, T *gradient, T *of_bias, Team &team) {
    constexpr int L = FULL<T>;
    const Index channels = g.channels / g.groups, filters = g.filters / g.groups;
    const Index kernel = g.kernel_y * g.kernel_x, taps = channels * kernel;
    const Index halo = (g.kernel_y - 1) * g.dilation_y + 1 - g.stride_y;
    const Index pitch = g.columns + (g.kernel_x - 1) * g.dilation_x / g.stride_x;
    const Index blocks = divided_up(g.batch, L);
    const Index bytes_of_row = (g.channels * pitch * g.stride_x * g.stride_y + g.filters * g.columns) * L * sizeof(T);
    const Bands bands(g.rows, blocks, team.threads, bytes_of_row, divided_up(halo, g.stride_y), 1);
    const ImageSource<T, L> source{g.channels, bands.high * g.stride_y + halo, g.stride_x, pitch, -g.pad_x};
    const ImageSource<T, L> above{g.filters, bands.high, 1, g.columns, 0};
    const Index size = g.filters * (taps + 1) * L, pieces = blocks * bands.count;
    const Index chunks = smaller(pieces, larger(team.threads, smaller(4 * team.threads, 4194304 / size)));

    Index *offsets;
    T *sums, *copies, *others;
    const bool laid_out = lay_out(team, [&](Room &room) {
        offsets = room.take<Index>(taps);
        sums = room.take<T>(chunks * size);
        copies = room.take<T>(team.threads * source.size());
        others = room.take<T>(team.threads * above.size());
    });
    if (!laid_out) return false;
    for (Index k = 0; k < taps; k++)
        offsets[k] = source.offset(k / kernel, k / g.kernel_x % g.kernel_y * g.dilation_y, k % g.kernel_x * g.dilation_x);
    const Index in = g.channels * g.height * g.width, out = g.filters * g.rows * g.columns;
    parallel(team, chunks, [&](Index chunk, int worker) {
        T *pixels = copies + worker * source.size(), *given = others + worker * above.size(), *of_chunk = sums + chunk * size;
        std::memset(of_chunk, 0, size * sizeof(T));
        for (Index piece = pieces * chunk / chunks; piece < pieces * (chunk + 1) / chunks; piece++) {
            const Index image = piece / bands.count * L, images = smaller(L, g.batch - image);
            const Index begin = piece % bands.count * bands.high, rows = smaller(bands.high, g.rows - begin);
            if (rows <= 0) continue;
            source.fill(pixels, input + image * in, g.height, g.width, begin * g.stride_y - g.pad_y, in, images);
            above.fill(given, upstream + image * out, g.rows, g.columns, begin, out, images);
            for (Index group = 0; group < g.groups; group++)
                ImageTaps<T, L>::run(source, pixels + group * channels * source.channel(), offsets, taps,
                                     g.stride_y * source.row(), given + group * filters * above.channel(), above.channel(),
                                     above.row(), filters, rows, g.columns, of_chunk + group * filters * (taps + 1) * L);
        }
    });
    parallel(team, g.filters, [&](Index filter, int) {
        const T *from = sums + filter * (taps + 1) * L;
        add_lanes<T, L>(from, chunks, size, gradient + filter * taps, taps);
        add_lanes<T, L>(from + taps * L, chunks, size, of_bias + filter, 1);
    });
    return true;
}

template <class T>
bool weight_gradient(const Geometry &g, const T *upstream, const T *input, T *gradient, T *of_bias, Team &team) {
    constexpr int WHOLE = FULL<T>, HALF = WHOLE > 2 ? WHOLE / 2 : WHOLE;
    const Index filters = g.filters / g.groups;
    const double whole = divided_up(filters, WHOLE) * width_time(true), half = divided_up(filters, HALF) * width_time(false);
    const Index full = divided_up(g.batch, WHOLE) * WHOLE;
    if (1.15 * filters * full / WHOLE < (whole < half ? whole : half) * g.batch)
        return weight_gradient_by_images<T>(g, upstream, input, gradient, of_bias, team);
    if (whole <= half)
        return weight_gradient_with<T, WHOLE>(g, upstream, input, gradient, of_bias, team);
    return weight_gradient_with<T, HALF>(g, upstream, input, gradient, of_bias, team);
}

}  // namespace ISA
