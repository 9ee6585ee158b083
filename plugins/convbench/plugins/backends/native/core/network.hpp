// Stages and linear layers of a network, one after the other, as one call: a block of L images goes through all of
// them, and back again, while what lies in between stays in its thread's cache.
//
//     input  ->  lanes  ->  stage  ->  ...  ->  linear  ->  ...  ->  output
//                           each keeps for the gradient what it needs
//
// A linear layer is a `Stage`, too: a convolution of one pixel. Between two layers the numbers of a block are laid out
// as the next one reads them, with its padding. Threads meet once in the forward pass, and twice in the backward pass.
#pragma once

#include "linear.hpp"
#include "sizes.hpp"
#include "stage.hpp"

namespace ISA {

// A layer, and where in a block of what is kept its parts begin.
template <class T>
struct Layer : StagePlan<T> {
    static constexpr int L = FULL<T>;
    bool linear;
    Index values, size;         // of its output, as the next layer reads it
    Index activated, places;    // of a mean, of a maximum

    Layer() = default;
    explicit Layer(const Stage &stage) : StagePlan<T>(stage), linear(is_linear(stage)) {}

    bool max() const { return this->s.maximum; }
    Index weights() const { return this->s.conv.filters * this->taps; }
    Index pitch() const { return divided_up(this->input, L) * L; }  // of an image whose numbers lie in a row
};

template <class T>
struct NetworkPlan {
    static constexpr int L = FULL<T>;

    Index layers, batch, blocks, kept;  // kept: numbers of a block
    Layer<T> layer[MOST_LAYERS];

    explicit NetworkPlan(const Network &n) : layers(n.layers), batch(n.layer[0].conv.batch), blocks(divided_up(batch, L)), kept(0) {
        const auto take = [&](Index numbers) { return kept += divided_up(numbers, L) * L, kept - divided_up(numbers, L) * L; };
        for (Index i = 0; i < layers; i++) layer[i] = Layer<T>(n.layer[i]);
        for (Index i = 0; i < layers; i++) {
            Layer<T> &l = layer[i];
            l.size = i + 1 < layers ? layer[i + 1].source.size() : l.pooled * L;
            l.values = take(is_read(i) ? l.size : 0);
            l.activated = take(l.max() || l.linear ? 0 : l.s.conv.filters * l.plane * L);
            l.places = take(l.max() ? divided_up(l.pooled * L * sizeof(uint16_t), sizeof(T)) : 0);
        }
    }

    // Whether the output of a layer is read again, by the next one or for a gradient.
    bool is_read(Index i) const {
        const Layer<T> &l = layer[i];
        return i + 1 < layers || l.max() || (l.linear && l.s.conv.activation);
    }

    Index images(Index block) const { return smaller(L, batch - block * L); }

    // The output of a layer, where the next one reads it.
    Pixels<T> output(Index i, T *values) const {
        const Layer<T> &l = layer[i];
        if (i + 1 < layers && !layer[i + 1].linear) return layer[i + 1].inside(values);
        return {values, l.s.rows * l.s.columns * L, l.s.columns * L};
    }

