// Attention on the ordinary cores, for every element type, head width and GPU.
//
// A block of 16 x 16 threads takes 16 * kRows queries of one head. Thread (y, x) owns every
// sixteenth row from y, every sixteenth column of scores from x, and neighbouring value columns: a
// warp's reads of shared memory then hit different banks or the same words. All arithmetic is
// fp32. Head slices are walked in chunks of 32 columns for the scores, so any head width fits;
// value columns beyond kValues go to further blocks along z, which repeat the scores.
#pragma once

#include "attention_cores_load.cuh"
#include "launch.h"

namespace ckv::cores {

constexpr int kScoreColumns = kEvents / kSide;

template <int kRows, int kValues>
constexpr Tile tile(int32_t head_width) {
    static_assert(kSide * kRows <= kRowsOfWarp * (kThreads / 32));
    return {kSide * kRows, kThreads / 32, static_cast<int32_t>(ceil_div(head_width, kValues))};
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
            float4 const q = *reinterpret_cast<float4 const*>(&query[y + kSide * i][k]);
#pragma unroll
            for (int j = 0; j < kScoreColumns; ++j) {
                // One after the other: four multiply-adds, no product apart.
                scores[i][j] += q.x * keys[j].x;
                scores[i][j] += q.y * keys[j].y;
                scores[i][j] += q.z * keys[j].z;
                scores[i][j] += q.w * keys[j].w;
            }
        }
    }
}

// What a thread knows of the softmax of its rows: `peak` in base 2 and the sum below it.
template <int kRows>
struct Softmax {
    float peak[kRows];
    float total[kRows];  // of this thread's events only, until the end
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
        float total = running.total[i] * shrink;
#pragma unroll
        for (int j = 0; j < kScoreColumns; ++j) {
            scores[i][j] = device::exp2_(scores[i][j] - peak);
            total += scores[i][j];
        }
        running.peak[i] = peak;
        running.total[i] = total;
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
        int const query = at.first_query + y + kSide * i;
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

// Value columns of a thread: kColumns of them, in groups of neighbours that one load reads.
template <int kColumns>
constexpr int kGroup = kColumns < 4 ? kColumns : 4;

template <int kColumns>
CKV_DEVICE int value_column(int j, int x) {
    constexpr int kWide = kGroup<kColumns>;
    return j / kWide * (kWide * kSide) + x * kWide + j % kWide;
}

template <int kColumns>
CKV_DEVICE void read_values(float (&v)[kColumns], float const* row, int x) {
    constexpr int kWide = kGroup<kColumns>;
    using Vector = Raw<4 * kWide>;
#pragma unroll
    for (int j = 0; j < kColumns; j += kWide) {
        union {
            Vector whole;
            float parts[kWide];
        } group;
        group.whole = *reinterpret_cast<Vector const*>(&row[value_column<kColumns>(j, x)]);
#pragma unroll
        for (int i = 0; i < kWide; ++i) {
            v[j + i] = group.parts[i];
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
            float4 const w = *reinterpret_cast<float4 const*>(&weight[y + kSide * i][e]);
            weights[i][0] = w.x;
            weights[i][1] = w.y;
            weights[i][2] = w.z;
            weights[i][3] = w.w;
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            float v[kColumns];
            read_values(v, value[e + n], x);
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
#pragma unroll
                for (int j = 0; j < kColumns; ++j) {
                    sums[i][j] += weights[i][n] * v[j];
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
        int const column = first_value + value_column<kColumns>(j, x);
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

// Sums the scores of a tile, chunk by chunk of the head; fetches the next chunk or the next tile
// meanwhile. `ahead` comes with the tile's first chunk.
template <typename T, int kRows, int kValues>
CKV_DEVICE void score_tile(float (&scores)[kRows][kScoreColumns], Shared<kRows, kValues>& shared,
    Ahead<T, kRows, kValues>& ahead, KernelArgs const& p, Work const& work, int32_t event,
    int end, int now) {
    for (int32_t first = 0; first < p.head_width; first += kChunk) {
        if (first > 0) {
            device::sync();
        }
        store_chunk(shared, ahead);
        device::sync();
        if (first + kChunk < p.head_width) {
            fetch_chunk(ahead, shared.links[now], p, work, event, end, first + kChunk);
        } else if (event + kEvents < end) {
            fetch_tile(ahead, shared.links[now ^ 1], p, work, event + kEvents, end);
        }
        add_scores<kRows>(scores, shared.query, shared.key, work.y, work.x);
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
    LinksAhead<kEvents, kThreads> links;
    read_links<kForm>(links, p, work.first_row, span.begin, span.end);
    keep_links(shared.links[0], links, p, span.begin, span.end);
    read_links<kForm>(links, p, work.first_row, span.begin + kEvents, span.end);
    Ahead<T, kRows, kValues> ahead;
    if constexpr (kQueriesStay<kValues>) {
        fetch_queries<T, kRows>(ahead.query, p, work, 0);
        store_queries<T, kRows>(shared.query, ahead.query);
    }
    device::sync();
    fetch_tile(ahead, shared.links[0], p, work, span.begin, span.end);
    int now = 0;
    for (int32_t event = span.begin; event < span.end; event += kEvents, now ^= 1) {
        keep_links(shared.links[now ^ 1], links, p, event + kEvents, span.end);
        read_links<kForm>(links, p, work.first_row, event + 2 * kEvents, span.end);
        store_events<T, kValues>(shared.value, ahead.value);
        float scores[kRows][kScoreColumns] = {};
        score_tile(scores, shared, ahead, p, work, event, span.end, now);
        int32_t const* state = shared.links[now].state;
        if constexpr (kForm == Form::kSoftmax) {
            softmax_step<kRows>(scores, sums, running, state, p.a.scale, work.x);
        } else {
            pointwise_step<T, kRows>(scores, p, work.at, event, state, work.y, work.x);
        }
        for (int i = 0; i < kRows; ++i) {
            for (int j = 0; j < kScoreColumns; ++j) {
                shared.weight[work.y + kSide * i][work.x + kSide * j] = scores[i][j];
            }
        }
        device::sync();
        add_values<kRows, kValues>(sums, shared.weight, shared.value, work.y, work.x);
        // The next tile overwrites values, keys, links and weights.
        device::sync();
    }
    for (int i = 0; i < kRows; ++i) {
        int const query = work.at.first_query + work.y + kSide * i;
        float const total = row_sum(running.total[i]);
        if (query < p.a.queries) {
            write_row<T, kForm>(p, work.at, int64_t{work.at.batch} * p.a.queries + query, sums[i],
                running.peak[i], total, work.first_value, work.x);
        }
    }
}

template <typename T, Form kForm, int kRows, int kValues>
CKV_RESIDENT_KERNEL(kThreads, kResidentBlocks)
attention_kernel(KernelArgs p) {
    attention_block<T, kForm, kRows, kValues>(p);
}

}  // namespace ckv::cores
