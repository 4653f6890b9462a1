// A kernel that the special function units alone hold up. Of the loop's machine code 64 of 67
// instructions are theirs, 16 threads' in a cycle of a multiprocessor that issues 128.
#include "exponentials.h"

#include "device.cuh"
#include "launch.h"
#include "tiling.h"

namespace ckv::harness {
namespace {

constexpr int kThreads = 256;
// Numbers of a thread: while one waits for its result, the others are under way.
constexpr int kChains = 4;

struct Args {
    float const* x;
    float* out;
    int64_t count;
    int32_t rounds;
};

CKV_KERNEL(kThreads) exponentials_kernel(Args p) {
    int64_t const first = int64_t{device::block_x()} * (kThreads * kChains) + device::thread();
    float x[kChains] = {};
#pragma unroll
    for (int i = 0; i < kChains; ++i) {
        int64_t const at = first + i * kThreads;
        x[i] = at < p.count ? p.x[at] : 0.0F;
    }
#pragma unroll 16
    for (int32_t round = 0; round < p.rounds; ++round) {
#pragma unroll
        for (int i = 0; i < kChains; ++i) {
            x[i] = device::exp2_(-x[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < kChains; ++i) {
        int64_t const at = first + i * kThreads;
        if (at < p.count) {
            p.out[at] = x[i];
        }
    }
}

}  // namespace

cudaError_t exponentials(
    float const* x, float* out, int64_t count, int32_t rounds, cudaStream_t stream) {
    if (count == 0) {
        return cudaSuccess;
    }
    return launch(exponentials_kernel, Grid{ceil_div(count, kThreads * kChains)}, kThreads, 0,
        stream, Args{x, out, count, rounds});
}

}  // namespace ckv::harness
