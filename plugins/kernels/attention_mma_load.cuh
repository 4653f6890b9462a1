// Shared memory of the tensor-core kernel, and how queries and tiles of events get there.
//
// Which pool rows a tile takes is read a tile ahead of their copies, so that no copy waits for an
// index. A thread keeps its columns from row to row: what depends on them alone is worked out once.
#pragma once

#include <cstddef>
#include <type_traits>

#include "attention_links.cuh"

namespace ckv::mma {

constexpr int kStages = 2;
// The tile worked on, the one that arrives, and the one after it.
constexpr int kLinkStages = 3;

// Tile sizes for heads padded to kHead columns. Shared memory stays below 99 KiB, the most that a
// block has on consumer GPUs; a wide head pays for its columns with fewer events a tile.
template <typename T, int kHead>
struct Sizes {
    static constexpr int kRowBytes = kHead * static_cast<int>(sizeof(T));
    static constexpr int kEvents = kRowBytes <= 128 ? 64 : 8192 / kRowBytes;
    static constexpr int kMostWarps = kHead <= 64 ? 8 : 4;
    // Padded by 16 bytes: the eight rows of an ldmatrix then fall into different banks, and so do
    // the elements of every second fp32 row.
    static constexpr int kPitch = kHead + 16 / static_cast<int>(sizeof(T));
    // Blocks of one multiprocessor, at least: what registers (a wide head has many sums) and, for
    // blocks of one warp, shared memory leave room for.
    static constexpr int resident_blocks(int warps) {
        return warps == 1 ? 8 : (kHead <= 64 ? 16 : (kHead <= 128 ? 12 : 8)) / warps;
    }
};

template <typename T, int kHead, int kWarps>
struct alignas(16) Shared {
    using S = Sizes<T, kHead>;
    T query[16 * kWarps][S::kPitch];
    T key[kStages][S::kEvents][S::kPitch];
    T value[kStages][S::kEvents][S::kPitch];
    Links<S::kEvents> links[kLinkStages];
    int bounds[2];
};

#if CKV_HAS_MMA && (defined(__CUDA_ARCH__) || defined(CKV_EMULATE))

// A tile of one side's events, where it comes from.
struct TileSource {
    PooledSide const& side;
    int32_t const* pool_rows;  // Links::key or value
    int64_t first_row;         // of the tile, in the user part
    int32_t existing;          // events of the tile that exist, perhaps more than it has
    int32_t head_column, head_width;
};

// `kVector` columns of some rows by asynchronous copies: row r from base + number(r) * stride, or
// zeros where number(r) < 0.
template <typename T, int kVector, int kRows, int kRowStep, int kPitch, typename Number>
CKV_DEVICE void copy_rows(T (*to)[kPitch], int32_t first, int32_t column, T const* base,
    int64_t stride, Number const& number) {
    // Strides are below 2^31 bytes (pooled_attention.cu, `sound`): one wide multiplication a row.
    auto const row_bytes = static_cast<int32_t>(stride) * static_cast<int32_t>(sizeof(T));
    constexpr int kAtOnce = kRows < 8 ? kRows : 8;
#pragma unroll 1
    for (int i = 0; i < kRows; i += kAtOnce) {
        int32_t n[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
            n[j] = number(first + (i + j) * kRowStep);
        }
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
            auto const* from = reinterpret_cast<char const*>(base) + int64_t{n[j]} * row_bytes;
            device::copy_async<kVector * static_cast<int>(sizeof(T))>(
                &to[first + (i + j) * kRowStep][column], from, n[j]);
        }
    }
}

template <typename T>
CKV_DEVICE T source_element(TileSource const& from, int32_t r, int32_t column) {
    int32_t const in_user = from.head_column + column - from.side.pool_width;
    if (r >= from.existing) {
        return from_float<T>(0.0F);
    }
    if (in_user >= 0) {
        int64_t const at = (from.first_row + r) * from.side.user_stride + in_user;
        return static_cast<T const*>(from.side.user)[at];
    }
    int32_t const row = from.pool_rows[r];
    if (row < 0) {
        return from_float<T>(0.0F);
    }
    int64_t const at = row * from.side.pool_stride + from.head_column + column;
    return static_cast<T const*>(from.side.pool)[at];
}

// The same by plain loads, where a vector is of both parts or 16 bits: a few in flight.
template <typename T, int kVector, int kRows, int kRowStep, int kPitch>
CKV_DEVICE void copy_elements(
    T (*to)[kPitch], int32_t first, int32_t column, TileSource const& from) {
    constexpr int kAtOnce = kRows < 4 ? kRows : 4;
#pragma unroll 1
    for (int i = 0; i < kRows * kVector; i += kAtOnce) {
        T elements[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
            int32_t const r = first + (i + j) % kRows * kRowStep;
            elements[j] = source_element<T>(from, r, column + i / kRows);
        }
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
            to[first + (i + j) % kRows * kRowStep][column + i / kRows] = elements[j];
        }
    }
}

