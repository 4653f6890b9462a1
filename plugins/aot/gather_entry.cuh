// PoolGatherConcat as an entry kernel.
#pragma once

#include "pool_gather_concat.cuh"

namespace ckv::aot {

template <int kElement, int kOut>
CKV_DEVICE void gather_storing(gather_concat::GatherArgs const& p) {
    using gather_concat::gather_concat_block;
    int32_t const load =
        gather_concat::row_vector(p.a.side.pool_width, kElement, kOut);
    if (load >= kOut) {
        gather_concat_block<kElement, kOut, kOut>(p);
    } else if (kOut > 8 && load == 8) {
        gather_concat_block<kElement, kOut, (kOut > 8 ? 8 : kElement)>(p);
    } else if (kOut > 4 && load == 4) {
        gather_concat_block<kElement, kOut, (kOut > 4 ? 4 : kElement)>(p);
    } else {
        gather_concat_block<kElement, kOut, kElement>(p);
    }
}

// `vector`: bytes of a store, which the launch was counted in (ckv_export/engine/aot_launch.py).
template <int kElement>
CKV_DEVICE void gather(gather_concat::GatherArgs& p, int32_t vector) {
    p.chunks = (p.a.side.pool_width + p.a.side.user_width) * kElement / vector;
    if (p.chunks == 0) {
        return;
    }
    switch (vector) {
        case 16: gather_storing<kElement, 16>(p); break;
        case 8: gather_storing<kElement, 8>(p); break;
        case 4: gather_storing<kElement, 4>(p); break;
        default: gather_storing<kElement, kElement>(p); break;
    }
}

}  // namespace ckv::aot

// Grid: ceil(rows * row bytes / vector / (kThreads * kItems)) blocks, at least one.
#define CKV_AOT_GATHER(name, element_bytes)                                                       \
    extern "C" CKV_KERNEL(ckv::gather_concat::kThreads) name(void const* pool,                    \
        int32_t const* index, void const* user, int32_t rows, int32_t pool_rows,                  \
        int32_t pool_width, int32_t user_width, int32_t vector, void* out) {                      \
        ckv::gather_concat::GatherArgs p{};                                                       \
        p.a.rows = rows;                                                                          \
        p.a.side = {pool, index, user, pool_rows, pool_width, user_width, pool_width,             \
            user_width};                                                                          \
        p.a.out = out;                                                                            \
        p.a.out_stride = int64_t{pool_width} + user_width;                                        \
        ckv::aot::gather<element_bytes>(p, vector);                                               \
    }
