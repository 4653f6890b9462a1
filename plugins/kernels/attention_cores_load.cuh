// Shared memory of the kernel for ordinary cores, and how queries and tiles of events get there.
//
// What comes next is fetched into registers before the present tile is worked on and stored after
// it: that hides the way from global memory on any GPU, for any element type and alignment.
#pragma once

#include "attention_links.cuh"

namespace ckv::cores {

constexpr int kThreads = 256;
constexpr int kResidentBlocks = 2;  // of one multiprocessor, at least
constexpr int kSide = 16;    // threads along a side
constexpr int kEvents = 32;  // events of a tile
constexpr int kChunk = 32;   // columns of a score chunk
// Rows are padded by 16 bytes: float4 reads of neighbouring rows then hit different banks.
constexpr int kPitch = kChunk + 4;
static_assert(kEvents == kChunk, "one pitch serves both");

template <int kRows, int kValues>
struct Shared {
    float query[kSide * kRows][kPitch];
    float key[kEvents][kPitch];
    float weight[kSide * kRows][kPitch];
    float value[kEvents][kValues];
    Links<kEvents> links[2];  // of this tile and the next
    int bounds[2];
};

// What a block and its threads work on.
struct Work {
    BlockPlace at;
    int64_t first_row;     // of the user's events
    int32_t head_column;   // where the head begins in a row
    int32_t first_value;   // and the block's value columns in the head
    int y, x;              // of the thread
};

template <int kRows, int kValues>
CKV_DEVICE Work work_of(KernelArgs const& p) {
    BlockPlace const at =
        block_place(device::block_x(), p.query_tiles, kSide * kRows, p.a.heads);
    return {at, int64_t{at.batch} * p.a.events, at.head * p.head_width,
        static_cast<int32_t>(device::block_z()) * kValues, device::thread() / kSide,
        device::thread() % kSide};
}

// Rows of `kChunk` columns: a warp takes every eighth, a lane keeps its column.
constexpr int kRowStep = kThreads / kChunk;
constexpr int kTileRows = kEvents / kRowStep;  // of a thread, in a tile

// `kWide` columns, from `first` of the head on, of the tile at `event`; zeros past the head's end.
template <typename T, int kWide>
CKV_DEVICE void fetch_events(T (&ahead)[kWide / kChunk][kTileRows], PooledSide const& side,
    int32_t const* pool_rows, KernelArgs const& p, Work const& work, int32_t event, int end,
    int32_t first) {
#pragma unroll
    for (int c = 0; c < kWide / kChunk; ++c) {
        int32_t const column = first + c * kChunk + device::lane();
        int32_t const in_row = work.head_column + column;
        int32_t const in_user = in_row - side.pool_width;
        bool const of_user = in_user >= 0;
        // Strides are below 2^29 (pooled_attention.cu, `sound`): one wide multiplication a row.
        auto const stride = static_cast<int32_t>(of_user ? side.user_stride : side.pool_stride);
        auto const* base = of_user ? static_cast<T const*>(side.user) +
                                         (work.first_row + event) * side.user_stride + in_user
                                   : static_cast<T const*>(side.pool) + in_row;
#pragma unroll
        for (int i = 0; i < kTileRows; ++i) {
            int32_t const r = device::warp() + i * kRowStep;
            int32_t const number = of_user ? (event + r < end ? r : -1) : pool_rows[r];
            bool const exists = column < p.head_width && number >= 0;
            ahead[c][i] = exists ? base[int64_t{number} * stride] : from_float<T>(0.0F);
        }
    }
}

template <typename T, int kWide, int kPitchOfRows>
CKV_DEVICE void store_events(
    float (*to)[kPitchOfRows], T const (&ahead)[kWide / kChunk][kTileRows]) {
#pragma unroll
    for (int c = 0; c < kWide / kChunk; ++c) {
#pragma unroll
        for (int i = 0; i < kTileRows; ++i) {
            to[device::warp() + i * kRowStep][c * kChunk + device::lane()] =
                to_float(ahead[c][i]);
        }
    }
}

// A chunk of the block's queries from column `first` of the head; zeros past its end.
template <typename T, int kRows>
CKV_DEVICE void fetch_queries(
    T (&ahead)[2 * kRows], KernelArgs const& p, Work const& work, int32_t first) {
    int32_t const column = first + device::lane();
#pragma unroll
    for (int i = 0; i < 2 * kRows; ++i) {
        int32_t const query = work.at.first_query + device::warp() + i * kRowStep;
        int64_t const row = int64_t{work.at.batch} * p.a.queries + query;
        bool const exists = query < p.a.queries && column < p.head_width;
        ahead[i] = exists ? static_cast<T const*>(
                                p.a.query)[row * p.a.width + work.head_column + column]
                          : from_float<T>(0.0F);
    }
}

template <typename T, int kRows>
CKV_DEVICE void store_queries(float (*to)[kPitch], T const (&ahead)[2 * kRows]) {
#pragma unroll
    for (int i = 0; i < 2 * kRows; ++i) {
        to[device::warp() + i * kRowStep][device::lane()] = to_float(ahead[i]);
    }
}

// Of one thread: what the next chunk of scores needs, and the next tile's values.
template <typename T, int kRows, int kValues>
struct Ahead {
    T key[1][kTileRows];
    T value[kValues / kChunk][kTileRows];
    T query[2 * kRows];
};

// A head of one chunk keeps its queries in shared memory from the first tile on.
template <int kValues>
constexpr bool kQueriesStay = kValues <= kChunk;

template <typename T, int kRows, int kValues>
CKV_DEVICE void fetch_chunk(Ahead<T, kRows, kValues>& ahead, Links<kEvents> const& links,
    KernelArgs const& p, Work const& work, int32_t event, int end, int32_t first) {
    fetch_events<T, kChunk>(ahead.key, p.a.key, links.key, p, work, event, end, first);
    if constexpr (!kQueriesStay<kValues>) {
        fetch_queries<T, kRows>(ahead.query, p, work, first);
    }
}

// The tile's first chunk and its values.
template <typename T, int kRows, int kValues>
CKV_DEVICE void fetch_tile(Ahead<T, kRows, kValues>& ahead, Links<kEvents> const& links,
    KernelArgs const& p, Work const& work, int32_t event, int end) {
    fetch_chunk(ahead, links, p, work, event, end, 0);
    fetch_events<T, kValues>(
        ahead.value, p.a.value, links.value, p, work, event, end, work.first_value);
}

template <typename T, int kRows, int kValues>
CKV_DEVICE void store_chunk(
    Shared<kRows, kValues>& shared, Ahead<T, kRows, kValues> const& ahead) {
    store_events<T, kChunk>(shared.key, ahead.key);
    if constexpr (!kQueriesStay<kValues>) {
        store_queries<T, kRows>(shared.query, ahead.query);
    }
}

}  // namespace ckv::cores