template <typename T, int kHead, int kThreads, int kVector>
CKV_DEVICE void load_rows(
    T (*to)[Sizes<T, kHead>::kPitch], TileSource const& from, bool user_aligned) {
    constexpr int kLanes = kHead / kVector < kThreads ? kHead / kVector : kThreads;
    constexpr int kRowStep = kThreads / kLanes;
    constexpr int kRows = Sizes<T, kHead>::kEvents / kRowStep;
    static_assert(kRows * kRowStep == Sizes<T, kHead>::kEvents, "whole rounds");
    int32_t const first = device::thread() / kLanes;
#pragma unroll
    for (int c = 0; c < kHead; c += kLanes * kVector) {
        int32_t const column = c + device::thread() % kLanes * kVector;
        if (column >= from.head_width) {
            continue;
        }
        if constexpr (kVector * sizeof(T) >= 4) {
            int32_t const in_row = from.head_column + column;
            int32_t const in_user = in_row - from.side.pool_width;
            if (in_user + kVector <= 0) {
                copy_rows<T, kVector, kRows, kRowStep>(to, first, column,
                    static_cast<T const*>(from.side.pool) + in_row, from.side.pool_stride,
                    [&](int32_t r) { return from.pool_rows[r]; });
                continue;
            }
            if (in_user >= 0 && user_aligned) {
                int64_t const at = from.first_row * from.side.user_stride + in_user;
                copy_rows<T, kVector, kRows, kRowStep>(to, first, column,
                    static_cast<T const*>(from.side.user) + at, from.side.user_stride,
                    [&](int32_t r) { return r < from.existing ? r : -1; });
                continue;
            }
        }
        copy_elements<T, kVector, kRows, kRowStep>(to, first, column, from);
    }
}

template <typename T, int kHead, int kThreads>
CKV_DEVICE void load_side(
    T (*to)[Sizes<T, kHead>::kPitch], TileSource const& from, CopyWidth const& width) {
    auto const load = [&](auto vector) {
        load_rows<T, kHead, kThreads, decltype(vector)::value>(to, from, width.user_aligned);
    };
    constexpr int kWidest = 16 / static_cast<int>(sizeof(T));
    switch (width.vector) {
        case 8: load(std::integral_constant<int, kWidest>{}); break;  // of 16 bits
        case 4: load(std::integral_constant<int, 4>{}); break;
        case 2: load(std::integral_constant<int, 2>{}); break;
        default: load(std::integral_constant<int, 1>{}); break;
    }
}

// Begins to copy the rows of the tile at `event`, whose links are `links`, into `stage`.
template <typename T, int kHead, int kWarps>
CKV_DEVICE void load_tile(Shared<T, kHead, kWarps>& shared, int stage,
    Links<Sizes<T, kHead>::kEvents> const& links, KernelArgs const& p, BlockPlace const& at,
    int32_t event, int end) {
    int64_t const first_row = int64_t{at.batch} * p.a.events + event;
    int32_t const head_column = at.head * p.head_width;
    load_side<T, kHead, 32 * kWarps>(shared.key[stage],
        {p.a.key, links.key, first_row, end - event, head_column, p.head_width}, p.key_copy);
    load_side<T, kHead, 32 * kWarps>(shared.value[stage],
        {p.a.value, links.value, first_row, end - event, head_column, p.head_width},
        p.value_copy);
    device::commit_copies();
}

template <typename T, int kHead, int kWarps>
CKV_DEVICE void load_queries(
    Shared<T, kHead, kWarps>& shared, KernelArgs const& p, BlockPlace const& at) {
    auto const* queries = static_cast<T const*>(p.a.query);
    int const vectors = p.head_width / p.query_vector;
    for (int i = device::thread(); i < 16 * kWarps * vectors; i += 32 * kWarps) {
        int const r = i / vectors;
        int const column = i % vectors * p.query_vector;
        if (at.first_query + r >= p.a.queries) {
            continue;
        }
        int64_t const row = int64_t{at.batch} * p.a.queries + at.first_query + r;
        T const* from = queries + row * p.a.width + at.head * p.head_width + column;
        T* to = &shared.query[r][column];
        if (p.query_vector > 1) {
            *reinterpret_cast<uint4*>(to) = *reinterpret_cast<uint4 const*>(from);
        } else {
            *to = *from;
        }
    }
}

// Padding columns and missing queries are multiplied too: they must be zeros, not leftovers.
template <typename T, int kHead, int kWarps>
CKV_DEVICE void clear_tiles(Shared<T, kHead, kWarps>& shared) {
    using Tiles = Shared<T, kHead, kWarps>;
    constexpr int kBytes = offsetof(Tiles, links);
    static_assert(kBytes % 16 == 0, "rows are padded to 16 bytes");
    auto* words = reinterpret_cast<uint4*>(&shared);
    for (int i = device::thread(); i < kBytes / 16; i += 32 * kWarps) {
        words[i] = uint4{0, 0, 0, 0};
    }
    device::sync();
}

#endif  // CKV_HAS_MMA

}  // namespace ckv::mma
