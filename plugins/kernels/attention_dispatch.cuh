// From arguments to a launch: which kernel, which tile, how many splits.
#pragma once

#include <climits>

#include "attention_cores.cuh"
#include "attention_mma_kernel.cuh"

namespace ckv {

// What a launch function gets to know beside the kernel's arguments.
struct LaunchPlan {
    bool may_split;
    float* workspace;
};

// Lays the parts of a split launch out in the workspace.
inline void place_parts(KernelArgs& p, float* workspace) {
    if (p.split.count <= 1) {
        return;
    }
    int64_t const rows = int64_t{p.split.count} * p.a.batch * p.a.queries;
    p.sums = workspace;
    p.peaks = p.sums + rows * p.a.width;
    p.totals = p.peaks + rows * p.a.heads;
}

// The last pass of a split launch (attention_combine.cu).
cudaError_t combine(KernelArgs const& p, Form form, cudaStream_t stream);

template <auto kKernel>
cudaError_t launch_planned(KernelArgs p, Form form, LaunchPlan const& plan, Tile tile,
    size_t shared_bytes, cudaStream_t stream) {
    p.query_tiles = static_cast<int32_t>(query_tiles(p.a, tile));
    p.split = plan_split(p.a, tile, plan.may_split);
    place_parts(p, plan.workspace);
    Grid const grid{int64_t{p.a.batch} * p.a.heads * p.query_tiles, p.split.count,
        tile.value_chunks};
    cudaError_t const status =
        launch(kKernel, grid, 32 * tile.warps, shared_bytes, stream, p);
    return status != cudaSuccess || p.split.count <= 1 ? status : combine(p, form, stream);
}

template <typename T, Form kForm, int kRows, int kValues>
cudaError_t launch_cores(KernelArgs const& p, LaunchPlan const& plan, cudaStream_t stream) {
    return launch_planned<cores::attention_kernel<T, kForm, kRows, kValues>>(p, kForm, plan,
        cores::tile<kRows, kValues>(p.head_width), sizeof(cores::Shared<kRows, kValues>), stream);
}

// Few queries take the small tile: its idle rows cost less.
inline bool few_queries(AttentionArgs const& a) { return a.queries <= cores::kSide; }

template <typename T, Form kForm>
cudaError_t run_cores(KernelArgs const& p, LaunchPlan const& plan, cudaStream_t stream) {
    bool const few = few_queries(p.a);
    if (p.head_width <= 32) {
        // A narrow head has few sums: eight rows of a thread share each key and value it reads.
        return few ? launch_cores<T, kForm, 1, 32>(p, plan, stream)
               : p.a.queries <= 4 * cores::kSide
                   ? launch_cores<T, kForm, 4, 32>(p, plan, stream)
                   : launch_cores<T, kForm, 8, 32>(p, plan, stream);
    }
    return few ? launch_cores<T, kForm, 1, 128>(p, plan, stream)
               : launch_cores<T, kForm, 4, 128>(p, plan, stream);
}

// cudaErrorNotSupported where the loaded code or the GPU is too old, or too small.
template <typename T, Form kForm, int kHead, int kWarps>
cudaError_t launch_mma(KernelArgs const& p, LaunchPlan const& plan, cudaStream_t stream) {
    constexpr size_t kBytes = sizeof(mma::Shared<T, kHead, kWarps>);
    constexpr int kOldest = 80;
    static_assert(kBytes <= 99 * 1024, "more than a block has on sm_86, sm_89 and sm_120");
    if (!runs_here<mma::attention_kernel<T, kForm, kHead, kWarps>>(kOldest, kBytes)) {
        return cudaErrorNotSupported;
    }
    return launch_planned<mma::attention_kernel<T, kForm, kHead, kWarps>>(
        p, kForm, plan, Tile{16 * kWarps, kWarps, 1}, kBytes, stream);
}

template <typename T, Form kForm, int kHead>
cudaError_t run_mma_head(KernelArgs const& p, LaunchPlan const& plan, cudaStream_t stream) {
    return few_queries(p.a)
               ? launch_mma<T, kForm, kHead, 1>(p, plan, stream)
               : launch_mma<T, kForm, kHead, mma::Sizes<T, kHead>::kMostWarps>(p, plan, stream);
}

template <typename T, Form kForm>
cudaError_t run_mma(KernelArgs const& p, LaunchPlan const& plan, cudaStream_t stream) {
    if (p.head_width <= 32) {
        return run_mma_head<T, kForm, 32>(p, plan, stream);
    }
    if (p.head_width <= 64) {
        return run_mma_head<T, kForm, 64>(p, plan, stream);
    }
    if (p.head_width <= 128) {
        return run_mma_head<T, kForm, 128>(p, plan, stream);
    }
    return p.head_width <= 256 ? run_mma_head<T, kForm, 256>(p, plan, stream)
                               : cudaErrorNotSupported;
}

}  // namespace ckv
