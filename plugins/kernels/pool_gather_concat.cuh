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

// One vector in pieces of kLoad bytes. A piece is of the pool or of the user part, never of both:
// all threads then take the same loads, also those whose vector has the border within.
template <int kElement, int kOut, int kLoad>
CKV_DEVICE Raw<kOut> gather(PooledSide const& side, Item const& item) {
    union {
        Raw<kOut> whole;
        Raw<kLoad> pieces[kOut / kLoad];
    } vector{};
    int64_t const in_pool = int64_t{item.index} * side.pool_stride + item.column;
    int64_t const in_user = item.row * side.user_stride + item.column - side.pool_width;
    auto const* pool = static_cast<char const*>(side.pool) + in_pool * kElement;
    auto const* user = static_cast<char const*>(side.user) + in_user * kElement;
    bool const good = inside(item.index, side.pool_rows);
#pragma unroll
    for (int i = 0; i < kOut / kLoad; ++i) {
        bool const of_user = item.column + i * (kLoad / kElement) >= side.pool_width;
        if (of_user || good) {
            auto const* from = of_user ? user : pool;
            vector.pieces[i] = *reinterpret_cast<Raw<kLoad> const*>(from + i * kLoad);
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

// What one block writes: kThreads * kItems vectors of `kOut` bytes. `kLoad` bytes, a divisor of
// those, suit every address that is read, and the border between pool and user part.
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
