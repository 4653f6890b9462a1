// Attention on the ordinary cores, for every element type, head width and GPU.
//
// A block of 16 x 16 threads takes 16 * kRows queries of one head. Thread (y, x) owns kRows rows
// and, of scores and of value columns alike, every sixteenth column from x: neighbouring threads
// then read neighbouring shared words. All arithmetic is fp32. Head slices are walked in chunks of
// 32 columns for the scores, so any head width fits; value columns beyond kValues go to further
// blocks along z, which repeat the scores.
#pragma once

#include "attention.cuh"
#include "launch.h"

namespace ckv::cores {

constexpr int kThreads = 256;
constexpr int kSide = 16;    // threads along a side
constexpr int kEvents = 32;  // events of a tile
constexpr int kChunk = 32;   // columns of a score chunk
// Rows are padded by 16 bytes: float4 reads of neighbouring rows then hit different banks.
constexpr int kPitch = kChunk + 4;
constexpr int kScoreColumns = kEvents / kSide;
static_assert(kEvents == kChunk, "one pitch serves both");

template <int kRows, int kValues>
struct Shared {
    float query[kSide * kRows][kPitch];
    float key[kEvents][kPitch];
    float weight[kSide * kRows][kPitch];
    float value[kEvents][kValues];
    int32_t state[kEvents];
    int bounds[2];
};

template <int kRows, int kValues>
constexpr Tile tile(int32_t head_width) {
    return {kSide * kRows, kThreads / 32, static_cast<int32_t>(ceil_div(head_width, kValues))};
}

// Element `column` of an event's key or value; a bad index reads zeros.
template <typename T>
CKV_DEVICE float side_element(PooledSide const& side, int64_t row, int32_t column) {
    if (column >= side.pool_width) {
        int64_t const at = row * side.user_stride + column - side.pool_width;
        return to_float(static_cast<T const*>(side.user)[at]);
    }
    int32_t const index = side.index[row];
    if (!inside(index, side.pool_rows)) {
        return 0.0F;
    }
    return to_float(static_cast<T const*>(side.pool)[index * side.pool_stride + column]);
}

// Fills `kWide` columns of a tile of events from column `first` of the head; zeros past its end.
template <typename T, int kWide, int kPitchOfRows>
CKV_DEVICE void load_events(float (*to)[kPitchOfRows], PooledSide const& side, int64_t first_row,
    int32_t event, int end, int32_t head_column, int32_t first, int32_t head_width) {
    for (int i = device::thread(); i < kEvents * kWide; i += kThreads) {
        int const r = i / kWide;
        int const column = first + i % kWide;
        bool const exists = event + r < end && column < head_width;
        to[r][i % kWide] =
            exists ? side_element<T>(side, first_row + event + r, head_column + column) : 0.0F;
    }
}

template <typename T, int kRows>
CKV_DEVICE void load_queries(float (*to)[kPitch], KernelArgs const& p, BlockPlace const& at,
    int32_t first) {
    for (int i = device::thread(); i < kSide * kRows * kChunk; i += kThreads) {
        int const r = i / kChunk;
        int const column = first + i % kChunk;
        int const query = at.first_query + r;
        bool const exists = query < p.a.queries && column < p.head_width;
        int64_t const row = int64_t{at.batch} * p.a.queries + query;
        int64_t const element = row * p.a.width + at.head * p.head_width + column;
        to[r][i % kChunk] =
            exists ? to_float(static_cast<T const*>(p.a.query)[element]) : 0.0F;
    }
}

// scores += query chunk . key chunk, four columns at a time.
template <int kRows>
CKV_DEVICE void add_scores(float (&scores)[kRows][kScoreColumns], float const (*query)[kPitch],
    float const (*key)[kPitch], int y, int x) {
#pragma unroll
    for (int k = 0; k < kChunk; k += 4) {
        float4 keys[kScoreColumns];
#pragma unroll
        for (int j = 0; j < kScoreColumns; ++j) {
            keys[j] = *reinterpret_cast<float4 const*>(&key[x + kSide * j][k]);
        }
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            float4 const q = *reinterpret_cast<float4 const*>(&query[y * kRows + i][k]);
#pragma unroll
            for (int j = 0; j < kScoreColumns; ++j) {
                scores[i][j] += q.x * keys[j].x + q.y * keys[j].y + q.z * keys[j].z +
                                q.w * keys[j].w;
            }
        }
    }
}

