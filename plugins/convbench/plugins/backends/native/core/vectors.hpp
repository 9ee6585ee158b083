// Short vectors in the width this file is compiled for, by the compiler's own vector extension: one source becomes
// SSE, AVX2, AVX-512 or NEON.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
#error "GCC 12 or newer is needed, or Clang: older ones have no __builtin_shufflevector"
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define VECTOR_REGISTERS 32
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define VECTOR_REGISTERS 16
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define VECTOR_REGISTERS 32
#else
#define VECTOR_BYTES 16
#define VECTOR_REGISTERS 16
#endif

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 64")  // loops over an array of registers, which must be gone when code is made

namespace ISA {  // a macro: each instruction set has copies of its own, which the linker must not mix

using Index = std::ptrdiff_t;

INLINE Index smaller(Index a, Index b) { return a < b ? a : b; }
INLINE Index larger(Index a, Index b) { return a > b ? a : b; }
INLINE Index divided_up(Index a, Index b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }
INLINE Index divided_down(Index a, Index b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
INLINE Index rest(Index a, Index b) { return a - divided_down(a, b) * b; }  // 0 to b-1, also for a below zero

// L elements of T in a register, and the same lying anywhere in memory.
template <class T, int L>
struct Lanes {
    typedef T Vector __attribute__((vector_size(L * sizeof(T))));
    typedef T Memory __attribute__((vector_size(L * sizeof(T)), aligned(alignof(T)), may_alias));

    static INLINE Vector load(const T *from) { return *reinterpret_cast<const Memory *>(from); }
    static INLINE void store(T *to, Vector value) { *reinterpret_cast<Memory *>(to) = value; }
};

// Have a value in a register from here on: GCC would rather load it again for each use, as an operand from memory.
template <class V>
INLINE void hold(V &value) {
    if constexpr (sizeof(V) >= 16) {
#if defined(__AVX512F__)
        __asm__("" : "+v"(value));
#elif defined(__x86_64__)
        __asm__("" : "+x"(value));
#elif defined(__aarch64__)
        __asm__("" : "+w"(value));
#endif
    }
}

// The elements 0, 2, 4, ... 2L-2 from an address on, and not one more: the second load ends with the last of them.
template <class T, int L, int... I>
INLINE typename Lanes<T, L>::Vector evens(const T *from, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(Lanes<T, L>::load(from), Lanes<T, L>::load(from + L - 1),
                                   (2 * I < L ? 2 * I : 2 * I + 1)...);
}

// a0 b0 a1 b1 ... to an address on.
template <class T, int L, int... I>
INLINE void store_zipped(T *to, typename Lanes<T, L>::Vector a, typename Lanes<T, L>::Vector b,
                         std::integer_sequence<int, I...>) {
    Lanes<T, L>::store(to, __builtin_shufflevector(a, b, (I % 2 * L + I / 2)...));
    Lanes<T, L>::store(to + L, __builtin_shufflevector(a, b, (I % 2 * L + L / 2 + I / 2)...));
}

// How many elements a whole register holds.
template <class T>
constexpr int FULL = VECTOR_BYTES / static_cast<int>(sizeof(T));

// Call f(L, j) with the widest vectors that a row has room for; the last one reaches back over its neighbour. What f
// does to elements j to j+L may be done twice.
template <class T, int L = FULL<T>, class F>
INLINE void in_vectors(Index begin, Index end, const F &f) {
    if (end - begin >= L) {
        for (Index j = begin; j < end; j += L) f(std::integral_constant<int, L>(), smaller(j, end - L));
    } else if constexpr (L > 2) {
        in_vectors<T, L / 2>(begin, end, f);
    } else {
        for (Index j = begin; j < end; j++) f(std::integral_constant<int, 1>(), j);
    }
}

// Eklundh's transposition of a square: for HALF = 1, 2, 4, ... exchange the off-diagonal quarters of every square of
// 2·HALF. L·log2(L) shuffles of two registers, where one element at a time would take L·L moves.
//
//     a0 a1 a2 a3        a0 b0 a2 b2        a0 b0 c0 d0
//     b0 b1 b2 b3   1    a1 b1 a3 b3   2    a1 b1 c1 d1
//     c0 c1 c2 c3  --->  c0 d0 c2 d2  --->  a2 b2 c2 d2
//     d0 d1 d2 d3        c1 d1 c3 d3        a3 b3 c3 d3
template <class T, int L>
struct Square {
    typedef typename Lanes<T, L>::Vector Vector;

    template <int HALF, int... I>
    static INLINE void exchange(Vector &a, Vector &b, std::integer_sequence<int, I...>) {
        const Vector above = __builtin_shufflevector(a, b, (I & HALF ? L + I - HALF : I)...);
        b = __builtin_shufflevector(a, b, (I & HALF ? L + I : I + HALF)...);
        a = above;
    }

    template <int HALF = 1>
    static INLINE void transpose(Vector (&rows)[L]) {
        UNROLL for (int i = 0; i < L; i++)
            if (!(i & HALF)) exchange<HALF>(rows[i], rows[i + HALF], std::make_integer_sequence<int, L>());
        if constexpr (2 * HALF < L) transpose<2 * HALF>(rows);
    }
};

// to[j·to_step + i] = from[i·from_step + j] for i < rows and j < columns, a square of L at a time.
// Where the last square hangs over, nothing outside of `from` is read unless FROM_PADDED says that whole vectors lie
// there, and nothing outside of `to` is written unless TO_PADDED says that whole vectors may, zeros where no row is.
template <class T, int L, bool FROM_PADDED, bool TO_PADDED>
void transpose(const T *from, Index from_step, T *to, Index to_step, Index rows, Index columns) {
    typedef Lanes<T, L> Lane;
    for (Index i = 0; i < rows; i += L)
        for (Index j = 0; j < columns; j += L) {
            const Index high = smaller(L, rows - i), wide = smaller(L, columns - j);
            const T *corner = from + i * from_step + j;
            T *target = to + j * to_step + i;
            typename Lane::Vector square[L];
            if (FROM_PADDED || wide == L) {
                UNROLL for (int k = 0; k < L; k++)
                    square[k] = k < high ? Lane::load(corner + k * from_step) : typename Lane::Vector{};
            } else {
                T copy[L * L] = {};
                for (Index k = 0; k < high; k++)
                    for (Index l = 0; l < wide; l++) copy[k * L + l] = corner[k * from_step + l];
                UNROLL for (int k = 0; k < L; k++) square[k] = Lane::load(copy + k * L);
            }
            Square<T, L>::transpose(square);
            if (TO_PADDED || high == L) {
                UNROLL for (int k = 0; k < L; k++)
                    if (k < wide) Lane::store(target + k * to_step, square[k]);
            } else {
                T copy[L * L];
                UNROLL for (int k = 0; k < L; k++) Lane::store(copy + k * L, square[k]);
                for (Index k = 0; k < wide; k++)
                    std::memcpy(target + k * to_step, copy + k * L, high * sizeof(T));
            }
        }
}

}  // namespace ISA