    // The most that `of` says of a layer.
    template <class F>
    Index most(const F &of) const {
        Index found = 0;
        for (Index i = 0; i < layers; i++) found = larger(found, of(layer[i]));
        return found;
    }
};

// It is worth it where a batch fills the lanes, a block stays in the cache of a core, and the weights of linear layers
// do, which every block reads.
template <class T>
int64_t network_kept(const Network &n) {
    const NetworkPlan<T> plan(n);
    Index weights = 0;
    for (Index i = 0; i < plan.layers; i++) {
        const Layer<T> &l = plan.layer[i];
        if (!l.covered() || l.bytes() > STAGE) return 0;
        if (l.linear) weights += l.weights() * sizeof(T);
    }
    const double images = double(plan.batch) / (plan.blocks * plan.L);
    return images > 0.6 && weights <= STAGE && plan.kept <= MANY / plan.blocks ? plan.blocks * plan.kept : 0;
}

// Zeros for lanes without an image: what comes out of them may be no number.
template <class T, int L>
void clear_others(T *values, Index count, Index images) {
    for (Index i = 0; images < L && i < count; i += L)
        for (Index l = images; l < L; l++) values[i + l] = T(0);
}

template <class T>
bool network_forward(const Network &n, const T *input, const T *const *parameters, T *output, T *kept, Team &team) {
    constexpr int L = FULL<T>;
    const NetworkPlan<T> plan(n);
    const Layer<T> &first = plan.layer[0], &last = plan.layer[plan.layers - 1];
    Index *offsets[MOST_LAYERS], *reaches[MOST_LAYERS], *order;
    T *packed[MOST_LAYERS], *biases, *copies, *sums, *outputs;
    const Index source = first.source.size();
    const Index activated = plan.most([](auto &l) { return l.max() ? l.s.conv.filters * l.plane * L : 0; });
    const Index filters = plan.most([](auto &l) { return l.s.conv.filters; });
    const bool laid_out = lay_out(team, [&](Room &room) {
        for (Index i = 0; i < plan.layers; i++) {
            const Layer<T> &l = plan.layer[i];
            offsets[i] = room.take<Index>(l.linear ? 0 : l.taps);
            reaches[i] = room.take<Index>(l.s.conv.kernel_y + l.s.conv.kernel_x);
            packed[i] = room.take<T>(l.linear ? 0 : l.weights());
        }
        order = room.take<Index>(plan.most([](auto &l) { return l.taps; }));
        biases = room.take<T>(filters);
        copies = room.take<T>(team.threads * source);
        sums = room.take<T>(team.threads * activated);
        outputs = room.take<T>(team.threads * last.size);
    });
    if (!laid_out) return false;
    std::memset(biases, 0, filters * sizeof(T));
    Correlation<T> c[MOST_LAYERS];
    for (Index i = 0; i < plan.layers; i++) {
        const T *bias = parameters[2 * i + 1] ? parameters[2 * i + 1] : biases;
        if (!plan.layer[i].linear)
            c[i] = plan.layer[i].forward(parameters[2 * i], bias, offsets[i], reaches[i], order, packed[i]);
    }
    parallel(team, plan.blocks, [&](Index block, int worker) {
        const Geometry &g = first.s.conv;
        const Index images = plan.images(block);
        T *of_block = kept + block * plan.kept, *x = copies + worker * source;
        first.source.fill(x, input + block * L * first.input, g.height, g.width, -g.pad_y, first.input, images);
        for (Index i = 0; i < plan.layers; i++) {
            const Layer<T> &l = plan.layer[i];
            T *values = plan.is_read(i) ? of_block + l.values : outputs + worker * last.size;
            if (l.linear) {
                const Index activation = l.s.conv.activation, filters = l.s.conv.filters;
                Linear<T, L, false>::run(parameters[2 * i], x, l.taps, parameters[2 * i + 1], filters, values);
                activate(activation, values, values, filters * L);
            } else {
                T *activated_ = l.max() ? sums + worker * activated : of_block + l.activated;
                if (l.size > l.pooled * L) std::memset(values, 0, l.size * sizeof(T));
                ImageLanes<T, L>::sums(c[i], x, activated_);
                l.pool(activated_, plan.output(i, values), reinterpret_cast<uint16_t *>(of_block + l.places));
            }
            if (i + 1 < plan.layers) clear_others<T, L>(values, l.size, images);
            x = values;
        }
        put_images<T, L>(x, last.pooled, output + block * L * last.pooled, 1, last.pooled, images);
    });
    return true;
}

// `gradient` may be null: an image that needs none. `gradients` are those of the parameters.
template <class T>
bool network_gradients(const Network &n, const T *upstream, const T *input, const T *const *parameters, const T *kept,
                       T *gradient, T *const *gradients, Team &team) {
    constexpr int L = FULL<T>;
    const NetworkPlan<T> plan(n);
    const Layer<T> &first = plan.layer[0], &last = plan.layer[plan.layers - 1];
    const Index chunks = smaller(plan.blocks, 4 * team.threads), source = first.source.size();
    const Index numbers = plan.most([](auto &l) { return larger(l.input, l.pooled); }) * L;
    const Index most_channels = plan.most([](auto &l) { return l.s.conv.channels; });
    Index *offsets[MOST_LAYERS], *back_offsets[MOST_LAYERS], *reaches[MOST_LAYERS], *order;
    T *packed[MOST_LAYERS], *inner[MOST_LAYERS], *sums[MOST_LAYERS], *inputs[MOST_LAYERS], *given[MOST_LAYERS];
    T *zeros, *copies, *passed;
    bool *ready;
    const auto of_chunk = [&](const Layer<T> &l) { return l.s.conv.filters * (l.taps + 1) * L; };
    const bool laid_out = lay_out(team, [&](Room &room) {
        for (Index i = 0; i < plan.layers; i++) {
            const Layer<T> &l = plan.layer[i];
            const Index convolved = !l.linear, back = convolved && (i || gradient);
            offsets[i] = room.take<Index>(convolved * l.taps);
            back_offsets[i] = room.take<Index>(back * l.taps_of_input);
            reaches[i] = room.take<Index>(back * (l.s.conv.kernel_y + l.s.conv.kernel_x));
            packed[i] = room.take<T>(back * l.weights());
            inner[i] = room.take<T>(convolved * team.threads * l.upstream.size());
            sums[i] = room.take<T>(convolved * chunks * of_chunk(l));
            inputs[i] = room.take<T>(l.linear * plan.blocks * L * l.pitch());
            given[i] = room.take<T>(l.linear * plan.blocks * L * l.s.conv.filters);
        }
        order = room.take<Index>(plan.most([](auto &l) { return l.taps_of_input; }));
        zeros = room.take<T>(most_channels);
        copies = room.take<T>(team.threads * source);
        passed = room.take<T>(2 * team.threads * numbers);
        ready = room.take<bool>(team.threads);
    });
    if (!laid_out) return false;
    std::memset(zeros, 0, most_channels * sizeof(T));
    std::memset(ready, 0, team.threads);
    Correlation<T> c[MOST_LAYERS];
    Index tasks = 0, first_task[MOST_LAYERS];
    for (Index i = 0; i < plan.layers; i++) {
        const Layer<T> &l = plan.layer[i];
        first_task[i] = tasks;
        tasks += l.linear ? LinearGradient<T, L>::tasks(l.s.conv.filters) : l.s.conv.filters;
        if (l.linear) continue;
        l.offsets_of_weights(offsets[i]);
        if (i || gradient) c[i] = l.backward(parameters[2 * i], zeros, back_offsets[i], reaches[i], order, packed[i]);
    }
    parallel(team, chunks, [&](Index task, int worker) {
        const Index chunk = chunks - 1 - task;
        for (Index i = 0; i < plan.layers; i++) {
            const Layer<T> &l = plan.layer[i];
            if (l.linear) continue;
            if (!ready[worker]) l.clear_around(inner[i] + worker * l.upstream.size());
            std::memset(sums[i] + chunk * of_chunk(l), 0, of_chunk(l) * sizeof(T));
        }
        ready[worker] = true;
        const Index begin = plan.blocks * chunk / chunks, end = plan.blocks * (chunk + 1) / chunks;
        for (Index block = end - 1; block >= begin; block--) {  // what was written last is still in the cache
            const Index images = plan.images(block);
            const T *of_block = kept + block * plan.kept;
            T *up = passed + 2 * worker * numbers, *down = up + numbers, *copy = copies + worker * source;
            const ImageSource<T, L> from{1, 1, 1, last.pooled, 0};  // an image of one row
            from.fill(up, upstream + block * L * last.pooled, 1, last.pooled, 0, last.pooled, images);
            const Geometry &g = first.s.conv;
            first.source.fill(copy, input + block * L * first.input, g.height, g.width, -g.pad_y, first.input, images);
            for (Index i = plan.layers - 1; i >= 0; i--) {
                const Layer<T> &l = plan.layer[i];
                const T *x = i ? of_block + plan.layer[i - 1].values : copy, *values = of_block + l.values;
                const Index filters = l.s.conv.filters;
                if (l.linear) {
                    T *ours = given[i] + block * filters * L;
                    std::memcpy(ours, up, filters * L * sizeof(T));
                    hand_back(l.s.conv.activation, up, values, ours, filters * L);
                    put_images<T, L>(x, l.input, inputs[i] + block * L * l.pitch(), 1, l.pitch(), images);
                    if (i || gradient) Linear<T, L, true>::run(parameters[2 * i], ours, filters, nullptr, l.input, down);
                } else {
                    T *mine = inner[i] + worker * l.upstream.size();
                    const Pixels<T> largest = plan.output(i, const_cast<T *>(values));
                    l.unpool(up, largest, reinterpret_cast<const uint16_t *>(of_block + l.places),
                             of_block + l.activated, mine);
                    l.add_weights(x, mine, offsets[i], sums[i] + chunk * of_chunk(l));
                    if (i || gradient) ImageLanes<T, L>::sums(c[i], mine, down);
                }
                std::swap(up, down);
            }
            if (gradient) put_images<T, L>(up, first.input, gradient + block * L * first.input, 1, first.input, images);
        }
    });
    parallel(team, tasks, [&](Index task, int) {
        Index i = plan.layers - 1;
        while (task < first_task[i]) i--;
        task -= first_task[i];
        const Layer<T> &l = plan.layer[i];
        T *of_weight = gradients[2 * i], *of_bias = gradients[2 * i + 1];
        if (l.linear) {
            const LinearSums<T> all{given[i], inputs[i], l.s.conv.filters, l.taps, l.pitch(), plan.batch};
            return LinearGradient<T, L>::run(all, task, of_weight, of_bias);
        }
        const T *from = sums[i] + task * (l.taps + 1) * L;
        add_lanes<T, L>(from, chunks, of_chunk(l), of_weight + task * l.taps, l.taps);
        add_lanes<T, L>(from + l.taps * L, chunks, of_chunk(l), of_bias + task, 1);
    });
    return true;
}

}  // namespace ISA
