// Both attention forms as entry kernels, on ordinary and on tensor cores: every event in one pass,
// no split, no combine.
//
// TensorRT launches them itself, as quickly deployable plugins: one kernel an operator, no
// workspace, no library. Parameters are the inputs, 32-bit integers, then the output; the scale is
// no integer and is compiled in.
#pragma once

#include "attention_cores.cuh"
#include "attention_mma_kernel.cuh"

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

// No events: zeros, whatever the divisor, for the head's columns of the block's queries.
template <typename T>
CKV_DEVICE void write_zeros(KernelArgs const& p, int tile, int threads) {
    BlockPlace const at = block_place(device::block_x(), p.query_tiles, tile, p.a.heads);
    auto const queries = static_cast<int>(smaller(tile, p.a.queries - at.first_query));
    int64_t const first_row = int64_t{at.batch} * p.a.queries + at.first_query;
    for (int i = device::thread(); i < queries * p.head_width; i += threads) {
        int64_t const row = first_row + i / p.head_width;
        int const column = at.head * p.head_width + i % p.head_width;
        static_cast<T*>(p.a.out)[row * p.a.width + column] = from_float<T>(0.0F);
    }
}

// A launch has one block at least, also where there is nothing to compute.
CKV_DEVICE bool nothing_to_do(KernelArgs const& p) {
    return device::block_x() >= int64_t{p.a.batch} * p.a.heads * p.query_tiles;
}

// A block of the ordinary cores.
template <typename T, Form kForm, int kRows, int kValues>
struct Cores {
    // Grid: x = batch * heads * ceil(queries / kTile), at least one; z = ceil(head width / kValues).
    // Dynamic shared memory: sizeof(cores::Shared<kRows, kValues>).
    static constexpr int kThreads = cores::kThreads;
    static constexpr int kTile = cores::kSide * kRows;

    CKV_DEVICE static void attend(KernelArgs const& p) {
        if (nothing_to_do(p)) {
            return;
        }
        if (p.a.events == 0) {
            write_zeros<T>(p, kTile, kThreads);
        } else {
            cores::attention_block<T, kForm, kRows, kValues>(p);
        }
    }
};

// A block of tensor cores, for heads of up to kHead columns.
template <typename T, Form kForm, int kHead, int kWarps>
struct TensorCores {
    // Grid: x as above, z = 1. Dynamic shared memory: sizeof(mma::Shared<T, kHead, kWarps>).
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kTile = 16 * kWarps;

    CKV_DEVICE static void attend(KernelArgs p) {
        if (nothing_to_do(p)) {
            return;
        }
        if (p.a.events == 0) {
            write_zeros<T>(p, kTile, kThreads);
            return;
        }
        // TensorRT's buffers begin aligned to more than any copy is wide.
        constexpr int kBytes = sizeof(T);
        auto const width = [&](PooledSide const& s) {
            return copy_width(
                0, s.pool_stride, 0, s.user_stride, s.pool_width, p.head_width, kBytes);
        };
        p.query_vector = query_vector(0, p.a.width, p.head_width, kBytes);
        p.key_copy = width(p.a.key);
        p.value_copy = width(p.a.value);
        mma::attention_block<T, kForm, kHead, kWarps>(p);
    }
};

// What the operators take before their own inputs.
struct Rows {
    void const *query, *pool_k;
    int32_t const* index_k;
    void const *user_k, *pool_v;
    int32_t const* index_v;
    void const* user_v;
};

template <typename Block>
CKV_DEVICE KernelArgs arguments(float scale, Rows const& rows, Sizes const& sizes, void* out) {
    KernelArgs p{};
    p.a.batch = sizes.batch;
    p.a.queries = sizes.queries;
    p.a.events = sizes.events;
    p.a.heads = sizes.heads;
    p.a.width = sizes.width;
    p.a.scale = scale;
    p.head_width = sizes.width / sizes.heads;
    p.query_tiles = static_cast<int32_t>(ceil_div(sizes.queries, Block::kTile));
    p.split = {1, sizes.events};
    p.a.query = rows.query;
    p.a.key = side(rows.pool_k, rows.index_k, rows.user_k, sizes.key_rows, sizes.key_pool,
        sizes.key_user);
    p.a.value = side(rows.pool_v, rows.index_v, rows.user_v, sizes.value_rows, sizes.value_pool,
        sizes.value_user);
    p.a.out = out;
    return p;
}

template <typename Block>
CKV_DEVICE void softmax(
    float scale, Rows const& rows, int32_t const* mask, Sizes const& sizes, void* out) {
    KernelArgs p = arguments<Block>(scale, rows, sizes, out);
    p.mask = mask;
    Block::attend(p);
}

template <typename Block>
CKV_DEVICE void pointwise(float scale, bool float_count, Rows const& rows, void const* bias,
    int32_t const* visible, void const* count, Sizes const& sizes, void* out) {
    KernelArgs p = arguments<Block>(scale, rows, sizes, out);
    p.bias = bias;
    p.visible = visible;
    p.count = count;
    p.count_is_float32 = float_count;
    Block::attend(p);
}

}  // namespace ckv::aot

#define CKV_AOT_ROWS                                                                              \
    void const *query, void const *pool_k, int32_t const *index_k, void const *user_k,            \
        void const *pool_v, int32_t const *index_v, void const *user_v
#define CKV_AOT_ROW_NAMES {query, pool_k, index_k, user_k, pool_v, index_v, user_v}
#define CKV_AOT_SIZES                                                                             \
    int32_t batch, int32_t queries, int32_t events, int32_t heads, int32_t width,                 \
        int32_t key_rows, int32_t key_pool, int32_t key_user, int32_t value_rows,                 \
        int32_t value_pool, int32_t value_user
#define CKV_AOT_SIZE_NAMES                                                                        \
    {batch, queries, events, heads, width, key_rows, key_pool, key_user, value_rows, value_pool,  \
        value_user}

// The block that was asked for when nvcc was called, and the launch bounds of its kernel.
#if defined(CKV_AOT_HEAD)
#define CKV_AOT_KERNEL                                                                            \
    CKV_RESIDENT_KERNEL(32 * CKV_AOT_WARPS,                                                       \
        (ckv::mma::Sizes<CKV_AOT_T, CKV_AOT_HEAD>::resident_blocks(CKV_AOT_WARPS)))
#define CKV_AOT_BLOCK(form) ckv::aot::TensorCores<CKV_AOT_T, form, CKV_AOT_HEAD, CKV_AOT_WARPS>
#else
#define CKV_AOT_KERNEL                                                                            \
    CKV_RESIDENT_KERNEL(ckv::cores::kThreads, ckv::cores::kResidentBlocks)
#define CKV_AOT_BLOCK(form) ckv::aot::Cores<CKV_AOT_T, form, CKV_AOT_TILE, CKV_AOT_VALUES>
#endif
