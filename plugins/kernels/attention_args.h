// What both attention kernels and their combine take, and how a launch is planned.
#pragma once

#include "ckv/pooled_attention.h"
#include "tiling.h"

namespace ckv {

enum class Form : int32_t { kSoftmax, kPointwise };

// How the rows of one side of the cache can be copied.
struct CopyWidth {
    int32_t vector;     // elements of the widest copy that suits every head slice of the pool
    bool user_aligned;  // whether it suits vectors that lie in the user part alone
};

// Elements of the widest copy, up to 16 bytes, for which `address` and both offsets, in elements
// of `bytes`, are aligned.
CKV_PURE int32_t copy_vector(
    uint64_t address, int64_t offset, int64_t other_offset, int32_t bytes) {
    uint64_t const offsets = static_cast<uint64_t>(offset) | static_cast<uint64_t>(other_offset);
    int32_t const aligned =
        power_of_two_divisor(address | offsets * static_cast<uint64_t>(bytes), 16);
    return aligned <= bytes ? 1 : aligned / bytes;
}

CKV_PURE CopyWidth copy_width(uint64_t pool, int64_t pool_stride, uint64_t user,
    int64_t user_stride, int32_t pool_width, int32_t head_width, int32_t bytes) {
    int32_t const vector = copy_vector(pool, pool_stride, head_width, bytes);
    // Columns of the user part begin where the pool's end.
    return {vector, copy_vector(user, user_stride, pool_width, bytes) >= vector};
}

// Queries move in one of two ways only, by 16 bytes or one element: they are read once a block.
CKV_PURE int32_t query_vector(uint64_t query, int32_t width, int32_t head_width, int32_t bytes) {
    int32_t const widest = 16 / bytes;
    return copy_vector(query, width, head_width, bytes) == widest ? widest : 1;
}

// One launch of an attention kernel. Passed by value: it lives in the constant bank.
struct KernelArgs {
    AttentionArgs a;
    int32_t const* mask;     // softmax
    void const* bias;        // pointwise, as visible and count
    int32_t const* visible;
    void const* count;
    bool count_is_float32;
    int32_t head_width;
    int32_t query_tiles;
    Split split;
    int32_t query_vector;  // elements of a copy of queries
    CopyWidth key_copy, value_copy;
    // Results of split spans, null when there is one: sums [split, batch, queries, width] not yet
    // divided; peak and total of the softmax [split, batch, queries, heads].
    float* sums;
    float* peaks;
    float* totals;
};

// Sizes of a kernel's tile; what the plan has to know of it.
struct Tile {
    int32_t queries;       // rows of one block
    int32_t warps;         // of one block
    int32_t value_chunks;  // blocks that share a head's value columns
};

CKV_PURE int64_t query_tiles(AttentionArgs const& a, Tile tile) {
    return ceil_div(a.queries, tile.queries);
}

CKV_PURE Split plan_split(AttentionArgs const& a, Tile tile, bool may_split) {
    if (!may_split) {
        return {1, a.events};
    }
    int64_t const blocks = int64_t{a.batch} * a.heads * query_tiles(a, tile) * tile.value_chunks;
    return split_events(blocks * tile.warps, a.events);
}

// Floats that a split launch leaves for its combine.
CKV_PURE int64_t split_floats(AttentionArgs const& a, int32_t splits) {
    int64_t const rows = int64_t{a.batch} * a.queries;
    return splits <= 1 ? 0 : splits * rows * (a.width + 2 * int64_t{a.heads});
}

// No tile has more rows for each of its warps.
constexpr int64_t kRowsOfWarp = 16;

// The most floats that any launch within the sizes of `largest` leaves, whatever its tile. Smaller
// launches split more: up to the target, splits * blocks stays below target / warps + blocks, so
// rows do too.
CKV_PURE int64_t most_split_floats(AttentionArgs const& largest) {
    int64_t const most = smaller(kMostSplits, ceil_div(largest.events, kShortestSpan));
    if (most <= 1) {
        return 0;
    }
    // A launch splits only below the target, hence with at most twice its warps over all splits;
    // each has rows of one head.
    int64_t const rows = 2 * kTargetWarps * kRowsOfWarp;
    int64_t const rows_heads = int64_t{largest.batch} * largest.queries * largest.heads * most;
    int64_t const head_width = largest.width / larger(largest.heads, 1);
    return smaller(rows, rows_heads) * (head_width + 2);
}

}  // namespace ckv
