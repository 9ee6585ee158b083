// What the kernels ask of the hardware beyond plain C++, one small function each; sm_80 and newer.
//
// PTX is written here and nowhere else. The tests run the kernels on a CPU, with a file in place of this one that
// has the same functions in plain C++.
#pragma once

#define KERNEL extern "C" __global__ void
#define SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]

// --- numbers -------------------------------------------------------------------------------------------------------

struct bf16 {
    unsigned short bits;
};

struct fp16 {
    unsigned short bits;
};

__device__ __forceinline__ double widened(double x) { return x; }
__device__ __forceinline__ float widened(float x) { return x; }
__device__ __forceinline__ float widened(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ __forceinline__ float widened(fp16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

// To the nearest number of the type, to even ones where two are as near.
__device__ __forceinline__ void round_to(double &y, double x) { y = x; }
__device__ __forceinline__ void round_to(float &y, float x) { y = x; }
__device__ __forceinline__ void round_to(bf16 &y, float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
__device__ __forceinline__ void round_to(fp16 &y, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }

// A float with the 10 bits of mantissa that a tensor core multiplies.
__device__ __forceinline__ float round_to_tf32(float x) {
    unsigned y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return __uint_as_float(y);
}

// --- a warp's lanes together: all 32 of them call these ------------------------------------------------------------

__device__ __forceinline__ float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

// Four 8x8 matrices of 16-bit numbers from shared memory. Lane l has the address of row l % 8 of matrix l / 8; it
// gets of each matrix the numbers (l / 4, 2 * (l % 4)) and the one to the right of it.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void *row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

// The same of the transposed matrices.
__device__ __forceinline__ void load_transposed(unsigned (&r)[4], const void *row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

// d += a x b on the tensor cores. With g = lane / 4 and t = lane % 4, a lane holds of the sums (16 x 8)
// (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1); of 16-bit factors a (16 x 16) pairs at (g, 2t), (g+8, 2t), (g, 2t+8),
// (g+8, 2t+8), of b (16 x 8) pairs down its column g from rows 2t and 2t+8;
__device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned *b, bf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned *b, fp16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// of tf32 factors a (16 x 8) holds (g, t), (g+8, t), (g, t+4), (g+8, t+4), and b (8 x 8) holds (t, g), (t+4, g).
__device__ __forceinline__ void multiply_add(float (&d)[4], const float (&a)[4], const float *b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// --- copies from global to shared memory that pass no register -----------------------------------------------------

// 4 bytes, or zeros where `there` is false; done once `wait_for_copies` says so.
__device__ __forceinline__ void copy_async(float *shared, const float *global, bool there) {
    unsigned address = (unsigned)__cvta_generic_to_shared(shared);
    int bytes = there ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
}

// Everything this thread has asked for since the last one is a group.
__device__ __forceinline__ void end_group_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all groups of this thread but the last PENDING are there, for this thread.
template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
