// Linear layers of a block of L images, whose numbers lie along the lanes: [feature][L].
//
// Weights are read as torch has them, one number for a whole vector: a block of outputs stays in registers while all
// inputs pass by, in both directions. The gradient of the weights is a sum over images, and has features along the lanes.
#pragma once

#include "image_lanes.hpp"

namespace ISA {

constexpr int LINEAR = 8;                                           // outputs of a block
constexpr int GRADIENTS = 6, WIDE = VECTOR_REGISTERS == 32 ? 4 : 2;  // filters and vectors of inputs, of their gradient

// to[b] = bias[b] + sum over terms of weights[b · of_output + term · of_term] · x[term], of L images each.
template <class T, int L, int B, bool TRANSPOSED>
void linear_block(const T *weights, Index step, const T *x, Index terms, const T *bias, T *to) {
    typedef Lanes<T, L> Lane;
    typename Lane::Vector sums[B];
    UNROLL for (int b = 0; b < B; b++) sums[b] = typename Lane::Vector{} + (bias ? bias[b] : T(0));
    for (Index t = 0; t < terms; t++, x += L, weights += TRANSPOSED ? step : 1) {
        auto value = Lane::load(x);
        hold(value);
        UNROLL for (int b = 0; b < B; b++) sums[b] += value * weights[TRANSPOSED ? b : b * step];
    }
    UNROLL for (int b = 0; b < B; b++) Lane::store(to + b * L, sums[b]);
}

// [filter][input] of weights; TRANSPOSED: `outputs` are the inputs of the layer, and `terms` its filters.
template <class T, int L, bool TRANSPOSED>
struct Linear {
    typedef void (*Block)(const T *, Index, const T *, Index, const T *, T *);

    template <int... B>
    static Block pick(Index outputs, std::integer_sequence<int, B...>) {
        static constexpr Block blocks[] = {linear_block<T, L, B + 1, TRANSPOSED>...};
        return blocks[outputs - 1];
    }

    static void run(const T *weights, const T *x, Index terms, const T *bias, Index outputs, T *to) {
        const Index blocks = divided_up(outputs, LINEAR), step = TRANSPOSED ? outputs : terms;
        for (Index block = 0; block < blocks; block++) {  // of nearly equal size
            const Index first = outputs * block / blocks, here = outputs * (block + 1) / blocks - first;
            pick(here, std::make_integer_sequence<int, LINEAR>())(weights + first * (TRANSPOSED ? 1 : step), step, x,
                                                                  terms, bias ? bias + first : nullptr, to + first * L);
        }
    }
};

// What the gradient of the weights of a linear layer is made of.
template <class T>
struct LinearSums {
    const T *upstream;  // [block of images][filter][L]
    const T *inputs;    // [image][pitch]
    Index filters, channels, pitch, images;
};

// W vectors of inputs of B filters: to[b · channels + input] = sum over images of upstream · input.
template <class T, int L, int B, int W>
void linear_gradient_block(const LinearSums<T> &s, Index filter, Index input, T *to) {
    typedef Lanes<T, L> Lane;
    typename Lane::Vector sums[B][W] = {};
    for (Index block = 0; block * L < s.images; block++) {
        const T *x = s.inputs + block * L * s.pitch + input, *g = s.upstream + (block * s.filters + filter) * L;
        for (Index image = smaller(L, s.images - block * L); image > 0; image--, x += s.pitch, g++) {
            typename Lane::Vector values[W];
            UNROLL for (int w = 0; w < W; w++) values[w] = Lane::load(x + w * L);
            UNROLL for (int b = 0; b < B; b++)
                UNROLL for (int w = 0; w < W; w++) sums[b][w] += values[w] * g[b * L];
        }
    }
    UNROLL for (int b = 0; b < B; b++)
        UNROLL for (int w = 0; w < W; w++) {
            const Index here = smaller(L, s.channels - input - w * L);
            if (here == L) {
                Lane::store(to + b * s.channels + w * L, sums[b][w]);
            } else {
                T line[L];
                Lane::store(line, sums[b][w]);
                std::memcpy(to + b * s.channels + w * L, line, here * sizeof(T));
            }
        }
}

template <class T, int L>
struct LinearGradient {
    typedef void (*Block)(const LinearSums<T> &, Index, Index, T *);

    template <int B, int... W>
    static Block pick(Index vectors, std::integer_sequence<int, W...>) {
        static constexpr Block blocks[] = {linear_gradient_block<T, L, B, W + 1>...};
        return blocks[vectors - 1];
    }

    template <int B = GRADIENTS>
    static Block block(Index filters, Index vectors) {
        if constexpr (B > 1)
            if (filters < B) return block<B - 1>(filters, vectors);
        return pick<B>(vectors, std::make_integer_sequence<int, WIDE>());
    }

    static Index tasks(Index filters) { return divided_up(filters, GRADIENTS); }

    static void run(const LinearSums<T> &s, Index task, T *of_weight, T *of_bias) {
        const Index first = s.filters * task / tasks(s.filters);
        const Index filters = s.filters * (task + 1) / tasks(s.filters) - first;
        const Index vectors = divided_up(s.channels, L), pieces = divided_up(vectors, WIDE);
        for (Index piece = 0; piece < pieces; piece++) {
            const Index from = vectors * piece / pieces, count = vectors * (piece + 1) / pieces - from;
            block(filters, count)(s, first, from * L, of_weight + first * s.channels + from * L);
        }
        add_lanes<T, L>(s.upstream + first * L, divided_up(s.images, L), s.filters * L, of_bias + first, filters);
    }
};

}  // namespace ISA
