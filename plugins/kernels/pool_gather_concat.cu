// PoolGatherConcat: checks, vector widths, launch.
#include "pool_gather_concat.cuh"

#include "launch.h"

namespace ckv {
namespace {

using gather_concat::GatherArgs;
using gather_concat::kItems;
using gather_concat::kThreads;

template <int kElement, int kOut, int kLoad>
CKV_KERNEL(kThreads) gather_concat_kernel(GatherArgs p) {
    gather_concat::gather_concat_block<kElement, kOut, kLoad>(p);
}

template <int kElement, int kOut, int kLoad>
cudaError_t run(PoolGatherConcatArgs const& args, cudaStream_t stream) {
    int32_t const chunks = args.side.width() / (kOut / kElement);
    int64_t const blocks = ceil_div(args.rows * chunks, kThreads * kItems);
    // Beyond 2^31 blocks (terabytes of output) the launch is refused, not truncated.
    return launch(gather_concat_kernel<kElement, kOut, kLoad>, Grid{blocks}, kThreads, 0, stream,
        GatherArgs{args, chunks});
}

template <int kElement, int kOut>
cudaError_t run_loading(int32_t load, PoolGatherConcatArgs const& args, cudaStream_t stream) {
    if constexpr (kOut > kElement) {
        if (load < kOut) {
            return load <= kElement ? run<kElement, kOut, kElement>(args, stream)
                   : load == 8      ? run<kElement, kOut, (kOut > 8 ? 8 : kElement)>(args, stream)
                                    : run<kElement, kOut, (kOut > 4 ? 4 : kElement)>(args, stream);
        }
    }
    return run<kElement, kOut, kOut>(args, stream);
}

template <int kElement>
cudaError_t run_storing(PoolGatherConcatArgs const& args, cudaStream_t stream) {
    auto const address = [](void const* p) { return reinterpret_cast<uintptr_t>(p); };
    auto const bytes = [](int64_t elements) { return static_cast<uint64_t>(elements) * kElement; };
    int32_t const out = power_of_two_divisor(
        address(args.out) | bytes(args.out_stride) | bytes(args.side.width()), 16);
    PooledSide const& side = args.side;
    int32_t const load = power_of_two_divisor(address(side.pool) | address(side.user) |
            bytes(side.pool_stride) | bytes(side.user_stride) | bytes(side.pool_width),
        out);
    switch (out) {
        case 16: return run_loading<kElement, 16>(load, args, stream);
        case 8: return run_loading<kElement, 8>(load, args, stream);
        case 4: return run_loading<kElement, 4>(load, args, stream);
        default: return run_loading<kElement, kElement>(load, args, stream);
    }
}

}  // namespace

cudaError_t pool_gather_concat(PoolGatherConcatArgs const& args, cudaStream_t stream) {
    if (args.rows == 0 || args.side.width() == 0) {
        return cudaSuccess;
    }
    return dtype_bytes(args.dtype) == 4 ? run_storing<4>(args, stream)
                                        : run_storing<2>(args, stream);
}

}  // namespace ckv
