// A stage of a network as one call: convolution, activation and pooling, with images along the lanes.
//
// A block of L images goes through all three, and back again, while what lies in between stays in its thread's cache:
//
//     input  ->  lanes  ->  sums, activated  ->  pooled  ->  output
//                           kept for the gradient
//
// In between nothing is transposed, nothing is written in another order, and threads meet once.
#pragma once

#include "image_lanes.hpp"
#include "pooling.hpp"

namespace ISA {

constexpr Index STAGE = 3 << 19;  // bytes of a block: of a second-level cache, or somewhat more

// What a stage consists of, from its sizes.
template <class T>
struct StagePlan {
    static constexpr int L = FULL<T>;

    Stage s;
    Index channels, filters, kernel, taps;    // of a group
    Index blocks, input, plane, pooled;       // numbers: blocks of images; pixels of an image, a plane, a pooled image
    ImageSource<T, L> source;                 // a block of the input
    Index below, halo_y, halo_x;              // rows and columns of zeros around an upstream gradient
    ImageSource<T, L> upstream;               // a block of it

    explicit StagePlan(const Stage &stage)
        : s(stage), channels(s.conv.channels / s.conv.groups), filters(s.conv.filters / s.conv.groups),
          kernel(s.conv.kernel_y * s.conv.kernel_x), taps(channels * kernel), blocks(divided_up(s.conv.batch, L)),
          input(s.conv.channels * s.conv.height * s.conv.width), plane(s.conv.rows * s.conv.columns),
          pooled(s.conv.filters * s.rows * s.columns),
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

    // Numbers that are kept for the gradient: the activations of a mean, the pooled ones of a maximum.
    Index kept() const { return blocks * (s.maximum ? pooled : s.conv.filters * plane) * L; }
    Index bytes() const { return (source.size() + s.conv.filters * plane * L + upstream.size()) * sizeof(T); }

