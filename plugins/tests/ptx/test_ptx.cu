// The PTX machine finds what it is there for: kernels with one fault each end in its words.
//
// Compiled by nvcc: what runs is PTX with the instructions that our kernels use.
#include <cstdio>
#include <cstring>
#include <vector>

#include "check.h"
#include "launch.h"
#include "planted.cuh"

extern "C" char const* ckv_ptx_fault();

namespace {

using namespace ckv::planted;

// out = the sum of both rounds, mirrored within each half of 32: by shuffles.
CKV_KERNEL(kThreads) shuffling(Args p) {
    using namespace ckv::device;
    float x = p.in[thread()] + p.in[kThreads + thread()];
    if (p.fault != Fault::kHalfAShuffle || thread() % 2 == 0) {
        x = shuffle_xor(x, 31);
    }
    p.out[thread()] = x;
}

// One access that a GPU would not allow, or answer with what it likes.
CKV_KERNEL(kThreads) straying(Args p) {
    using namespace ckv::device;
    auto* shared = reinterpret_cast<float*>(shared_memory());
    int const t = thread();
    float x = 0.0F;
    switch (p.fault) {
        case Fault::kBeyondTheEnd: x = p.in[kThreads + 1 + t]; break;
        case Fault::kMisaligned: {
            float2 const pair = reinterpret_cast<float2 const*>(p.in + 1)[t / 2];
            x = pair.x + pair.y;
            break;
        }
        case Fault::kUnwritten: x = p.unwritten[t]; break;
        case Fault::kTwoWriters: p.out[t / 2] = 1.0F; break;
        case Fault::kBeyondShared: shared[2 * kThreads + t] = 1.0F; break;
        case Fault::kUnwrittenShared: x = shared[t]; break;
        case Fault::kHalfABarrier:
            if (t % 2 == 0) {
                sync();
            }
            x = shuffle_xor(1.0F, 1);
            break;
        default: break;
    }
    p.out[t] = x;
}

struct Case {
    void (*kernel)(Args);
    Fault fault;
    char const* words;  // of the fault's text
};

Case const kCases[] = {
    {exchanging, Fault::kBarrierBeforeRead, "shared memory: read"},
    {exchanging, Fault::kBarrierBeforeWrite, "races"},
    {copying, Fault::kWait, "before its copy was waited for"},
    {copying, Fault::kBarrierAfterWait, "shared memory: read"},
    {copying, Fault::kWaitAtEnd, "without having waited for its copies"},
    {shuffling, Fault::kHalfAShuffle, "never come here"},
    {straying, Fault::kBeyondTheEnd, "outside every allocation"},
    {straying, Fault::kMisaligned, "misaligned"},
    {straying, Fault::kUnwritten, "global memory: read before it was written"},
    {straying, Fault::kTwoWriters, "races another thread's write"},
    {straying, Fault::kBeyondShared, "beyond its end"},
    {straying, Fault::kUnwrittenShared, "shared memory: read before it was written"},
    {straying, Fault::kHalfABarrier, "wait for each other at different places"},
};

class Test {
public:
    Test() {
        std::vector<float> in(2 * kThreads);
        for (size_t i = 0; i < in.size(); ++i) {
            in[i] = static_cast<float>(i * i);
        }
        size_t const bytes = sizeof(float) * kThreads;
        CHECK(cudaMalloc(&in_, 2 * bytes) == cudaSuccess);
        CHECK(cudaMalloc(&out_, bytes) == cudaSuccess);
        CHECK(cudaMalloc(&unwritten_, bytes) == cudaSuccess);
        CHECK(cudaMemcpy(in_, in.data(), 2 * bytes, cudaMemcpyHostToDevice) == cudaSuccess);
    }

    cudaError_t run(void (*kernel)(Args), Fault fault, cudaStream_t stream = nullptr) {
        Args const args{static_cast<float const*>(in_), static_cast<float*>(out_),
            static_cast<float*>(unwritten_), fault};
        return ckv::launch(
            kernel, {}, kThreads, 2 * kThreads * sizeof(float), stream, args);
    }

