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

template <typename T, Form kForm, int kHead, int kWarps>
CKV_DEVICE void attend(Shared<T, kHead, kWarps>& shared, KernelArgs const& p) {
    constexpr int kEvents = Sizes<kHead>::kEvents;
    constexpr int kBlocks = kEvents / 8;
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
    load_tile<T, kForm>(shared, 0, p, at, span.begin, span.end);
    float sums[kHead / 8][4] = {};
    Softmax running{{-INFINITY, -INFINITY}, {0.0F, 0.0F}};
    int stage = 0;
    for (int32_t event = span.begin; event < span.end; event += kEvents, stage ^= 1) {
        if (event + kEvents < span.end) {
            load_tile<T, kForm>(shared, stage ^ 1, p, at, event + kEvents, span.end);
            device::wait_copies<1>();
        } else {
            device::wait_copies<0>();
        }
        device::sync();
        if (works) {
            float scores[kBlocks][4] = {};
            add_scores<T, kHead>(scores, &shared.query[16 * device::warp()], shared.key[stage]);
            if constexpr (kForm == Form::kSoftmax) {
                softmax_step(scores, sums, running, shared.state[stage], p.a.scale);
            } else {
                pointwise_step<T>(scores, p, at.batch, warp_query, event, shared.state[stage]);
            }
            add_values<T, kHead>(sums, scores, shared.value[stage]);
        }
        // The tile after next is loaded into this stage.
        device::sync();
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
CKV_KERNEL(32 * kWarps) attention_kernel(KernelArgs p) {
#if CKV_HAS_MMA && (defined(__CUDA_ARCH__) || defined(CKV_EMULATE))
    attend<T, kForm>(
        *reinterpret_cast<Shared<T, kHead, kWarps>*>(device::shared_memory()), p);
#else
    (void)p;
#endif
}

}  // namespace ckv::mma
