// PoolGatherConcat as one pass over the output: each thread writes whole vectors of a row.
//
// Bound by memory. The published shapes leave pool rows badly aligned (d = 256, d_u = 2: rows of
// 254 elements), output rows well, so loads and stores have their own vector width. A thread keeps
// several items in flight, because each begins with an index load that its pool load waits for.
#include "ckv/pool_gather_concat.h"

#include "launch.h"
#include "numbers.cuh"
#include "tiling.h"

namespace ckv {
namespace {

constexpr int kThreads = 256;
constexpr int kItems = 4;  // vectors a thread writes

struct GatherArgs {
    PoolGatherConcatArgs a;
    int32_t chunks;  // vectors of an output row
};

// One vector of one output row.
struct Item {
    int64_t row;
    int32_t column;
    int32_t index;
    bool exists;
};

// Element `column` of the row, when its vector holds both pool and user elements.
template <int kElement>
CKV_DEVICE Raw<kElement> element(PooledSide const& side, Item const& item, int32_t column) {
    using Element = Raw<kElement>;
    if (column >= side.pool_width) {
        int64_t const at = item.row * side.user_stride + column - side.pool_width;
        return static_cast<Element const*>(side.user)[at];
    }
    if (!inside(item.index, side.pool_rows)) {
        return Element{};
    }
    int64_t const at = int64_t{item.index} * side.pool_stride + column;
    return static_cast<Element const*>(side.pool)[at];
}

template <int kElement, int kOut, int kLoad>
CKV_DEVICE Raw<kOut> gather(PooledSide const& side, Item const& item) {
    constexpr int kPerVector = kOut / kElement;
    union {
        Raw<kOut> whole;
        Raw<kLoad> loads[kOut / kLoad];
        Raw<kElement> elements[kPerVector];
    } vector{};
    if (item.column + kPerVector > side.pool_width) {
#pragma unroll
        for (int i = 0; i < kPerVector; ++i) {
            vector.elements[i] = element<kElement>(side, item, item.column + i);
        }
    } else if (inside(item.index, side.pool_rows)) {
        int64_t const at = int64_t{item.index} * side.pool_stride + item.column;
        auto const* from = static_cast<char const*>(side.pool) + at * kElement;
#pragma unroll
        for (int i = 0; i < kOut / kLoad; ++i) {
            vector.loads[i] = reinterpret_cast<Raw<kLoad> const*>(from)[i];
        }
    }
    return vector.whole;
}

template <int kElement, int kOut>
CKV_DEVICE Item locate(GatherArgs const& p, int64_t first_row, int32_t item_in_block) {
    int32_t const rows_down = item_in_block / p.chunks;
    int64_t const row = first_row + rows_down;
    bool const exists = row < p.a.rows;
    int32_t const column = (item_in_block - rows_down * p.chunks) * (kOut / kElement);
    return {row, column, exists ? p.a.side.index[row] : 0, exists};
}

template <int kElement, int kOut, int kLoad>
CKV_KERNEL(kThreads) gather_concat_kernel(GatherArgs p) {
    // 64-bit division once a block; within it, 32 bits do.
    int64_t const first_item = int64_t{device::block_x()} * (kThreads * kItems);
    int64_t const first_row = first_item / p.chunks;
    int32_t const into_row = static_cast<int32_t>(first_item - first_row * p.chunks);
    Item items[kItems];
    Raw<kOut> vectors[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
        int32_t const at = into_row + i * kThreads + device::thread();
        items[i] = locate<kElement, kOut>(p, first_row, at);
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
        if (items[i].exists) {
            vectors[i] = gather<kElement, kOut, kLoad>(p.a.side, items[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
        if (!items[i].exists) {
            continue;
        }
        int64_t const at = items[i].row * p.a.out_stride + items[i].column;
        *reinterpret_cast<Raw<kOut>*>(static_cast<char*>(p.a.out) + at * kElement) = vectors[i];
        bool const first_of_row = items[i].column == 0;
        if (first_of_row && p.a.bad_rows && !inside(items[i].index, p.a.side.pool_rows)) {
            device::atomic_add(p.a.bad_rows, 1);
        }
    }
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
    int32_t const load =
        power_of_two_divisor(address(args.side.pool) | bytes(args.side.pool_stride), out);
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