    // out[t] = in[other] + in[kThreads + other], `other` being thread t with the bits of `flips`.
    void check_right(void (*kernel)(Args), int flips) {
        CHECK(run(kernel, Fault::kNone) == cudaSuccess);
        check_out(flips);
    }
    void check_out(int flips) {
        std::vector<float> out(kThreads);
        CHECK(cudaMemcpy(out.data(), out_, sizeof(float) * kThreads, cudaMemcpyDeviceToHost) ==
              cudaSuccess);
        for (int t = 0; t < kThreads; ++t) {
            int const other = t ^ flips;
            int const later = kThreads + other;
            CHECK(out[static_cast<size_t>(t)] ==
                  static_cast<float>(other * other) + static_cast<float>(later * later));
        }
    }

private:
    void *in_ = nullptr, *out_ = nullptr, *unwritten_ = nullptr;
};

void faults_are_found() {
    Test test;
    test.check_right(exchanging, 63);
    test.check_right(copying, 63);
    test.check_right(shuffling, 31);
    for (Case const& c : kCases) {
        CHECK(test.run(c.kernel, c.fault) == cudaErrorIllegalAddress);
        if (std::strstr(ckv_ptx_fault(), c.words) == nullptr) {
            std::fprintf(stderr, "not \"%s\" but: %s\n", c.words, ckv_ptx_fault());
            std::exit(1);
        }
        // As on a GPU, nothing runs after it.
        CHECK(test.run(shuffling, Fault::kNone) == cudaErrorIllegalAddress);
        CHECK(cudaDeviceReset() == cudaSuccess);
    }
    test.check_right(exchanging, 63);
}

void limits_of_a_launch_hold() {
    Test test;
    Args const args{nullptr, nullptr, nullptr, Fault::kNone};
    CHECK(ckv::launch(straying, {}, 2 * kThreads, 0, nullptr, args) != cudaSuccess);
    CHECK(ckv::launch(straying, {}, kThreads, 228 * 1024, nullptr, args) != cudaSuccess);
    CHECK(ckv::launch(straying, {0, 1, 1}, kThreads, 0, nullptr, args) != cudaSuccess);
    CHECK(test.run(shuffling, Fault::kNone) == cudaSuccess);
}

void a_capture_keeps_its_work_for_the_graph() {
    Test test;
    cudaStream_t stream = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    test.check_right(exchanging, 63);
    CHECK(cudaStreamCreate(&stream) == cudaSuccess);
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    CHECK(test.run(shuffling, Fault::kNone, stream) == cudaSuccess);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    test.check_out(63);
    CHECK(cudaGraphInstantiate(&ready, graph, 0) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph) == cudaSuccess);
    CHECK(cudaGraphLaunch(ready, stream) == cudaSuccess);
    test.check_out(31);
    CHECK(cudaGraphExecDestroy(ready) == cudaSuccess);
}

void what_no_capture_allows_spoils_it() {
    Test test;
    cudaStream_t stream = nullptr;
    CHECK(cudaStreamCreate(&stream) == cudaSuccess);
    auto const spoils = [&](auto const& call) {
        cudaGraph_t graph = nullptr;
        CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
        CHECK(call() != cudaSuccess);
        CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
    };
    void* memory = nullptr;
    spoils([&] { return cudaMalloc(&memory, 4); });
    spoils([] { return cudaDeviceSynchronize(); });
    spoils([&] { return test.run(shuffling, Fault::kNone); });
    CHECK(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal) != cudaSuccess);
    test.check_right(shuffling, 31);
}

}  // namespace

int main() {
    faults_are_found();
    limits_of_a_launch_hold();
    a_capture_keeps_its_work_for_the_graph();
    what_no_capture_allows_spoils_it();
    std::printf("%d passed, 0 failed\n", 3 + static_cast<int>(sizeof kCases / sizeof *kCases));
    return 0;
}