// What a thread knows of the softmax of its rows: `peak` in base 2 and the sum below it.
template <int kRows>
struct Softmax {
    float peak[kRows];
    float total[kRows];
};

// The sixteen threads of a row are the lanes of half a warp.
CKV_DEVICE float row_max(float x) {
    for (int distance = kSide / 2; distance > 0; distance /= 2) {
        x = fmaxf(x, device::shuffle_xor(x, distance));
    }
    return x;
}
CKV_DEVICE float row_sum(float x) {
    for (int distance = kSide / 2; distance > 0; distance /= 2) {
        x += device::shuffle_xor(x, distance);
    }
    return x;
}

// Scores -> weights under the rows' new peaks; what was summed under the old ones is rescaled.
template <int kRows, int kColumns>
CKV_DEVICE void softmax_step(float (&scores)[kRows][kScoreColumns], float (&sums)[kRows][kColumns],
    Softmax<kRows>& running, int32_t const* state, float scale, int x) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
        float peak = running.peak[i];
#pragma unroll
        for (int j = 0; j < kScoreColumns; ++j) {
            int32_t const s = state[x + kSide * j];
            float const seen = scores[i][j] * (scale * kLog2E);
            scores[i][j] = s == kSeen ? seen : (s == kMasked ? kMaskedLog2 : -INFINITY);
            peak = fmaxf(peak, scores[i][j]);
        }
        // Every tile holds an event of the span, so the peak is finite from the first tile on.
        peak = row_max(peak);
        float const shrink = device::exp2_(running.peak[i] - peak);
        float total = 0.0F;
#pragma unroll
        for (int j = 0; j < kScoreColumns; ++j) {
            scores[i][j] = device::exp2_(scores[i][j] - peak);
            total += scores[i][j];
        }
        running.peak[i] = peak;
        running.total[i] = running.total[i] * shrink + row_sum(total);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
            sums[i][j] *= shrink;
        }
    }
}

template <typename T, int kRows>
CKV_DEVICE void pointwise_step(float (&scores)[kRows][kScoreColumns], KernelArgs const& p,
    BlockPlace const& at, int32_t first_event, int32_t const* state, int y, int x) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
        int const query = at.first_query + y * kRows + i;
        int64_t const row = int64_t{at.batch} * p.a.queries + query;
Pairing<T> pairings[kScoreColumns];
#pragma unroll
        for (int j = 0; j < kScoreColumns; ++j) {
            int const e = x + kSide * j;
            bool const exists = query < p.a.queries && state[e] == kSeen;
            pairings[j] = read_pairing<T>(p, row, first_event + e, exists);
        }
#pragma unroll
        for (int j = 0; j < kScoreColumns; ++j) {
            scores[i][j] = pointwise_weight(pairings[j], scores[i][j] * p.a.scale);
        }
    }
}

// sums += weights . values, four events at a time.
template <int kRows, int kValues, int kColumns>
CKV_DEVICE void add_values(float (&sums)[kRows][kColumns], float const (*weight)[kPitch],
    float const (*value)[kValues], int y, int x) {
#pragma unroll 2
    for (int e = 0; e < kEvents; e += 4) {
        float weights[kRows][4];
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            float4 const w = *reinterpret_cast<float4 const*>(&weight[y * kRows + i][e]);
            weights[i][0] = w.x;
            weights[i][1] = w.y;
            weights[i][2] = w.z;
            weights[i][3] = w.w;
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
#pragma unroll
            for (int j = 0; j < kColumns; ++j) {
                float const v = value[e + n][x + kSide * j];
#pragma unroll
                for (int i = 0; i < kRows; ++i) {
                    sums[i][j] += weights[i][n] * v;
                }
            }
        }
    }
}

