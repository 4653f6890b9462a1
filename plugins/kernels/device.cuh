// The few GPU instructions that the kernels use, behind names of our own.
//
// Kernels call nothing else of the device. That lets the unit tests compile the very same kernel
// sources for the CPU, with tests/emulator/device.h in the place of this file's second half.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#if defined(CKV_EMULATE)
#include "emulator/device.h"
#else

#define CKV_KERNEL(threads) __global__ void __launch_bounds__(threads)
// Registers are kept to what lets so many blocks share a multiprocessor.
#define CKV_RESIDENT_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define CKV_DEVICE __device__ __forceinline__

// Tensor-core and asynchronous-copy instructions begin with sm_80. A kernel that needs them is
// empty below that, and the host never launches it there (launch.h, `runs_here`).
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define CKV_HAS_MMA 1
#else
#define CKV_HAS_MMA 0
#endif

namespace ckv::device {

CKV_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
CKV_DEVICE int lane() { return thread() & 31; }
CKV_DEVICE int warp() { return thread() >> 5; }
CKV_DEVICE unsigned block_x() { return blockIdx.x; }
CKV_DEVICE unsigned block_y() { return blockIdx.y; }
CKV_DEVICE unsigned block_z() { return blockIdx.z; }
CKV_DEVICE void sync() { __syncthreads(); }

// The block's dynamic shared memory, 16-byte aligned.
CKV_DEVICE char* shared_memory() {
    extern __shared__ __align__(16) char ckv_shared[];
    return ckv_shared;
}

CKV_DEVICE float shuffle_xor(float x, int distance) {
    return __shfl_xor_sync(0xFFFFFFFFU, x, distance);
}
CKV_DEVICE void atomic_add(unsigned* at, unsigned x) { atomicAdd(at, x); }
CKV_DEVICE void atomic_min(int* at, int x) { atomicMin(at, x); }
CKV_DEVICE void atomic_max(int* at, int x) { atomicMax(at, x); }
CKV_DEVICE bool all(bool x) { return __all_sync(0xFFFFFFFFU, x) != 0; }

// Within 2 units in the last place; 0 where y is above 2^126.
CKV_DEVICE float divide(float x, float y) { return __fdividef(x, y); }

// 2^x in one instruction, within 2 units in the last place; below 2^-126 it is 0.
CKV_DEVICE float exp2_(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#if CKV_HAS_MMA && defined(__CUDA_ARCH__)

CKV_DEVICE uint32_t shared_address(void const* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Starts a copy of 4, 8 or 16 bytes from global to shared memory, both so aligned; zeros, and
// nothing read, where `row`, the number of what is read, is negative.
template <int kBytes>
CKV_DEVICE void copy_async(void* to, void const* from, int32_t row) {
    asm volatile(
        "{ .reg .pred ignored; setp.lt.s32 ignored, %3, 0; "
        "cp.async.ca.shared.global [%0], [%1], %2, ignored; }" ::"r"(shared_address(to)),
        "l"(from), "n"(kBytes), "r"(row)
        : "memory");
}

CKV_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all committed copies of this thread.
CKV_DEVICE void wait_copies() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

// Four 8 x 8 matrices of 16-bit elements; lane 8 i + r names the address of row r of matrix i.
// Register i holds row lane / 4, columns 2 (lane % 4) and the next, of matrix i.
CKV_DEVICE void load_matrices(uint32_t (&r)[4], void const* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same with every matrix transposed on the way.
CKV_DEVICE void load_transposed(uint32_t (&r)[4], void const* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// c [16, 8] += a [16, 16] b [16, 8], fp32 sums, in the warp-wide layout of mma.m16n8k16; of fp32
// a [16, 8] b [8, 8] in that of mma.m16n8k8, and only the upper 19 bits of an element count (TF32).
#define CKV_MULTIPLY(T, instruction)                                                              \
    CKV_DEVICE void multiply(                                                                     \
        float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, T /*type*/) {            \
        asm volatile("mma.sync.aligned." instruction                                              \
                     " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"           \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                             \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));             \
    }
CKV_MULTIPLY(__half, "m16n8k16.row.col.f32.f16.f16.f32")
CKV_MULTIPLY(__nv_bfloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
CKV_MULTIPLY(float, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef CKV_MULTIPLY

#endif

}  // namespace ckv::device

#endif  // CKV_EMULATE
