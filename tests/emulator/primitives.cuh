// In place of the kernels' own primitives.cuh: the same functions, for a CPU, in plain C++.
//
// A block's threads are fibers of one thread of the machine. One runs until it waits for others, at a barrier or where
// the lanes of a warp do something together; then the next one does. Every other block runs them from last to first,
// and shared memory is full of NaN when a block starts, so that a barrier too few shows.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define KERNEL extern "C" void
#define SHARED_MEMORY(name) unsigned char *const name = emulated::shared.data()

struct alignas(16) float4 {
    float x, y, z, w;
};
struct Index {
    unsigned x = 0, y = 0, z = 0;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

using std::max;
using std::min;
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }
static inline float as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
static inline unsigned as_bits(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

// --- fibers --------------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
extern "C" void switch_stacks(void **from, void *to);
asm(R"(
.text
.type switch_stacks, @function
switch_stacks:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size switch_stacks, .-switch_stacks
)");
#else
#include <ucontext.h>
#endif

namespace emulated {

constexpr size_t STACK = 64 * 1024;
constexpr int GUARD = 64;  // bytes behind shared memory that nobody may write

struct Copy {
    float *to;
    float value;
};

struct Fiber {
    std::unique_ptr<unsigned char[]> stack;  // made when the fiber is first needed, and not cleared
#if defined(__x86_64__)
    void *pointer = nullptr;
#else
    ucontext_t context;
#endif
    bool done = false;
    const unsigned *waits_for = nullptr;  // until this is no longer what it was
    unsigned seen = 0;
    std::vector<Copy> asked_for;
    std::vector<std::vector<Copy>> groups;
};

struct Meeting {  // of a warp, or of a block
    int arrived = 0;
    unsigned times = 0;
    const char *what = "";
    void *brought[32];
};

static std::vector<unsigned char> shared;
static std::vector<Fiber> fibers(1024);
static std::vector<Meeting> warps(32);
static Meeting block;
static Fiber *current;
static std::function<void()> body;
static const char *complaint;
#if defined(__x86_64__)
static void *scheduler;
static inline void resume(Fiber &fiber) { switch_stacks(&scheduler, fiber.pointer); }
static inline void pause() { switch_stacks(&current->pointer, scheduler); }
#else
static ucontext_t scheduler;
static inline void resume(Fiber &fiber) { swapcontext(&scheduler, &fiber.context); }
static inline void pause() { swapcontext(&current->context, &scheduler); }
#endif

static void run_fiber() {
    body();
    current->done = true;
    pause();
}

static void prepare(Fiber &fiber) {
    if (!fiber.stack) fiber.stack.reset(new unsigned char[STACK]);
    fiber.done = false, fiber.waits_for = nullptr;
    fiber.asked_for.clear(), fiber.groups.clear();
#if defined(__x86_64__)
    auto top = (reinterpret_cast<uintptr_t>(fiber.stack.get()) + STACK) & ~(uintptr_t)15;
    void **place = reinterpret_cast<void **>(top);
    *--place = nullptr;
    *--place = reinterpret_cast<void *>(&run_fiber);
    for (int i = 0; i < 6; ++i) *--place = nullptr;
    fiber.pointer = place;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get(), fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, &run_fiber, 0);
#endif
}

// All of `count` threads come here with something; the last one does the work for all.
template <class Work>
static void meet(Meeting &meeting, int count, int place, void *mine, const char *what, Work work) {
    if (meeting.arrived && std::strcmp(meeting.what, what)) complaint = "threads wait for each other at unlike places";
    meeting.what = what;
    if (count <= 32) meeting.brought[place] = mine;
    if (++meeting.arrived == count) {
        work(meeting.brought);
        meeting.arrived = 0;
        ++meeting.times;
        return;
    }
    current->waits_for = &meeting.times, current->seen = meeting.times;
    pause();
}

template <class Work>
static void lanes_together(void *mine, const char *what, Work work) {
    meet(warps[threadIdx.x / 32], 32, threadIdx.x % 32, mine, what, work);
}

static bool run_block(int threads, bool backwards) {
    std::memset(shared.data(), 0xff, shared.size());
    block = Meeting();
    for (auto &warp : warps) warp = Meeting();
    for (int i = 0; i < threads; ++i) prepare(fibers[i]);
    for (int left = threads; left;) {
        bool moved = false;
        for (int k = 0; k < threads; ++k) {
            const int i = backwards ? threads - 1 - k : k;
            Fiber &fiber = fibers[i];
            if (fiber.done || (fiber.waits_for && *fiber.waits_for == fiber.seen)) continue;
            fiber.waits_for = nullptr;
            current = &fiber, threadIdx.x = i, moved = true;
            resume(fiber);
            left -= fiber.done;
        }
        if (!moved) complaint = "threads wait for others that have ended or wait elsewhere";
        if (complaint) return false;
    }
    for (int i = 0; i < GUARD; ++i)
        if (shared[shared.size() - 1 - i] != 0xff) complaint = "something was written behind the shared memory";
    for (int i = 0; i < threads; ++i)
        if (!fibers[i].asked_for.empty() || !fibers[i].groups.empty()) {
            for (auto &group : fibers[i].groups)
                if (!group.empty()) complaint = "a copy was never waited for";
        }
    return !complaint;
}

template <class... Parameters, size_t... I>
static void call(void (*kernel)(Parameters...), void **arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_const_t<Parameters> *>(arguments[I])...);
}

