// Which pool rows a tile of events takes, and how its events take part: read from global memory
// well ahead of the rows themselves.
#pragma once

#include "attention.cuh"

namespace ckv {

// What there is to know of a tile's events before their rows are copied.
template <int kEvents>
struct Links {
    int32_t key[kEvents];    // pool rows, -1 where none may be read
    int32_t value[kEvents];
    int32_t state[kEvents];  // EventState
};

// What a thread has read for the links of a tile: judged only when kept, so that nothing waits for
// the loads until then.
template <int kEvents, int kThreads>
struct LinksAhead {
    static constexpr int kCount = (kEvents + kThreads - 1) / kThreads;
    int32_t key[kCount]{}, value[kCount]{}, mask[kCount]{};
};

// Of the tile that begins with `event`; events from `end` on do not exist.
template <Form kForm, int kEvents, int kThreads>
CKV_DEVICE void read_links(LinksAhead<kEvents, kThreads>& ahead, KernelArgs const& p,
    int64_t first_row, int32_t event, int end) {
    constexpr int kCount = LinksAhead<kEvents, kThreads>::kCount;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        int const r = device::thread() + i * kThreads;
        if (r < kEvents && event + r < end) {
            int64_t const row = first_row + event + r;
            ahead.key[i] = p.a.key.index[row];
            ahead.value[i] = p.a.value.index[row];
            ahead.mask[i] = kForm == Form::kSoftmax ? p.mask[row] : 1;
        }
    }
}

template <int kEvents, int kThreads>
CKV_DEVICE void keep_links(Links<kEvents>& to, LinksAhead<kEvents, kThreads> const& ahead,
    KernelArgs const& p, int32_t event, int end) {
    constexpr int kCount = LinksAhead<kEvents, kThreads>::kCount;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        int const r = device::thread() + i * kThreads;
        if (r < kEvents) {
            bool const exists = event + r < end;
            bool const key = exists && inside(ahead.key[i], p.a.key.pool_rows);
            bool const value = exists && inside(ahead.value[i], p.a.value.pool_rows);
            bool const seen = key && value && ahead.mask[i] != 0;
            to.key[r] = key ? ahead.key[i] : -1;
            to.value[r] = value ? ahead.value[i] : -1;
            to.state[r] = !exists ? kOutside : (seen ? kSeen : kMasked);
        }
    }
}

}  // namespace ckv
