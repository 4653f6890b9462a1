// Kernels with one planted fault each: whoever runs them has to find it.
#pragma once

#include "device.cuh"

namespace ckv::planted {

constexpr int kThreads = 64;

// What a kernel leaves out or does wrong.
enum class Fault {
    kNone, kBarrierBeforeRead, kBarrierBeforeWrite, kWait, kBarrierAfterWait, kWaitAtEnd,
    kBeyondTheEnd, kMisaligned, kUnwritten, kTwoWriters, kBeyondShared, kUnwrittenShared,
    kHalfABarrier, kHalfAShuffle
};

struct Args {
    float const* in;  // [2, kThreads]
    float* out;       // [kThreads]
    float* unwritten;
    Fault fault;
};

CKV_DEVICE void barrier(Args const& p, Fault fault) {
    if (p.fault != fault) {
        device::sync();
    }
}

// out = the sum of what other threads put into one shared buffer, twice.
inline CKV_KERNEL(kThreads) exchanging(Args p) {
    using namespace device;
    auto* shared = reinterpret_cast<float*>(shared_memory());
    float sum = 0.0F;
    for (int round = 0; round < 2; ++round) {
        shared[thread()] = p.in[round * kThreads + thread()];
        barrier(p, Fault::kBarrierBeforeRead);
        sum += shared[kThreads - 1 - thread()];
        barrier(p, Fault::kBarrierBeforeWrite);
    }
    p.out[thread()] = sum;
}

// The same by asynchronous copies, into one buffer a round.
inline CKV_KERNEL(kThreads) copying([[maybe_unused]] Args p) {
#if defined(__CUDA_ARCH__) || defined(CKV_EMULATE)
    using namespace device;
    auto* shared = reinterpret_cast<float*>(shared_memory());
    for (int round = 0; round < 2; ++round) {
        int const at = round * kThreads + thread();
        copy_async<4>(&shared[at], &p.in[at], 0);
    }
    commit_copies();
    if (p.fault == Fault::kWaitAtEnd) {
        return;
    }
    if (p.fault != Fault::kWait) {
        wait_copies();
    }
    barrier(p, Fault::kBarrierAfterWait);
    int const other = kThreads - 1 - thread();
    p.out[thread()] = shared[other] + shared[kThreads + other];
#endif
}

}  // namespace ckv::planted