template <class... Parameters>
static const char *launch(void (*kernel)(Parameters...), const unsigned *grid, int threads, int bytes, void **arguments) {
    complaint = nullptr;
    shared.assign(bytes + GUARD, 0xff);
    gridDim = {grid[0], grid[1], grid[2]}, blockDim = {(unsigned)threads, 1, 1};
    body = [=] { call(kernel, arguments, std::index_sequence_for<Parameters...>()); };
    bool backwards = false;
    for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x, backwards = !backwards)
                if (!run_block(threads, backwards)) return complaint;
    return nullptr;
}

}  // namespace emulated

#define EMULATED(kernel)                                                                                       \
    extern "C" const char *emulate_##kernel(const unsigned *grid, int threads, int bytes, void **arguments) { \
        return emulated::launch(kernel, grid, threads, bytes, arguments);                                     \
    }

static inline void __syncthreads() {
    emulated::meet(emulated::block, blockDim.x, 0, nullptr, "__syncthreads", [](void **) {});
}

// --- numbers -------------------------------------------------------------------------------------------------------

struct bf16 {
    unsigned short bits;
};

struct fp16 {
    unsigned short bits;
};

static inline double widened(double x) { return x; }
static inline float widened(float x) { return x; }
static inline float widened(bf16 x) { return as_float((unsigned)x.bits << 16); }
static inline float widened(fp16 x) {
    const unsigned sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
    if (magnitude >= 0x7c00) return as_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    const float value = magnitude < 0x400 ? std::ldexp((float)magnitude, -24)
                                          : as_float((magnitude << 13) + ((127 - 15) << 23));
    return as_float(as_bits(value) | sign);
}

