// The emulator finds the races it is there for: kernels with one barrier or wait left out fail.
#include <cstdio>
#include <vector>

#include "check.h"
#include "device.cuh"
#include "launch.h"

namespace {

constexpr int kThreads = 64;

// What a kernel leaves out.
enum class Fault { kNone, kBarrierBeforeRead, kBarrierBeforeWrite, kWait, kBarrierAfterWait };

struct Args {
    float const* in;  // [2, kThreads]
    float* out;       // [kThreads]
    Fault fault;
};

void barrier(Args const& p, Fault fault) {
    if (p.fault != fault) {
        ckv::device::sync();
    }
}

// out = the sum of what other threads put into one shared buffer, twice.
void exchanging(Args p) {
    using namespace ckv::device;
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
void copying(Args p) {
    using namespace ckv::device;
    auto* shared = reinterpret_cast<float*>(shared_memory());
    for (int round = 0; round < 2; ++round) {
        int const at = round * kThreads + thread();
        copy_async<4>(&shared[at], &p.in[at], 0);
    }
    commit_copies();
    if (p.fault != Fault::kWait) {
        wait_copies();
    }
    barrier(p, Fault::kBarrierAfterWait);
    int const other = kThreads - 1 - thread();
    p.out[thread()] = shared[other] + shared[kThreads + other];
}

bool right(void (*kernel)(Args), Fault fault) {
    std::vector<float> in(2 * kThreads);
    for (size_t i = 0; i < in.size(); ++i) {
        in[i] = static_cast<float>(i * i);
    }
    std::vector<float> out(kThreads);
    ckv::launch(kernel, {}, kThreads, sizeof(float) * in.size(), nullptr,
        Args{in.data(), out.data(), fault});
    bool all = true;
    for (int t = 0; t < kThreads; ++t) {
        all = all && out[t] == in[kThreads - 1 - t] + in[2 * kThreads - 1 - t];
    }
    return all;
}

}  // namespace

int main() {
    // Every order finds every fault: none needs a lucky seed.
    for (uint32_t seed = 0; seed < 100; ++seed) {
        ckv::emulator::seed = seed;
        CHECK(right(exchanging, Fault::kNone) && right(copying, Fault::kNone));
        CHECK(!right(exchanging, Fault::kBarrierBeforeRead));
        CHECK(!right(exchanging, Fault::kBarrierBeforeWrite));
        CHECK(!right(copying, Fault::kWait));
        CHECK(!right(copying, Fault::kBarrierAfterWait));
    }
    std::printf("100 passed, 0 failed\n");
    return 0;
}