    Index images(Index block) const { return smaller(L, s.conv.batch - block * L); }
};

// Call f(first row, first column, pooled position) for every window of a plane.
template <class F>
INLINE void each_window(const Stage &s, const F &f) {
    for (Index i = 0; i < s.rows; i++)
        for (Index j = 0; j < s.columns; j++) f(i * s.stride_y, j * s.stride_x, i * s.columns + j);
}

// A stage is worth it where a batch fills the lanes, and a block stays in the cache of a core. Every sum must be in a
// window: the gradient of others is not zero where they are no number.
template <class T>
int64_t stage_kept(const Stage &s) {
    const StagePlan<T> plan(s);
    const double images = double(s.conv.batch) / (plan.blocks * plan.L);
    const bool covered = s.stride_y <= s.pool_y && s.stride_x <= s.pool_x &&
                         (s.rows - 1) * s.stride_y + s.pool_y == s.conv.rows &&
                         (s.columns - 1) * s.stride_x + s.pool_x == s.conv.columns;
    return covered && images > 0.6 && plan.bytes() <= STAGE ? plan.kept() : 0;
}

template <class T>
bool stage_forward(const Stage &s, const T *input, const T *weight, const T *bias, T *output, T *kept, uint16_t *places,
                   Team &team) {
    typedef StagePlan<T> Plan;
    constexpr int L = Plan::L;
    typedef Lanes<T, L> Lane;
    typedef typename Lanes<Place<T>, L>::Vector Places;
    typedef ImageLanes<T, L> Way;
    const Plan plan(s);
    const Geometry &g = s.conv;
    Index *offsets, *reaches;
    T *packed, *biases, *copies, *sums, *outputs;
    const bool laid_out = lay_out(team, [&](Room &room) {
        offsets = room.take<Index>(plan.taps);
        reaches = room.take<Index>(g.kernel_y);
        packed = room.take<T>(g.groups * plan.filters * plan.taps);
        biases = room.take<T>(g.filters);
        copies = room.take<T>(team.threads * plan.source.size());
        sums = room.take<T>(team.threads * g.filters * plan.plane * L);
        outputs = room.take<T>(team.threads * (plan.pooled + L) * L);
    });
    if (!laid_out) return false;
    for (Index y = 0; y < g.kernel_y; y++) reaches[y] = y * g.dilation_y - g.pad_y;
    // the taps in the order of the weights, row by row of the kernel
    Index *order = offsets;
    for (Index k = 0; k < plan.taps; k++) {
        const Index y = k / (plan.channels * g.kernel_x), c = k / g.kernel_x % plan.channels, x = k % g.kernel_x;
        order[k] = plan.source.offset(c, y * g.dilation_y, x * g.dilation_x);
    }
    for (Index group = 0; group < g.groups; group++)
        Way::pack(packed + group * plan.filters * plan.taps, plan.filters, plan.taps, [&](Index f, Index k) {
            const Index y = k / (plan.channels * g.kernel_x), c = k / g.kernel_x % plan.channels, x = k % g.kernel_x;
            return weight[((group * plan.filters + f) * plan.channels + c) * plan.kernel + y * g.kernel_x + x];
        });
    for (Index f = 0; f < g.filters; f++) biases[f] = bias ? bias[f] : T(0);
    const Correlation<T> c{g.groups, plan.channels, plan.filters, plan.taps, offsets,
                           g.kernel_y, reaches, g.stride_y, g.height, packed, plan.filters * plan.taps, biases,
                           plan.filters, g.rows, g.columns, g.stride_y * plan.source.row(), plan.source.column(),
                           plan.source.channel(), g.columns * L, L, plan.plane * L, 0,
                           g.activation == RELU ? T(0) : -T(__builtin_huge_val()),
                           g.activation > RELU ? g.activation : NONE};
    parallel(team, plan.blocks, [&](Index block, int worker) {
        T *copy = copies + worker * plan.source.size(), *pooled = outputs + worker * (plan.pooled + L) * L;
        T *activated = sums + worker * g.filters * plan.plane * L, *of_windows = pooled;
        if (s.maximum) of_windows = kept ? kept + block * plan.pooled * L : pooled;
        else if (kept) activated = kept + block * g.filters * plan.plane * L;
        plan.source.fill(copy, input + block * L * plan.input, g.height, g.width, -g.pad_y, plan.input, plan.images(block));
        Way::sums(c, copy, activated);
        for (Index f = 0; f < g.filters; f++) {
            const T *plane = activated + f * plan.plane * L;
            T *to = of_windows + f * s.rows * s.columns * L;
            uint16_t *chosen = places ? places + (block * plan.pooled + f * s.rows * s.columns) * L : nullptr;
            each_window(s, [&](Index row, Index column, Index at) {
                const T *first = plane + (row * g.columns + column) * L;
                if (s.maximum) {
                    auto best = Lane::load(first);
                    Places choice = {};
                    for (Index k = 1; k < s.pool_y * s.pool_x; k++)
                        choose(Lane::load(first + (k / s.pool_x * g.columns + k % s.pool_x) * L),
                               Places{} + static_cast<Place<T>>(k), best, choice);
                    Lane::store(to + at * L, best);
                    if (chosen) store_places<T, L>(chosen + at * L, choice);
                    return;
                }
                auto sum = typename Lane::Vector{};
                for (Index u = 0; u < s.pool_y; u++)
                    for (Index v = 0; v < s.pool_x; v++) sum += Lane::load(first + (u * g.columns + v) * L);
                Lane::store(to + at * L, sum / T(s.pool_y * s.pool_x));
            });
        }
        put_images<T, L>(of_windows, plan.pooled, output + block * L * plan.pooled, 1, plan.pooled, plan.images(block));
    });
    return true;
}

// `gradient` may be null: an image that needs none.
template <class T>
bool stage_gradients(const Stage &s, const T *upstream, const T *input, const T *weight, const T *kept,
                     const uint16_t *places, T *gradient, T *of_weight, T *of_bias, Team &team) {
    typedef StagePlan<T> Plan;
    constexpr int L = Plan::L;
    typedef Lanes<T, L> Lane;
    typedef typename Lanes<Place<T>, L>::Vector Places;
    typedef ImageLanes<T, L> Way;
    const Plan plan(s);
    const Geometry &g = s.conv;
    const Index chunks = smaller(plan.blocks, 4 * team.threads), size = g.filters * (plan.taps + 1) * L;
    const ImageSource<T, L> from{1, 1, 1, plan.pooled, 0};  // an image of one row
    const Index taps = plan.filters * plan.kernel;         // of the gradient of the input
    Index *offsets, *of_input, *reaches;
    T *packed, *biases, *copies, *given, *upstreams, *pixels, *sums;
    const bool laid_out = lay_out(team, [&](Room &room) {
        offsets = room.take<Index>(plan.taps);
        of_input = room.take<Index>(taps);
        reaches = room.take<Index>(g.kernel_y);
        packed = room.take<T>(gradient ? g.channels * taps : 0);
        biases = room.take<T>(g.channels);
        copies = room.take<T>(team.threads * plan.source.size());
        given = room.take<T>(team.threads * from.size());
        upstreams = room.take<T>(team.threads * plan.upstream.size());
        pixels = room.take<T>(gradient ? team.threads * (plan.input + L) * L : 0);
        sums = room.take<T>(chunks * size);
    });
    if (!laid_out) return false;
    std::memset(biases, 0, g.channels * sizeof(T));
    std::memset(upstreams, 0, team.threads * plan.upstream.size() * sizeof(T));  // the zeros around stay
    for (Index k = 0; k < plan.taps; k++)
        offsets[k] = plan.source.offset(k / plan.kernel, k / g.kernel_x % g.kernel_y * g.dilation_y,
                                        k % g.kernel_x * g.dilation_x);
    // pixel (p, q) of the input sees output (p + pad_y - y · dilation_y, ...) by tap (y, x)
    for (Index y = 0; y < g.kernel_y; y++) reaches[y] = g.pad_y - y * g.dilation_y;
    const auto tap_of = [&](Index k, Index &y, Index &f, Index &x) {
        y = k / (plan.filters * g.kernel_x), f = k / g.kernel_x % plan.filters, x = k % g.kernel_x;
    };
    for (Index k = 0, y, f, x; k < taps; k++) {
        tap_of(k, y, f, x);
        of_input[k] = plan.upstream.offset(f, plan.halo_y + g.pad_y - y * g.dilation_y,
                                           plan.halo_x + g.pad_x - x * g.dilation_x);
    }
    if (gradient)
        for (Index group = 0; group < g.groups; group++)
            Way::pack(packed + group * plan.channels * taps, plan.channels, taps, [&](Index c, Index k) {
                Index y, f, x;
                tap_of(k, y, f, x);
                return weight[((group * plan.filters + f) * plan.channels + c) * plan.kernel + y * g.kernel_x + x];
            });
    const Correlation<T> c{g.groups, plan.filters, plan.channels, taps, of_input, g.kernel_y, reaches, 1, g.rows,
                           packed, plan.channels * taps, biases, plan.channels, g.height, g.width,
                           plan.upstream.row(), L, plan.upstream.channel(), g.width * L, L, g.height * g.width * L, 0,
                           -T(__builtin_huge_val()), NONE};
    const bool apart = s.pool_y == s.stride_y && s.pool_x == s.stride_x;  // windows, none of which shares a sum
    const T share = T(1) / T(s.pool_y * s.pool_x);
    parallel(team, chunks, [&](Index chunk, int worker) {
        T *copy = copies + worker * plan.source.size(), *up = given + worker * from.size();
        T *inner = upstreams + worker * plan.upstream.size();
        inner += plan.upstream.offset(0, plan.halo_y, plan.halo_x);
        T *of_chunk = sums + chunk * size;
        std::memset(of_chunk, 0, size * sizeof(T));
        for (Index block = plan.blocks * chunk / chunks; block < plan.blocks * (chunk + 1) / chunks; block++) {
            const Index images = plan.images(block);
            from.fill(up, upstream + block * L * plan.pooled, 1, plan.pooled, 0, plan.pooled, images);
            for (Index f = 0; f < g.filters; f++) {
                T *plane = inner + f * plan.upstream.channel();
                const Index row_ = plan.upstream.row();
                if (!apart)
                    for (Index r = 0; r < g.rows; r++) std::memset(plane + r * row_, 0, g.columns * L * sizeof(T));
                const T *above = up + f * s.rows * s.columns * L;
                with_activation_or_none(g.activation, [&](auto a) {
                    constexpr Index A = a;
                    if (s.maximum) {
                        const T *largest = kept + (block * plan.pooled + f * s.rows * s.columns) * L;
                        const uint16_t *chosen = places + (block * plan.pooled + f * s.rows * s.columns) * L;
                        each_window(s, [&](Index row, Index column, Index at) {
                            const auto value = handed_back<T, Plan::L, A>(Lane::load(above + at * L), Lane::load(largest + at * L));
                            const Places choice = __builtin_convertvector(Lanes<uint16_t, L>::load(chosen + at * L), Places);
                            T *first = plane + row * row_ + column * L;
                            for (Index k = 0; k < s.pool_y * s.pool_x; k++) {
                                T *place = first + k / s.pool_x * row_ + k % s.pool_x * L;
                                const auto mine = choice == static_cast<Place<T>>(k) ? value : typename Lane::Vector{};
                                Lane::store(place, apart ? mine : Lane::load(place) + mine);
                            }
                        });
                        return;
                    }
                    const T *activated = kept + (block * g.filters + f) * plan.plane * L;
                    each_window(s, [&](Index row, Index column, Index at) {
                        const auto value = Lane::load(above + at * L) * share;
                        for (Index u = 0; u < s.pool_y; u++)
                            for (Index v = 0; v < s.pool_x; v++) {
                                T *place = plane + (row + u) * row_ + (column + v) * L;
                                const auto y = Lane::load(activated + ((row + u) * g.columns + column + v) * L);
                                const auto mine = handed_back<T, Plan::L, A>(value, y);
                                Lane::store(place, apart ? mine : Lane::load(place) + mine);
                            }
                    });
                });
            }
            plan.source.fill(copy, input + block * L * plan.input, g.height, g.width, -g.pad_y, plan.input, images);
            for (Index group = 0; group < g.groups; group++)
                ImageTaps<T, L>::run(plan.source, copy + group * plan.channels * plan.source.channel(), offsets, plan.taps,
                                     g.stride_y * plan.source.row(), inner + group * plan.filters * plan.upstream.channel(),
                                     plan.upstream.channel(), plan.upstream.row(), plan.filters, g.rows, g.columns,
                                     of_chunk + group * plan.filters * (plan.taps + 1) * L);
            if (!gradient) continue;
            T *to = pixels + worker * (plan.input + L) * L;
            Way::sums(c, upstreams + worker * plan.upstream.size(), to);
            put_images<T, L>(to, plan.input, gradient + block * L * plan.input, 1, plan.input, images);
        }
    });
    parallel(team, g.filters, [&](Index filter, int) {
        const T *from_ = sums + filter * (plan.taps + 1) * L;
        add_lanes<T, L>(from_, chunks, size, of_weight + filter * plan.taps, plan.taps);
        add_lanes<T, L>(from_ + plan.taps * L, chunks, size, of_bias + filter, 1);
    });
    return true;
}

}  // namespace ISA
