// Device code that both attention kernels share: events of a span, links, and what is written.
#pragma once

#include "attention_args.h"
#include "numbers.cuh"

namespace ckv {

// exp(x) is computed as 2^(x log2 e), so logits are kept in that base.
inline constexpr float kLog2E = 1.44269504F;
inline constexpr float kMaskedLog2 = kMaskedLogit * kLog2E;

// How an event takes part. A masked event has a logit, -1e9; one outside the span has none.
enum EventState : int32_t { kSeen = 0, kMasked = 1, kOutside = 2 };

// Loads do not wait for one another: both indices, and the mask below, are read in any case.
CKV_DEVICE bool good_event(AttentionArgs const& a, int64_t row) {
    int32_t const key = a.key.index[row];
    int32_t const value = a.value.index[row];
    return inside(key, a.key.pool_rows) && inside(value, a.value.pool_rows);
}

// kForm decides whether the mask of [batch, events] says anything.
template <Form kForm>
CKV_DEVICE EventState event_state(KernelArgs const& p, int64_t first_row, int32_t event, int end) {
    if (event >= end) {
        return kOutside;
    }
    int64_t const row = first_row + event;
    bool seen = true;
    if constexpr (kForm == Form::kSoftmax) {
        seen = p.mask[row] != 0;
    }
    bool const good = good_event(p.a, row);
    return seen && good ? kSeen : kMasked;
}

// Drops masked events before the first and after the last seen one, if any is seen: histories are
// left-padded, and a masked event beside a seen one weighs exactly 0. Bad indices are counted on
// the way by the one block of several that `counts`. `bounds`: two ints of shared memory.
template <Form kForm>
CKV_DEVICE Span narrowed(
    KernelArgs const& p, int64_t first_row, Span span, bool counts, int* bounds, int threads) {
    bool const counting = counts && p.a.bad_events != nullptr;
    if (kForm == Form::kPointwise && !counting) {
        return span;
    }
    if (device::thread() == 0) {
        bounds[0] = span.end;
        bounds[1] = -1;
    }
    device::sync();
    int first = span.end;
    int last = -1;
    for (int e = span.begin + device::thread(); e < span.end; e += threads) {
        if (counting && !good_event(p.a, first_row + e)) {
            device::atomic_add(p.a.bad_events, 1);
        }
        if (event_state<kForm>(p, first_row, e, span.end) == kSeen) {
            first = e < first ? e : first;
            last = e;
        }
    }
    if (last >= 0) {
        device::atomic_min(&bounds[0], first);
        device::atomic_max(&bounds[1], last);
    }
    device::sync();
    bool const any = bounds[1] >= 0;
    return kForm == Form::kSoftmax && any ? Span{bounds[0], bounds[1] + 1} : span;
}

// What the pointwise form reads of one (query, event). Reading is apart from weighing so that a
// thread has all its reads of a tile's row under way at once.
template <typename T>
struct Pairing {
    T bias;
    bool counts;
};

// `query_row` counts over all users. Nothing is read, and the weight is 0, unless `exists`.
template <typename T>
CKV_DEVICE Pairing<T> read_pairing(
    KernelArgs const& p, int64_t query_row, int32_t event, bool exists) {
    if (!exists) {
        return {from_float<T>(0.0F), false};
    }
    int64_t const at = query_row * p.a.events + event;
    return {static_cast<T const*>(p.bias)[at], p.visible[at] != 0};
}

template <typename T>
CKV_DEVICE float pointwise_weight(Pairing<T> const& pairing, float scaled_logit) {
    return pairing.counts ? silu(scaled_logit + to_float(pairing.bias)) : 0.0F;
}

// Where a query's results of one span go when there are several.
CKV_DEVICE int64_t partial_row(KernelArgs const& p, int split, int64_t query_row) {
    return int64_t{split} * p.a.batch * p.a.queries + query_row;
}

// The factor that turns a query's sum into its output.
template <typename T, Form kForm>
CKV_DEVICE float divided(KernelArgs const& p, int64_t query_row, float total) {
    if constexpr (kForm == Form::kSoftmax) {
        return 1.0F / total;
    } else {
        return 1.0F / (p.count_is_float32 ? static_cast<float const*>(p.count)[query_row]
                                          : to_float(static_cast<T const*>(p.count)[query_row]));
    }
}

}  // namespace ckv
