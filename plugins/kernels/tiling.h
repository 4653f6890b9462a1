// Index arithmetic of the kernels: which block does what, and where rows break.
//
// Pure functions of sizes, for host and device alike, so that they are tested without a GPU.
#pragma once

#include <cstdint>

#include "ckv/pooled_attention.h"

#if defined(__CUDACC__)
#define CKV_PURE __host__ __device__ constexpr
#else
#define CKV_PURE constexpr
#endif

namespace ckv {

CKV_PURE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
CKV_PURE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
CKV_PURE int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

CKV_PURE bool inside(int32_t index, int64_t rows) { return index >= 0 && index < rows; }

// Largest power of two up to `most` that divides `x`; `most` for 0.
CKV_PURE int32_t power_of_two_divisor(uint64_t x, int32_t most) {
    uint64_t const y = x | static_cast<uint64_t>(most);
    return static_cast<int32_t>(y & (~y + 1));  // the lowest bit
}

// Events [begin, end).
struct Span {
    int32_t begin, end;
};

// Events over blocks: `count` spans of `length`, the last one shorter. None is empty.
struct Split {
    int32_t count = 1;
    int32_t length = 0;

    CKV_PURE Span span(int32_t split, int32_t events) const {
        int64_t const begin = int64_t{split} * length;
        return {static_cast<int32_t>(begin),
            static_cast<int32_t>(smaller(begin + length, events))};
    }
};

// Enough warps to occupy a large GPU. A constant, not the GPU's size: results and workspace are
// then the same on every machine, and an engine moved to another GPU still fits its workspace.
constexpr int64_t kTargetWarps = 2048;
// A shorter span costs more in its combine than it saves.
constexpr int64_t kShortestSpan = 64;
// Of the combine's loop, and of the workspace.
constexpr int64_t kMostSplits = 64;
// Rounding a span's length up costs the last span less than that many events: some are left.
static_assert(kMostSplits <= kShortestSpan);

// Splits `events` so that `warps`, the warps of an unsplit launch, grow to about the target.
CKV_PURE Split split_events(int64_t warps, int32_t events) {
    int64_t const wanted = ceil_div(kTargetWarps, larger(warps, 1));
    int64_t const most = smaller(kMostSplits, ceil_div(events, kShortestSpan));
    int64_t const parts = larger(1, smaller(wanted, most));
    return {static_cast<int32_t>(parts), static_cast<int32_t>(ceil_div(events, parts))};
}

// What one block works on: a tile of one user's queries, one head.
struct BlockPlace {
    int32_t batch, head, first_query;
};

CKV_PURE BlockPlace block_place(
    uint32_t block, int32_t query_tiles, int32_t tile, int32_t heads) {
    uint32_t const tiles = static_cast<uint32_t>(query_tiles);
    uint32_t const rest = block / tiles;
    uint32_t const all_heads = static_cast<uint32_t>(heads);
    return {static_cast<int32_t>(rest / all_heads), static_cast<int32_t>(rest % all_heads),
        static_cast<int32_t>(block % tiles) * tile};
}

}  // namespace ckv
