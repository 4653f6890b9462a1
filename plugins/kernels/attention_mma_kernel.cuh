// The tensor-core kernel itself: the loop over tiles, and what it writes.
#pragma once

#include <type_traits>

#include "attention_mma.cuh"

namespace ckv::mma {

#if CKV_HAS_MMA && (defined(__CUDA_ARCH__) || defined(CKV_EMULATE))

// Writes one row of the warp's 16: finished, or as one span's part for the combine.
template <typename T, Form kForm, int kColumns>
CKV_DEVICE void write_row(KernelArgs const& p, BlockPlace const& at, int64_t query_row,
    float const (&sums)[kColumns][4], int row, float peak, float total) {
    bool const parts = p.split.count > 1;
    int64_t const part = partial_row(p, static_cast<int>(device::block_y()), query_row);
    float const factor = parts ? 1.0F : divided<T, kForm>(p, query_row, total);
#pragma unroll
    for (int i = 0; i < 2 * kColumns; ++i) {
        int const column = i / 2 * 8 + 2 * (device::lane() & 3) + i % 2;
        if (column >= p.head_width) {
            continue;
        }
        float const sum = sums[i / 2][2 * row + i % 2];
        int const in_row = at.head * p.head_width + column;
        if (parts) {
            p.sums[part * p.a.width + in_row] = sum;
        } else {
            static_cast<T*>(p.a.out)[query_row * p.a.width + in_row] = from_float<T>(sum * factor);
        }
    }
    if (parts && kForm == Form::kSoftmax && (device::lane() & 3) == 0) {
        p.peaks[part * p.a.heads + at.head] = peak;
        p.totals[part * p.a.heads + at.head] = total;
    }
}

// Scores of the warp's queries against the tile in `stage`, their weights, and the sums.
template <typename T, Form kForm, int kHead, int kWarps>
CKV_DEVICE void attend_tile(float (&sums)[kHead / 8][4], Softmax& running,
    Shared<T, kHead, kWarps> const& shared, int stage,
    int32_t const (&state)[Sizes<T, kHead>::kEvents], KernelArgs const& p, int32_t batch,
    int32_t warp_query, int32_t event) {
    float scores[Sizes<T, kHead>::kEvents / 8][4] = {};
    Products<T>::template add_scores<kHead>(scores, &shared.query[16 * device::warp()], shared.key[stage]);
    if constexpr (kForm == Form::kPointwise) {
        pointwise_step<T>(scores, p, batch, warp_query, event, state);
    } else if (p.a.scale >= 0.0F && all_seen(state)) {
        softmax_step<true>(scores, sums, running, state, p.a.scale);
    } else {
        softmax_step<false>(scores, sums, running, state, p.a.scale);
    }
    Products<T>::template add_values<kHead>(sums, scores, shared.value[stage]);
}

template <typename T, Form kForm, int kHead, int kWarps>
CKV_DEVICE void attend(Shared<T, kHead, kWarps>& shared, KernelArgs const& p) {
    constexpr int kEvents = Sizes<T, kHead>::kEvents;
    BlockPlace const at = block_place(device::block_x(), p.query_tiles, 16 * kWarps, p.a.heads);
    int64_t const first_row = int64_t{at.batch} * p.a.events;
    bool const counts = at.head == 0 && at.first_query == 0;
    Span const all = p.split.span(static_cast<int32_t>(device::block_y()), p.a.events);
    Span const span = narrowed<kForm>(p, first_row, all, counts, shared.bounds, 32 * kWarps);
    int32_t const warp_query = at.first_query + 16 * device::warp();
    // A warp without queries still helps to load.
    bool const works = warp_query < p.a.queries;

    clear_tiles(shared);
    load_queries(shared, p, at);
    LinksAhead<kEvents, 32 * kWarps> ahead;
    read_links<kForm>(ahead, p, first_row, span.begin, span.end);
    keep_links(shared.links[0], ahead, p, span.begin, span.end);
    float sums[kHead / 8][4] = {};
    Softmax running{{-INFINITY, -INFINITY}, {0.0F, 0.0F}};
    // The round before the first tile only loads it.
    int now = kLinkStages - 1;
    int stage = 1;
    for (int32_t event = span.begin - kEvents; event < span.end; event += kEvents) {
        int const next = now + 1 < kLinkStages ? now + 1 : 0;
        int const after = next + 1 < kLinkStages ? next + 1 : 0;
        // Now this tile and the next one's links are here, and nobody needs what they replace.
        device::wait_copies();
        device::sync();
        if (event + kEvents < span.end) {
            load_tile(shared, stage ^ 1, shared.links[next], p, at, event + kEvents, span.end);
        }
        read_links<kForm>(ahead, p, first_row, event + 2 * kEvents, span.end);
        if (works && event >= span.begin) {
            attend_tile<T, kForm>(sums, running, shared, stage, shared.links[now].state, p,
                at.batch, warp_query, event);
        }
        keep_links(shared.links[after], ahead, p, event + 2 * kEvents, span.end);
        now = next;
        stage ^= 1;
    }
    if (!works) {
        return;
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        int const query = warp_query + device::lane() / 4 + 8 * row;
        float const total = quad_sum(running.total[row]);
        if (query < p.a.queries) {
            write_row<T, kForm>(p, at, int64_t{at.batch} * p.a.queries + query, sums, row,
                running.peak[row], total);
        }
    }
}

#endif  // CKV_HAS_MMA

template <typename T, Form kForm, int kHead, int kWarps>
CKV_DEVICE void attention_block(KernelArgs const& p) {
#if CKV_HAS_MMA && (defined(__CUDA_ARCH__) || defined(CKV_EMULATE))
    attend<T, kForm>(
        *reinterpret_cast<Shared<T, kHead, kWarps>*>(device::shared_memory()), p);
#else
    (void)p;
#endif
}

template <typename T, Form kForm, int kHead, int kWarps>
CKV_RESIDENT_KERNEL(32 * kWarps, (Sizes<T, kHead>::resident_blocks(kWarps)))
attention_kernel(KernelArgs p) {
    attention_block<T, kForm, kHead, kWarps>(p);
}

}  // namespace ckv::mma
