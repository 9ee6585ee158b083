// A stage of a network: convolution, activation and pooling of a block of L images, which lie along the lanes.
//
//     source  ->  sums, activated  ->  pooled
//                 kept for the gradient
//
// In between nothing is transposed, and nothing is written in another order.
#pragma once

#include "image_lanes.hpp"
#include "pooling.hpp"

namespace ISA {

constexpr Index STAGE = 3 << 19;  // bytes of a block: of a second-level cache, or somewhat more

// Where the pixels of a block of images are: (y, x) of channel c at first + c · channel + y · row + x · L.
template <class T>
struct Pixels {
    T *first;
    Index channel, row;
};

// What a stage consists of, from its sizes.
template <class T>
struct StagePlan {
    static constexpr int L = FULL<T>;

    Stage s;
    Index channels, filters, kernel, taps;    // of a group
    Index taps_of_input;                      // of the gradient of the input
    Index input, plane, pooled;               // numbers of an image, a plane of sums, a pooled image
    ImageSource<T, L> source;                 // a block of the input
    Index below, halo_y, halo_x;              // rows and columns of zeros around an upstream gradient
    ImageSource<T, L> upstream;               // a block of it

    StagePlan() = default;
    explicit StagePlan(const Stage &stage)
        : s(stage), channels(s.conv.channels / s.conv.groups), filters(s.conv.filters / s.conv.groups),
          kernel(s.conv.kernel_y * s.conv.kernel_x), taps(channels * kernel), taps_of_input(filters * kernel),
          input(s.conv.channels * s.conv.height * s.conv.width),
          plane(s.conv.rows * s.conv.columns), pooled(s.conv.filters * s.rows * s.columns),
          source{s.conv.channels, (s.conv.rows - 1) * s.conv.stride_y + (s.conv.kernel_y - 1) * s.conv.dilation_y + 1,
                 s.conv.stride_x, s.conv.columns + (s.conv.kernel_x - 1) * s.conv.dilation_x / s.conv.stride_x,
                 -s.conv.pad_x} {
        const Geometry &g = s.conv;
        // pixel p sees the outputs p + pad - tap · dilation
        halo_y = larger(0, (g.kernel_y - 1) * g.dilation_y - g.pad_y);
        halo_x = larger(0, (g.kernel_x - 1) * g.dilation_x - g.pad_x);
        below = larger(0, g.height - 1 + g.pad_y - (g.rows - 1));
        const Index right = larger(0, g.width - 1 + g.pad_x - (g.columns - 1));
        upstream = {g.filters, halo_y + g.rows + below, 1, halo_x + g.columns + right, -halo_x};
    }

    Index bytes() const { return (source.size() + s.conv.filters * plane * L + upstream.size()) * sizeof(T); }

    // Every sum must be in a window: the gradient of others is not zero where they are no number.
    bool covered() const {
        return s.stride_y <= s.pool_y && s.stride_x <= s.pool_x &&
               (s.rows - 1) * s.stride_y + s.pool_y == s.conv.rows &&
               (s.columns - 1) * s.stride_x + s.pool_x == s.conv.columns;
    }

    // The image within a source that was padded.
    Pixels<T> inside(T *copy) const {
        return {copy + source.offset(0, s.conv.pad_y, s.conv.pad_x), source.channel(), source.row()};
    }

    // The convolution: `offsets` and `reaches` of its taps, of rows and then of columns, and `packed` weights are filled.
    Correlation<T> forward(const T *weight, const T *biases, Index *offsets, Index *reaches, Index *places,
                           T *packed) const {
        const Geometry &g = s.conv;
        Index tap = 0;
        for (Index y = 0; y < g.kernel_y; y++) {
            reaches[y] = y * g.dilation_y - g.pad_y;
            for (Index x = 0; x < g.kernel_x; x++) {
                reaches[g.kernel_y + x] = x * g.dilation_x - g.pad_x;
                for (Index c = 0; c < channels; c++, tap++) {
                    offsets[tap] = source.offset(c, y * g.dilation_y, x * g.dilation_x);
                    places[tap] = c * kernel + y * g.kernel_x + x;
                }
            }
        }
        for (Index group = 0; group < g.groups; group++) {
            const T *from = weight + group * filters * taps;
            ImageLanes<T, L>::pack(packed + group * filters * taps, filters, taps,
                                   [&](Index f, Index k) { return from[f * taps + places[k]]; });
        }
        return {g.groups, channels, filters, taps, offsets, g.kernel_y, reaches, g.stride_y, g.height,
                packed, filters * taps, biases, filters, g.rows, g.columns,
                g.stride_y * source.row(), source.column(), source.channel(),
                g.columns * L, L, plane * L, 0, g.activation == RELU ? T(0) : -T(__builtin_huge_val()),
                g.activation > RELU ? g.activation : NONE, {g.kernel_x, reaches + g.kernel_y, g.stride_x, g.width}};
    }

