// Activations in registers, and their slopes as functions of what came out.
//
// exp is Cody and Waite's: x = n·ln 2 + r with |r| < 0.35, a polynomial in r, and n put into the exponent's bits. Its
// errors are a unit of the last place or two, far below those of the sums that go in.
#pragma once

#include <type_traits>

#include "core.hpp"
#include "vectors.hpp"

namespace ISA {

enum Activation : Index { NONE, RELU, SIGMOID, TANH };

// Call f with the activation as a constant.
template <class F>
INLINE void with_activation(Index activation, const F &f) {
    if (activation == RELU) f(std::integral_constant<Index, RELU>());
    else if (activation == SIGMOID) f(std::integral_constant<Index, SIGMOID>());
    else if (activation == TANH) f(std::integral_constant<Index, TANH>());
}

template <class F>
INLINE void with_activation_or_none(Index activation, const F &f) {
    if (activation == NONE) f(std::integral_constant<Index, NONE>());
    else with_activation(activation, f);
}

template <class T>
struct Bits {  // of a number: where its exponent is
    typedef std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t> Whole;
    static constexpr int MANTISSA = sizeof(T) == 4 ? 23 : 52, BIAS = sizeof(T) == 4 ? 127 : 1023;
    static constexpr T SHIFT = T(3) * (Whole(1) << (MANTISSA - 1));  // added, it leaves a whole number in the low bits
    static constexpr T LEAST = sizeof(T) == 4 ? T(-87.3) : T(-708.3), MOST = sizeof(T) == 4 ? T(88.3) : T(709.0);
    // ln 2 in two parts, the first so short that its products with a whole number are exact
    static constexpr T HIGH = sizeof(T) == 4 ? T(0.693359375) : T(6.93145751953125e-1);
    static constexpr T LOW = sizeof(T) == 4 ? T(-2.12194440e-4) : T(1.42860682030941723212e-6);
};

template <class T, int L, class V = typename Lanes<T, L>::Vector>
INLINE V exponential(V x) {  // of a NaN, NaN
    typedef Bits<T> B;
    typedef typename Lanes<typename B::Whole, L>::Vector Wholes;
    x = x < B::LEAST ? V{} + B::LEAST : x;
    x = x > B::MOST ? V{} + B::MOST : x;
    const V shifted = x * T(1.44269504088896340736) + B::SHIFT, n = shifted - B::SHIFT;
    const V r = (x - n * B::HIGH) - n * B::LOW;
    V sum;
    if constexpr (sizeof(T) == 4) {  // the minimax polynomial of Moshier's Cephes
        sum = V{} + T(1.9875691500e-4);
        for (const T c : {T(1.3981999507e-3), T(8.3334519073e-3), T(4.1665795894e-2), T(1.6666665459e-1), T(5.0000001201e-1)})
            sum = sum * r + c;
    } else {  // Taylor's: the next term is below half a unit
        sum = V{} + T(1) / T(6227020800);
        UNROLL for (int k = 12; k >= 2; k--) {
            T factorial = 1;
            UNROLL for (int i = 2; i <= k; i++) factorial *= i;
            sum = sum * r + T(1) / factorial;
        }
    }
    const Wholes exponent = (reinterpret_cast<Wholes>(shifted) + B::BIAS) << B::MANTISSA;
    return (sum * r * r + r + T(1)) * reinterpret_cast<V>(exponent);
}

template <class T, int L, class V = typename Lanes<T, L>::Vector>
INLINE V hyperbolic_tangent(V x) {
    const V size = x < T(0) ? -x : x, square = x * x;
    const V far = T(1) - T(2) / (exponential<T, L>(size + size) + T(1));
    V near;  // Cephes again: an odd polynomial, a ratio of two for double
    if constexpr (sizeof(T) == 4) {
        near = V{} + T(-5.70498872745e-3);
        for (const T c : {T(2.06390887954e-2), T(-5.37397155531e-2), T(1.33314422036e-1), T(-3.33332819422e-1)})
            near = near * square + c;
    } else {
        const V above = (T(-9.64399179425052238628e-1) * square + T(-9.92877231001918586564e1)) * square +
                        T(-1.61468768441708447952e3);
        const V below = ((square + T(1.12811678491632931402e2)) * square + T(2.23548839060100448583e3)) * square +
                        T(4.84406305325125486048e3);
        near = above / below;
    }
    near = near * square * x + x;
    return size < T(0.625) ? near : x < T(0) ? -far : far;
}

template <class T, int L, Index ACTIVATION, class V = typename Lanes<T, L>::Vector>
INLINE V activated(V x) {
    if constexpr (ACTIVATION == RELU) return x <= T(0) ? V{} : x;  // a NaN stays one
    else if constexpr (ACTIVATION == SIGMOID) {
        const V y = T(1) / (T(1) + exponential<T, L>(-x));
        return x < -Bits<T>::MOST ? V{} : y;  // exp ends at a number: what follows must be 0, and its slope too
    } else return hyperbolic_tangent<T, L>(x);
}

// upstream times the slope, of which y = f(x) tells; as torch has it, all of it where y is no number.
template <class T, int L, Index ACTIVATION, class V = typename Lanes<T, L>::Vector>
INLINE V handed_back(V upstream, V y) {
    if constexpr (ACTIVATION == NONE) return upstream;
    else if constexpr (ACTIVATION == RELU) return y <= T(0) ? V{} : upstream;
    else if constexpr (ACTIVATION == SIGMOID) return upstream * ((T(1) - y) * y);
    else return upstream * (T(1) - y * y);
}

// to[i] = f(from[i], others[i]), in vectors; any of them may be the same memory.
template <class T, class F>
INLINE void each_vector(const T *from, const T *others, T *to, Index count, const F &f) {
    constexpr int L = FULL<T>;
    typedef Lanes<T, L> Lane;
    Index i = 0;
    for (; i + L <= count; i += L) Lane::store(to + i, f(Lane::load(from + i), Lane::load(others + i)));
    if (i == count) return;
    T one[L] = {}, other[L] = {};
    std::memcpy(one, from + i, (count - i) * sizeof(T));
    std::memcpy(other, others + i, (count - i) * sizeof(T));
    Lane::store(one, f(Lane::load(one), Lane::load(other)));
    std::memcpy(to + i, one, (count - i) * sizeof(T));
}

template <class T>
__attribute__((noinline)) void activate(Index activation, const T *from, T *to, Index count) {
    with_activation(activation, [&](auto a) {
        constexpr Index A = a;
        each_vector(from, from, to, count, [](auto x, auto) { return activated<T, FULL<T>, A>(x); });
    });
}

// to = upstream · f'(x), where `outputs` are f(x).
template <class T>
__attribute__((noinline)) void hand_back(Index activation, const T *upstream, const T *outputs, T *to, Index count) {
    with_activation(activation, [&](auto a) {
        constexpr Index A = a;
        each_vector(upstream, outputs, to, count, [](auto g, auto y) { return handed_back<T, FULL<T>, A>(g, y); });
    });
}

template <class F>
void parallel(const Team &team, Index tasks, const F &f) {
    team.run(tasks, [](void *context, Index task, int worker) { (*static_cast<const F *>(context))(task, worker); },
             const_cast<F *>(&f));
}

template <class T>
bool activation_gradient(const Elements &e, const T *upstream, const T *outputs, T *gradient, Team &team) {
    constexpr Index PIECE = 16384;
    parallel(team, divided_up(e.count, PIECE), [&](Index task, int) {
        const Index first = task * PIECE;
        hand_back(e.activation, upstream + first, outputs + first, gradient + first, smaller(PIECE, e.count - first));
    });
    return true;
}

}  // namespace ISA
