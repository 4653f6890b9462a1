// The three operators in plain C++, to be read beside SPEC and to judge the kernels by.
//
// Inputs are float (a caller rounds them to fp16 or bf16 values first), sums are double. The
// structs mirror ckv/types.h without its strides: everything is dense.
#pragma once

#include <cstdint>

namespace ckv::reference {

struct Side {
    float const* pool;     // [pool_rows, pool_width]
    int32_t const* index;  // [batch, events]
    float const* user;     // [batch, events, user_width]
    int64_t pool_rows;
    int32_t pool_width;
    int32_t user_width;
};

struct Attention {
    int32_t batch, queries, events, heads, width;
    double scale;
    float const* query;  // [batch, queries, width]
    Side key, value;
    double* out;  // [batch, queries, width]
};

// Element `column` of concat(pool[index[row]], user[row]); the pool part of a bad index is 0.
float element(Side const& side, int64_t row, int32_t column);

// Whether the index of `row` is inside the pool.
bool good_index(Side const& side, int64_t row);

// Returns how many rows had a bad index.
int64_t pool_gather_concat(Side const& side, int64_t rows, float* out);

// mask int32 [batch, events]. Returns how many events had a bad index.
int64_t pooled_attention(Attention const& a, int32_t const* mask);

// bias [batch, queries, events], visible int32 of the same shape, count [batch, queries].
int64_t pooled_pointwise_attention(
    Attention const& a, float const* bias, int32_t const* visible, float const* count);

}  // namespace ckv::reference