    // The gradient of its input, a convolution of the upstream one; likewise, with zeros for `biases`.
    Correlation<T> backward(const T *weight, const T *biases, Index *offsets, Index *reaches, Index *places,
                            T *packed) const {
        const Geometry &g = s.conv;
        Index tap = 0;
        // pixel (p, q) of the input sees output (p + pad_y - y · dilation_y, ...) by tap (y, x)
        for (Index y = 0; y < g.kernel_y; y++) {
            reaches[y] = g.pad_y - y * g.dilation_y;
            for (Index x = 0; x < g.kernel_x; x++) {
                reaches[g.kernel_y + x] = g.pad_x - x * g.dilation_x;
                for (Index f = 0; f < filters; f++, tap++) {
                    offsets[tap] = upstream.offset(f, halo_y + g.pad_y - y * g.dilation_y,
                                                   halo_x + g.pad_x - x * g.dilation_x);
                    places[tap] = f * taps + y * g.kernel_x + x;
                }
            }
        }
        for (Index group = 0; group < g.groups; group++) {
            const T *from = weight + group * filters * taps;
            ImageLanes<T, L>::pack(packed + group * channels * taps_of_input, channels, taps_of_input,
                                   [&](Index c, Index k) { return from[c * kernel + places[k]]; });
        }
        return {g.groups, filters, channels, taps_of_input, offsets, g.kernel_y, reaches, 1, g.rows,
                packed, channels * taps_of_input, biases, channels, g.height, g.width,
                upstream.row(), L, upstream.channel(), g.width * L, L, g.height * g.width * L, 0,
                -T(__builtin_huge_val()), NONE, {g.kernel_x, reaches + g.kernel_y, 1, g.columns}};
    }

    // Call f(first row, first column, row, column of the pooled one) for every window of a plane.
    template <class F>
    INLINE void each_window(const F &f) const {
        for (Index i = 0; i < s.rows; i++)
            for (Index j = 0; j < s.columns; j++) f(i * s.stride_y, j * s.stride_x, i, j);
    }

    // Pool what was activated; the places of maxima are kept as [filter][row][column][L].
    void pool(const T *activated, Pixels<T> to, uint16_t *places) const {
        typedef Lanes<T, L> Lane;
        typedef typename Lanes<Place<T>, L>::Vector Places;
        const Index row = s.conv.columns * L;
        for (Index f = 0; f < s.conv.filters; f++, activated += plane * L, to.first += to.channel)
            each_window([&](Index y, Index x, Index i, Index j) {
                const T *first = activated + y * row + x * L;
                T *place = to.first + i * to.row + j * L;
                if (s.maximum) {
                    auto best = Lane::load(first);
                    Places choice = {};
                    Place<T> k = 0;
                    for (Index u = 0; u < s.pool_y; u++)
                        for (Index v = 0; v < s.pool_x; v++, k++)
                            if (k) choose(Lane::load(first + u * row + v * L), Places{} + k, best, choice);
                    Lane::store(place, best);
                    store_places<T, L>(places + ((f * s.rows + i) * s.columns + j) * L, choice);
                    return;
                }
                auto sum = typename Lane::Vector{};
                for (Index u = 0; u < s.pool_y; u++)
                    for (Index v = 0; v < s.pool_x; v++) sum += Lane::load(first + u * row + v * L);
                Lane::store(place, sum / T(s.pool_y * s.pool_x));
            });
    }

