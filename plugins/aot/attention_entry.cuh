// Both attention forms as entry kernels: every event in one pass, no split, no combine.
//
// TensorRT launches them itself, as quickly deployable plugins: one kernel an operator, no
// workspace, no library. Parameters are the inputs, 32-bit integers, then the output; the scale is
// no integer and is compiled in.
#pragma once

#include "attention_cores.cuh"

namespace ckv::aot {

// The integers of an entry's parameter list.
struct Sizes {
    int32_t batch, queries, events, heads, width;
    int32_t key_rows, key_pool, key_user;
    int32_t value_rows, value_pool, value_user;
};

CKV_DEVICE PooledSide side(void const* pool, int32_t const* index, void const* user,
    int32_t rows, int32_t pool_width, int32_t user_width) {
    return {pool, index, user, rows, pool_width, user_width, pool_width, user_width};
}

template <int kRows>
CKV_DEVICE void set_sizes(KernelArgs& p, Sizes const& s, float scale) {
    p.a.batch = s.batch;
    p.a.queries = s.queries;
    p.a.events = s.events;
    p.a.heads = s.heads;
    p.a.width = s.width;
    p.a.scale = scale;
    p.head_width = s.width / s.heads;
    p.query_tiles = static_cast<int32_t>(ceil_div(s.queries, cores::kSide * kRows));
    p.split = {1, s.events};
}

// No events: zeros, whatever the divisor.
template <typename T, int kRows, int kValues>
CKV_DEVICE void write_zeros(KernelArgs const& p, cores::Work const& work) {
    for (int i = 0; i < kRows; ++i) {
        int const query = work.at.first_query + work.y * kRows + i;
        int64_t const row = int64_t{work.at.batch} * p.a.queries + query;
        for (int j = work.x; query < p.a.queries && j < kValues; j += cores::kSide) {
            int const column = work.first_value + j;
            if (column < p.head_width) {
                static_cast<T*>(p.a.out)[row * p.a.width + work.head_column + column] =
                    from_float<T>(0.0F);
            }
        }
    }
}

template <typename T, Form kForm, int kRows, int kValues>
CKV_DEVICE void attend(KernelArgs const& p) {
    // A launch has one block at least, also where there is nothing to compute.
    int64_t const blocks = int64_t{p.a.batch} * p.a.heads * p.query_tiles;
    if (device::block_x() >= blocks) {
        return;
    }
    if (p.a.events == 0) {
        write_zeros<T, kRows, kValues>(p, cores::work_of<kRows, kValues>(p));
    } else {
        cores::attention_block<T, kForm, kRows, kValues>(p);
    }
}

}  // namespace ckv::aot

#define CKV_AOT_ROWS                                                                              \
    void const *query, void const *pool_k, int32_t const *index_k, void const *user_k,            \
        void const *pool_v, int32_t const *index_v, void const *user_v
#define CKV_AOT_SIZES                                                                             \
    int32_t batch, int32_t queries, int32_t events, int32_t heads, int32_t width,                 \
        int32_t key_rows, int32_t key_pool, int32_t key_user, int32_t value_rows,                 \
        int32_t value_pool, int32_t value_user
#define CKV_AOT_ARGS(rows_of_thread, scale)                                                       \
    ckv::KernelArgs p{};                                                                          \
    ckv::aot::set_sizes<rows_of_thread>(p, {batch, queries, events, heads, width, key_rows,       \
                                               key_pool, key_user, value_rows, value_pool,        \
                                               value_user},                                       \
        scale);                                                                                   \
    p.a.query = query;                                                                            \
    p.a.key = ckv::aot::side(pool_k, index_k, user_k, key_rows, key_pool, key_user);              \
    p.a.value = ckv::aot::side(pool_v, index_v, user_v, value_rows, value_pool, value_user);      \
    p.a.out = out

#define CKV_AOT_KERNEL                                                                            \
    CKV_RESIDENT_KERNEL(ckv::cores::kThreads, ckv::cores::kResidentBlocks)

// Grid: x = batch * heads * ceil(queries / (16 * rows)), at least one; z = ceil(head width /
// values). Dynamic shared memory: sizeof(ckv::cores::Shared<rows, values>).
#define CKV_AOT_SOFTMAX(name, T, rows, values, scale)                                             \
    extern "C" CKV_AOT_KERNEL name(CKV_AOT_ROWS, int32_t const* mask, CKV_AOT_SIZES, void* out) { \
        CKV_AOT_ARGS(rows, scale);                                                                \
        p.mask = mask;                                                                            \
        ckv::aot::attend<T, ckv::Form::kSoftmax, rows, values>(p);                                \
    }

#define CKV_AOT_POINTWISE(name, T, rows, values, scale, float_count)                              \
    extern "C" CKV_AOT_KERNEL name(CKV_AOT_ROWS, void const* bias,                                \
        int32_t const* visible, void const* count, CKV_AOT_SIZES, void* out) {                    \
        CKV_AOT_ARGS(rows, scale);                                                                \
        p.bias = bias;                                                                            \
        p.visible = visible;                                                                      \
        p.count = count;                                                                          \
        p.count_is_float32 = float_count;                                                         \
        ckv::aot::attend<T, ckv::Form::kPointwise, rows, values>(p);                              \
    }