static inline void round_to(double &y, double x) { y = x; }
static inline void round_to(float &y, float x) { y = x; }
static inline void round_to(bf16 &y, float x) {
    const unsigned bits = as_bits(x);
    y.bits = x != x ? 0x7fff : (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline void round_to(fp16 &y, float x) {
    const unsigned sign = as_bits(x) >> 16 & 0x8000, magnitude = as_bits(x) & 0x7fffffff;
    unsigned bits;
    if (magnitude > 0x7f800000)
        bits = 0x7fff;
    else if (magnitude >= 0x47800000)
        bits = 0x7c00;
    else if (magnitude < 0x38800000)
        bits = as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f);
    else
        bits = (magnitude - ((127 - 15) << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    y.bits = (unsigned short)(sign | bits);
}

static inline float round_to_tf32(float x) {
    return std::isfinite(x) ? as_float((as_bits(x) + 0x1000) & 0xffffe000) : x;
}

// --- a warp's lanes together ---------------------------------------------------------------------------------------

static inline float shuffle_xor(float x, int mask) {
    struct {
        float given, taken;
        int mask;
    } mine = {x, 0, mask};
    emulated::lanes_together(&mine, "shuffle_xor", [](void **lanes) {
        auto at = [&](int i) { return static_cast<decltype(mine) *>(lanes[i]); };
        for (int i = 0; i < 32; ++i) at(i)->taken = at(i ^ at(i)->mask)->given;
    });
    return mine.taken;
}

static inline void load_matrices_as(unsigned (&r)[4], const void *row, bool transposed) {
    struct {
        unsigned *r;
        const unsigned short *row;
    } mine = {r, static_cast<const unsigned short *>(row)};
    if (reinterpret_cast<uintptr_t>(row) % 16) emulated::complaint = "a row of a matrix is not aligned to 16 bytes";
    emulated::lanes_together(&mine, transposed ? "load_transposed" : "load_matrices", [=](void **lanes) {
        auto at = [&](int i) { return static_cast<decltype(mine) *>(lanes[i]); };
        for (int lane = 0; lane < 32; ++lane)
            for (int matrix = 0; matrix < 4; ++matrix) {
                const int i = lane / 4, j = lane % 4 * 2;
                unsigned two[2];
                for (int e = 0; e < 2; ++e)
                    two[e] = transposed ? at(8 * matrix + j + e)->row[i] : at(8 * matrix + i)->row[j + e];
                at(lane)->r[matrix] = two[0] | two[1] << 16;
            }
    });
}
static inline void load_matrices(unsigned (&r)[4], const void *row) { load_matrices_as(r, row, false); }
static inline void load_transposed(unsigned (&r)[4], const void *row) { load_matrices_as(r, row, true); }

struct Product {
    float *d;
    const void *a, *b;
};

template <int K, class Left, class Right>
static void multiply_tiles(float (&d)[4], const void *a, const void *b, Left left, Right right) {
    Product mine = {d, a, b};
    emulated::lanes_together(&mine, "multiply_add", [&](void **lanes) {
        float first[16][K], second[K][8];
        for (int lane = 0; lane < 32; ++lane) {
            const Product &its = *static_cast<Product *>(lanes[lane]);
            left(first, its.a, lane / 4, lane % 4);
            right(second, its.b, lane / 4, lane % 4);
        }
        for (int lane = 0; lane < 32; ++lane)
            for (int e = 0; e < 4; ++e) {
                const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
                float sum = 0;
                for (int k = 0; k < K; ++k) sum += first[row][k] * second[k][column];
                static_cast<Product *>(lanes[lane])->d[e] += sum;
            }
    });
}

template <class Number>
static inline void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned *b, Number) {
    const auto half = [](unsigned two, int e) { return widened(Number{(unsigned short)(two >> 16 * e)}); };
    multiply_tiles<16>(
        d, a, b,
        [&](float (&first)[16][16], const void *its, int g, int t) {
            for (int i = 0; i < 4; ++i)
                for (int e = 0; e < 2; ++e)
                    first[g + i % 2 * 8][2 * t + e + i / 2 * 8] = half(static_cast<const unsigned *>(its)[i], e);
        },
        [&](float (&second)[16][8], const void *its, int g, int t) {
            for (int i = 0; i < 2; ++i)
                for (int e = 0; e < 2; ++e)
                    second[2 * t + e + i * 8][g] = half(static_cast<const unsigned *>(its)[i], e);
        });
}

static inline void multiply_add(float (&d)[4], const float (&a)[4], const float *b) {
    const auto cut = [](float x) { return as_float(as_bits(x) & 0xffffe000); };  // the rest is not looked at
    multiply_tiles<8>(
        d, a, b,
        [&](float (&first)[16][8], const void *its, int g, int t) {
            for (int i = 0; i < 4; ++i) first[g + i % 2 * 8][t + i / 2 * 4] = cut(static_cast<const float *>(its)[i]);
        },
        [&](float (&second)[8][8], const void *its, int g, int t) {
            for (int i = 0; i < 2; ++i) second[t + i * 4][g] = cut(static_cast<const float *>(its)[i]);
        });
}

// --- asynchronous copies: done as late as may be -------------------------------------------------------------------

static inline void copy_async(float *to, const float *from, bool there) {
    emulated::current->asked_for.push_back({to, there ? *from : 0.0f});
    *to = NAN;
}

static inline void end_group_of_copies() {
    emulated::current->groups.push_back(std::move(emulated::current->asked_for));
    emulated::current->asked_for.clear();
}

template <int PENDING>
static inline void wait_for_copies() {
    auto &groups = emulated::current->groups;
    while ((int)groups.size() > PENDING) {
        for (const auto &copy : groups.front()) *copy.to = copy.value;
        groups.erase(groups.begin());
    }
}
