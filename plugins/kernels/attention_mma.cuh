// Attention on the tensor cores (mma.m16n8k16, sm_80 and later), fp16 and bf16, heads up to 256.
//
// A warp owns 16 queries; the warps of a block share each tile of gathered keys and values in
// shared memory. Scores stay in registers: the accumulator layout of one product is the operand
// layout of the next. While a tile is worked on, the rows of the next one arrive (cp.async, two
// stages). Sums are fp32; weights are rounded to T before they meet the values.
#pragma once

#include <cstddef>
#include <type_traits>

#include "attention.cuh"
#include "launch.h"

namespace ckv::mma {

// Row padding, 16 bytes: the eight rows of an ldmatrix then fall into different banks.
constexpr int kPad = 8;
constexpr int kStages = 2;

// Tile sizes for heads padded to kHead columns. Shared memory stays below 99 KiB, the most that a
// block has on consumer GPUs; a wide head pays for its columns with fewer events a tile.
template <int kHead>
struct Sizes {
    static constexpr int kEvents = kHead <= 64 ? 64 : (kHead <= 128 ? 32 : 16);
    static constexpr int kMostWarps = kHead <= 64 ? 8 : 4;
    static constexpr int kPitch = kHead + kPad;
};

template <typename T, int kHead, int kWarps>
struct alignas(16) Shared {
    using S = Sizes<kHead>;
    T query[16 * kWarps][S::kPitch];
    T key[kStages][S::kEvents][S::kPitch];
    T value[kStages][S::kEvents][S::kPitch];
    int32_t state[kStages][S::kEvents];
    int bounds[2];
};

#if CKV_HAS_MMA && (defined(__CUDA_ARCH__) || defined(CKV_EMULATE))

// One row's slice that is about to be copied.
template <typename T>
struct Source {
    T const* pool;   // the slice's first column of the pool row, null for a bad index
    T const* user;   // the user part, from its column 0
    int32_t border;  // how many of the slice's columns are the pool's; may be < 0 or past its end
    bool exists;
};

template <typename T>
CKV_DEVICE Source<T> source(PooledSide const& side, int64_t row, bool exists, int32_t column) {
    if (!exists) {
        return {nullptr, nullptr, 0, false};
    }
    int32_t const index = side.index[row];
    T const* pool = nullptr;
    if (inside(index, side.pool_rows)) {
        pool = static_cast<T const*>(side.pool) + index * side.pool_stride + column;
    }
    return {pool, static_cast<T const*>(side.user) + row * side.user_stride,
        side.pool_width - column, true};
}

template <typename T>
CKV_DEVICE T source_element(Source<T> const& from, int32_t column) {
    if (!from.exists) {
        return from_float<T>(0.0F);
    }
    if (column >= from.border) {
        return from.user[column - from.border];
    }
    return from.pool ? from.pool[column] : from_float<T>(0.0F);
}

// Copies kVector columns from `column`: one asynchronous copy inside the pool row, else plain ones.
template <typename T, int kVector>
CKV_DEVICE void copy_vector(T* to, Source<T> const& from, int32_t column) {
    if constexpr (kVector > 1) {
        if (from.exists && from.pool && column + kVector <= from.border) {
            device::copy_async<kVector * static_cast<int>(sizeof(T))>(to, from.pool + column);
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
        to[i] = source_element(from, column + i);
    }
}

template <typename T, int kHead, int kThreads, int kVector>
CKV_DEVICE void load_rows(T (*to)[Sizes<kHead>::kPitch], PooledSide const& side,
    int64_t first_row, int32_t event, int end, int32_t head_column, int32_t head_width) {
    constexpr int kVectors = kHead / kVector;
    for (int i = device::thread(); i < Sizes<kHead>::kEvents * kVectors; i += kThreads) {
        int const r = i / kVectors;
        int const column = i % kVectors * kVector;
        if (column < head_width) {
            Source<T> const from =
                source<T>(side, first_row + event + r, event + r < end, head_column);
            copy_vector<T, kVector>(&to[r][column], from, column);
        }
    }
}

template <typename T, int kHead, int kThreads>
CKV_DEVICE void load_side(T (*to)[Sizes<kHead>::kPitch], PooledSide const& side, int vector,
    int64_t first_row, int32_t event, int end, int32_t head_column, int32_t head_width) {
    auto const load = [&](auto width) {
        load_rows<T, kHead, kThreads, decltype(width)::value>(
            to, side, first_row, event, end, head_column, head_width);
    };
    switch (vector) {
        case 8: load(std::integral_constant<int, 8>{}); break;
        case 4: load(std::integral_constant<int, 4>{}); break;
        case 2: load(std::integral_constant<int, 2>{}); break;
        default: load(std::integral_constant<int, 1>{}); break;
    }
}

template <typename T, Form kForm, int kHead, int kWarps>
CKV_DEVICE void load_tile(Shared<T, kHead, kWarps>& shared, int stage, KernelArgs const& p,
    BlockPlace const& at, int32_t event, int end) {
    constexpr int kThreads = 32 * kWarps;
    int64_t const first_row = int64_t{at.batch} * p.a.events;
    int32_t const head_column = at.head * p.head_width;
    load_side<T, kHead, kThreads>(shared.key[stage], p.a.key, p.key_vector, first_row, event, end,
        head_column, p.head_width);
    load_side<T, kHead, kThreads>(shared.value[stage], p.a.value, p.value_vector, first_row, event,
        end, head_column, p.head_width);
    for (int r = device::thread(); r < Sizes<kHead>::kEvents; r += kThreads) {
        shared.state[stage][r] = event_state<kForm>(p, first_row, event + r, end);
    }
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
        if (p.query_vector == 8) {
            *reinterpret_cast<uint4*>(to) = *reinterpret_cast<uint4 const*>(from);
        } else {
            *to = *from;
        }
    }
}

// Padding columns, missing queries and rows are multiplied too: they must be zeros, not leftovers.
template <typename T, int kHead, int kWarps>
CKV_DEVICE void clear_tiles(Shared<T, kHead, kWarps>& shared) {
    using Tiles = Shared<T, kHead, kWarps>;
    constexpr int kBytes = offsetof(Tiles, state);
    static_assert(kBytes % 16 == 0, "rows are padded to 16 bytes");
    auto* words = reinterpret_cast<uint4*>(&shared);
    for (int i = device::thread(); i < kBytes / 16; i += 32 * kWarps) {
        words[i] = uint4{0, 0, 0, 0};
    }
    device::sync();
}

// scores [16 queries, kEvents] of the warp; register pair i of block n: row lane / 4 + 8 i,
// events 8 n + 2 (lane % 4) and the next.
template <typename T, int kHead, int kBlocks>
CKV_DEVICE void add_scores(float (&scores)[kBlocks][4], T const (*query)[Sizes<kHead>::kPitch],
    T const (*key)[Sizes<kHead>::kPitch]) {
    int const lane = device::lane();
#pragma unroll
    for (int k = 0; k < kHead; k += 16) {
        uint32_t a[4];
        device::load_matrices(a, &query[lane & 15][k + (lane >> 4) * 8]);
#pragma unroll
        for (int n = 0; n < kBlocks; n += 2) {
            uint32_t b[4];
            int const event = n * 8 + (lane & 7) + (lane >> 4) * 8;
            device::load_matrices(b, &key[event][k + ((lane >> 3) & 1) * 8]);
            device::multiply(scores[n], a, b[0], b[1], T{});
            device::multiply(scores[n + 1], a, b[2], b[3], T{});
        }
    }
}

// sums [16 queries, kHead] += weights . values; the layout of scores, columns for events.
template <typename T, int kHead, int kBlocks>
CKV_DEVICE void add_values(float (&sums)[kHead / 8][4], float const (&weights)[kBlocks][4],
    T const (*value)[Sizes<kHead>::kPitch]) {
    int const lane = device::lane();
#pragma unroll
    for (int n = 0; n < kBlocks; n += 2) {
        uint32_t const a[4] = {pack<T>(weights[n][0], weights[n][1]),
            pack<T>(weights[n][2], weights[n][3]), pack<T>(weights[n + 1][0], weights[n + 1][1]),
            pack<T>(weights[n + 1][2], weights[n + 1][3])};
#pragma unroll
        for (int c = 0; c < kHead; c += 16) {
            uint32_t b[4];
            device::load_transposed(b, &value[n * 8 + (lane & 15)][c + (lane >> 4) * 8]);
            device::multiply(sums[c / 8], a, b[0], b[1], T{});
            device::multiply(sums[c / 8 + 1], a, b[2], b[3], T{});
        }
    }
}

// Over the four lanes that share a row.
CKV_DEVICE float quad_max(float x) {
    x = fmaxf(x, device::shuffle_xor(x, 1));
    return fmaxf(x, device::shuffle_xor(x, 2));
}
CKV_DEVICE float quad_sum(float x) {
    x += device::shuffle_xor(x, 1);
    return x + device::shuffle_xor(x, 2);
}

struct Softmax {
    float peak[2];
    float total[2];  // of this lane's events only, until the end
};

template <int kBlocks, int kColumns>
CKV_DEVICE void softmax_step(float (&scores)[kBlocks][4], float (&sums)[kColumns][4],
    Softmax& running, int32_t const* state, float scale) {
    int const first = 2 * (device::lane() & 3);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        float peak = running.peak[row];
#pragma unroll
        for (int i = 0; i < 2 * kBlocks; ++i) {
            float& x = scores[i / 2][2 * row + i % 2];
            int32_t const s = state[i / 2 * 8 + first + i % 2];
            x = s == kSeen ? x * (scale * kLog2E) : (s == kMasked ? kMaskedLog2 : -INFINITY);
            peak = fmaxf(peak, x);
        }
        // Every tile holds an event of the span, so the peak is finite from the first tile on.
        peak = quad_max(peak);
        float const shrink = device::exp2_(running.peak[row] - peak);
        float total = running.total[row] * shrink;
#pragma unroll
        for (int i = 0; i < 2 * kBlocks; ++i) {
            float& x = scores[i / 2][2 * row + i % 2];
            x = device::exp2_(x - peak);
            total += x;
        }
        running.peak[row] = peak;
        running.total[row] = total;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
            sums[c][2 * row] *= shrink;
            sums[c][2 * row + 1] *= shrink;
        }
    }
}

template <typename T, int kBlocks>
CKV_DEVICE void pointwise_step(float (&scores)[kBlocks][4], KernelArgs const& p, int32_t batch,
    int32_t first_query, int32_t first_event, int32_t const* state) {
    int const first = 2 * (device::lane() & 3);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        int const query = first_query + device::lane() / 4 + 8 * row;
        int64_t const query_row = int64_t{batch} * p.a.queries + query;
#pragma unroll
        for (int i = 0; i < 2 * kBlocks; ++i) {
            float& x = scores[i / 2][2 * row + i % 2];
            int const e = i / 2 * 8 + first + i % 2;
            bool const counted = query < p.a.queries && state[e] == kSeen;
            x = counted ? pointwise_weight<T>(p, query_row, first_event + e, x * p.a.scale) : 0.0F;
        }
    }
}

#endif  // CKV_HAS_MMA

}  // namespace ckv::mma