    // The gradient of the sums of a convolution from that of what was pooled, [filter][row][column][L]. A maximum needs
    // what was pooled and its places, a mean what was activated; `to` is within zeros, which stay.
    void unpool(const T *above, Pixels<T> largest, const uint16_t *places, const T *activated, T *to) const {
        typedef Lanes<T, L> Lane;
        typedef typename Lanes<Place<T>, L>::Vector Places;
        const bool apart = s.pool_y == s.stride_y && s.pool_x == s.stride_x;  // windows, none of which shares a sum
        const T share = T(1) / T(s.pool_y * s.pool_x);
        const Index row = upstream.row(), window = s.rows * s.columns * L;
        to += upstream.offset(0, halo_y, halo_x);
        with_activation_or_none(s.conv.activation, [&](auto a) {
            constexpr Index A = a;
            for (Index f = 0; f < s.conv.filters; f++, to += upstream.channel(), above += window) {
                if (!apart)
                    for (Index r = 0; r < s.conv.rows; r++) std::memset(to + r * row, 0, s.conv.columns * L * sizeof(T));
                if (s.maximum) {
                    each_window([&](Index y, Index x, Index i, Index j) {
                        const Index at = (i * s.columns + j) * L;
                        const auto value = handed_back<T, L, A>(
                            Lane::load(above + at), Lane::load(largest.first + f * largest.channel + i * largest.row + j * L));
                        const Places choice = __builtin_convertvector(
                            Lanes<uint16_t, L>::load(places + f * window + at), Places);
                        T *first = to + y * row + x * L;
                        Place<T> k = 0;
                        for (Index u = 0; u < s.pool_y; u++)
                            for (Index v = 0; v < s.pool_x; v++, k++) {
                                T *place = first + u * row + v * L;
                                const auto mine = choice == k ? value : typename Lane::Vector{};
                                Lane::store(place, apart ? mine : Lane::load(place) + mine);
                            }
                    });
                    continue;
                }
                const T *ours = activated + f * plane * L;
                each_window([&](Index y, Index x, Index i, Index j) {
                    const auto value = Lane::load(above + (i * s.columns + j) * L) * share;
                    for (Index u = 0; u < s.pool_y; u++)
                        for (Index v = 0; v < s.pool_x; v++) {
                            T *place = to + (y + u) * row + (x + v) * L;
                            const T *output = ours + ((y + u) * s.conv.columns + x + v) * L;
                            __builtin_prefetch(output + s.stride_y * s.conv.columns * L);  // of the next windows
                            const auto mine = handed_back<T, L, A>(value, Lane::load(output));
                            Lane::store(place, apart ? mine : Lane::load(place) + mine);
                        }
                });
            }
        });
    }

    // The zeros around an upstream gradient.
    void clear_around(T *to) const {
        const Index row = upstream.row(), left = halo_x * L, right = left + s.conv.columns * L;
        for (Index f = 0; f < s.conv.filters; f++)
            for (Index r = 0; r < upstream.rows; r++, to += row) {
                const bool within = r >= halo_y && r < halo_y + s.conv.rows;
                std::memset(to, 0, (within ? left : row) * sizeof(T));
                if (within) std::memset(to + right, 0, (row - right) * sizeof(T));
            }
    }

    // Add a block's part to the sums of the gradient of the weights, [filter][tap in the order of weights, bias][L].
    void add_weights(const T *copy, const T *up, const Index *offsets, T *sums) const {
        const Geometry &g = s.conv;
        const T *inner = up + upstream.offset(0, halo_y, halo_x);
        for (Index group = 0; group < g.groups; group++)
            ImageTaps<T, L>::run(source, copy + group * channels * source.channel(), offsets, taps,
                                 g.stride_y * source.row(), inner + group * filters * upstream.channel(),
                                 upstream.channel(), upstream.row(), filters, g.rows, g.columns,
                                 sums + group * filters * (taps + 1) * L);
    }

    void offsets_of_weights(Index *offsets) const {
        const Geometry &g = s.conv;
        for (Index c = 0; c < channels; c++)
            for (Index y = 0; y < g.kernel_y; y++)
                for (Index x = 0; x < g.kernel_x; x++)
                    *offsets++ = source.offset(c, y * g.dilation_y, x * g.dilation_x);
    }
};

}  // namespace ISA
