// PoolGatherConcat on the device, for the launch in pool_gather_concat.cu and for aot/.
//
// Bound by memory. The published shapes leave pool rows badly aligned (d = 256, d_u = 2: rows of
// 254 elements), output rows well, so loads and stores have their own vector width. A thread keeps
// several items in flight, because each begins with an index load that its pool load waits for.
#pragma once

#include "ckv/pool_gather_concat.h"
#include "numbers.cuh"
#include "tiling.h"

namespace ckv::gather_concat {

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

// What one block writes: kThreads * kItems vectors of `kOut` bytes, pool rows loaded `kLoad` at once.
template <int kElement, int kOut, int kLoad>
CKV_DEVICE void gather_concat_block(GatherArgs const& p) {
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

// Bytes of the widest vector that rows of `elements` keep aligned behind an aligned base.
CKV_PURE int32_t row_vector(int64_t elements, int32_t element_bytes, int32_t most) {
    return power_of_two_divisor(static_cast<uint64_t>(elements * element_bytes), most);
}

}  // namespace ckv::gather_concat