// Writes a row's columns: finished, or as one span's part for the combine.
template <typename T, Form kForm, int kColumns>
CKV_DEVICE void write_row(KernelArgs const& p, BlockPlace const& at, int64_t query_row,
    float const (&sums)[kColumns], float peak, float total, int32_t first_value, int x) {
    int const split = static_cast<int>(device::block_y());
    bool const parts = p.split.count > 1;
    int64_t const part = partial_row(p, split, query_row);
    float const factor = parts ? 1.0F : divided<T, kForm>(p, query_row, total);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
        int const column = first_value + x + kSide * j;
        if (column >= p.head_width) {
            continue;
        }
        int const in_row = at.head * p.head_width + column;
        if (parts) {
            p.sums[part * p.a.width + in_row] = sums[j];
        } else {
            static_cast<T*>(p.a.out)[query_row * p.a.width + in_row] =
                from_float<T>(sums[j] * factor);
        }
    }
    if (parts && kForm == Form::kSoftmax && x == 0 && first_value == 0) {
        p.peaks[part * p.a.heads + at.head] = peak;
        p.totals[part * p.a.heads + at.head] = total;
    }
}

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

// Loads values and states of a tile and sums its scores, chunk by chunk of the head.
template <typename T, Form kForm, int kRows, int kValues>
CKV_DEVICE void score_tile(float (&scores)[kRows][kScoreColumns], Shared<kRows, kValues>& shared,
    KernelArgs const& p, Work const& work, int32_t event, Span span) {
    load_events<T, kValues>(shared.value, p.a.value, work.first_row, event, span.end,
        work.head_column, work.first_value, p.head_width);
    if (device::thread() < kEvents) {
        shared.state[device::thread()] =
            event_state<kForm>(p, work.first_row, event + device::thread(), span.end);
    }
    for (int32_t first = 0; first < p.head_width; first += kChunk) {
        // A head of one chunk keeps its queries from the first tile on.
        if (event == span.begin || p.head_width > kChunk) {
            load_queries<T, kRows>(shared.query, p, work.at, first);
        }
        load_events<T, kChunk>(shared.key, p.a.key, work.first_row, event, span.end,
            work.head_column, first, p.head_width);
        device::sync();
        add_scores<kRows>(scores, shared.query, shared.key, work.y, work.x);
        device::sync();
    }
}

// What one block computes: its rows' events [span of block_y], its value columns.
template <typename T, Form kForm, int kRows, int kValues>
CKV_DEVICE void attention_block(KernelArgs const& p) {
    constexpr int kColumns = kValues / kSide;
    auto& shared = *reinterpret_cast<Shared<kRows, kValues>*>(device::shared_memory());
    Work const work = work_of<kRows, kValues>(p);
    bool const counts =
        work.at.head == 0 && work.at.first_query == 0 && work.first_value == 0;
    Span const all = p.split.span(static_cast<int32_t>(device::block_y()), p.a.events);
    Span const span = narrowed<kForm>(p, work.first_row, all, counts, shared.bounds, kThreads);

    float sums[kRows][kColumns] = {};
    Softmax<kRows> running;
    for (int i = 0; i < kRows; ++i) {
        running.peak[i] = -INFINITY;
        running.total[i] = 0.0F;
    }
    for (int32_t event = span.begin; event < span.end; event += kEvents) {
        float scores[kRows][kScoreColumns] = {};
        score_tile<T, kForm>(scores, shared, p, work, event, span);
        if constexpr (kForm == Form::kSoftmax) {
            softmax_step<kRows>(scores, sums, running, shared.state, p.a.scale, work.x);
        } else {
            pointwise_step<T, kRows>(scores, p, work.at, event, shared.state, work.y, work.x);
        }
        for (int i = 0; i < kRows; ++i) {
            for (int j = 0; j < kScoreColumns; ++j) {
                shared.weight[work.y * kRows + i][work.x + kSide * j] = scores[i][j];
            }
        }
        device::sync();
        add_values<kRows, kValues>(sums, shared.weight, shared.value, work.y, work.x);
        // The next tile overwrites values, state and weights.
        device::sync();
    }
    for (int i = 0; i < kRows; ++i) {
        int const query = work.at.first_query + work.y * kRows + i;
        if (query < p.a.queries) {
            write_row<T, kForm>(p, work.at, int64_t{work.at.batch} * p.a.queries + query, sums[i],
                running.peak[i], running.total[i], work.first_value, work.x);
        }
    }
}

template <typename T, Form kForm, int kRows, int kValues>
CKV_KERNEL(kThreads) attention_kernel(KernelArgs p) {
    attention_block<T, kForm, kRows, kValues>(p);
}

}  // namespace ckv::cores
