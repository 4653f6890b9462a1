// Timings: medians over many launches, once with a warm L2 and once with a cold one.
//
// bench/bench_kernel.py compares with PyTorch; this needs nothing but the kernels.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <set>

#include "call.h"

namespace ckv::harness {
namespace {

using reference::Inputs;
using reference::Shape;

constexpr int kWarmup = 5;
constexpr int kRepeats = 50;

class Timer {
public:
    Timer() : flush_(flush_bytes()) {
        must(cudaEventCreate(&start_), "cudaEventCreate");
        must(cudaEventCreate(&stop_), "cudaEventCreate");
    }
    Timer(Timer const&) = delete;
    Timer& operator=(Timer const&) = delete;
    ~Timer() {
        cudaEventDestroy(start_);
        cudaEventDestroy(stop_);
    }

    // Median microseconds of `work` with an empty L2 (`cold`) or after a run of its own. What goes
    // before also keeps the GPU busy until `work` is queued whole: launching takes time too.
    double median(bool cold, std::function<void()> const& work) {
        std::vector<float> times;
        for (int i = 0; i < kWarmup + kRepeats; ++i) {
            cold ? flush_.clear() : work();
            must(cudaEventRecord(start_), "cudaEventRecord");
            work();
            must(cudaEventRecord(stop_), "cudaEventRecord");
            must(cudaEventSynchronize(stop_), "kernel");
            float milliseconds = 0;
            must(cudaEventElapsedTime(&milliseconds, start_, stop_), "cudaEventElapsedTime");
            if (i >= kWarmup) {
                times.push_back(1000 * milliseconds);
            }
        }
        std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
        return times[times.size() / 2];
    }

private:
    static size_t flush_bytes() {
        int device = 0;
        int bytes = 0;
        must(cudaGetDevice(&device), "cudaGetDevice");
        must(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, device), "L2 size");
        return 4 * static_cast<size_t>(bytes);
    }

    cudaEvent_t start_{}, stop_{};
    Buffer flush_;
};

// GB/s of a large device-to-device copy, bytes read plus bytes written.
double copy_bandwidth(Timer& timer) {
    size_t const bytes = size_t{1} << 30;
    Buffer from(bytes);
    Buffer to(bytes);
    double const us = timer.median(false, [&] {
        must(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice), "copy");
    });
    return 2.0 * static_cast<double>(bytes) / us / 1e3;
}

void line(char const* what, Shape const& s, Dtype dtype, double floor, double warm, double cold) {
    std::printf("%-9s %s B %3d C %4d N %6d H %d d %d d_g %d | floor %8.1f us | warm %8.1f | cold "
                "%8.1f\n",
        what, name_of(dtype), s.batch, s.queries, s.events, s.heads, s.width, s.pool_width, floor,
        warm, cold);
}

// Every event seen, every index inside the pool: nothing that a kernel may leave out.
Inputs all_seen(Shape const& s, Dtype dtype) {
    Inputs in(s, dtype, 1);
    std::fill(in.mask.begin(), in.mask.end(), 1);
    for (auto& index : in.index) {
        for (int32_t& row : index) {
            row = std::clamp(row, 0, s.pool_rows - 1);
        }
    }
    return in;
}

// Bytes of keys or values that cannot be avoided: each user part, each index and each pool row that
// one names, once.
double side_bytes(Inputs const& in, int which, Dtype dtype) {
    auto const& index = in.index[which];
    std::set<int32_t> const rows(index.begin(), index.end());
    size_t const pool = rows.size() * static_cast<size_t>(in.shape.pool_width);
    return static_cast<double>((pool + in.user[which].size()) * dtype_bytes(dtype) +
                               index.size() * sizeof(int32_t));
}

void time_gather(Timer& timer, double bandwidth, Shape const& s, Dtype dtype) {
    Inputs const in = all_seen(s, dtype);
    Call const call(in, dtype, {});
    double const out_bytes = 1.0 * s.batch * s.events * s.width * dtype_bytes(dtype);
    Buffer out(static_cast<size_t>(out_bytes));
    auto const work = [&] {
        must(pool_gather_concat(call.gather(out.data()), nullptr), "pool_gather_concat");
    };
    double const floor = (side_bytes(in, 0, dtype) + out_bytes) / bandwidth / 1e3;
    line("gather", s, dtype, floor, timer.median(false, work), timer.median(true, work));
}

void time_attention(Timer& timer, double bandwidth, Shape const& s, Dtype dtype) {
    Inputs const in = all_seen(s, dtype);
    Call const call(in, dtype, {});
    double const queries = 2.0 * static_cast<double>(in.query.size()) * dtype_bytes(dtype);
    double const bytes = side_bytes(in, 0, dtype) + side_bytes(in, 1, dtype) + queries +
                         static_cast<double>(in.mask.size() * sizeof(int32_t));
    for (Tactic tactic : {Tactic::kAuto, Tactic::kWhole}) {
        auto const work = [&] {
            must(pooled_attention(call.softmax, tactic, call.workspace, nullptr), "attention");
        };
        line(tactic == Tactic::kAuto ? "attention" : "unsplit", s, dtype, bytes / bandwidth / 1e3,
            timer.median(false, work), timer.median(true, work));
    }
}

}  // namespace

void time_all() {
    Timer timer;
    double const bandwidth = copy_bandwidth(timer);
    std::printf("copy %.0f GB/s; floors are bytes over that, operations not counted\n", bandwidth);
    for (Dtype dtype : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16}) {
        time_gather(timer, bandwidth, {1, 1, 10000, 8, 256, 254, 10000}, dtype);
        time_gather(timer, bandwidth, {64, 1, 1000, 8, 256, 254, 10000}, dtype);
        time_gather(timer, bandwidth, {64, 1, 1000, 8, 256, 248, 10000}, dtype);
        time_attention(timer, bandwidth, {64, 128, 1000, 8, 256, 254, 10000}, dtype);
        time_attention(timer, bandwidth, {64, 128, 1000, 1, 256, 254, 10000}, dtype);
        time_attention(timer, bandwidth, {1, 128, 1000, 8, 256, 254, 10000}, dtype);
        time_attention(timer, bandwidth, {1, 1, 10000, 8, 256, 254, 10000}, dtype);
    }
}

}  // namespace ckv::harness
