// What every operator's interface shares: element types, one side of the compact cache, errors.
//
// Plain memory only: pointers, sizes, strides and a stream. No TensorRT and no torch in here.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ckv {

inline constexpr char kVersion[] = "0.1.0";

// Element type of pools, user parts, queries, biases and outputs. Sums are always fp32.
enum class Dtype : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

inline constexpr int32_t dtype_bytes(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

// Keys or values of every cached event, in the form in which they are cached.
//
// The vector of event e is concat(pool[index[e]], user[e]), `pool_width + user_width` wide. An
// index outside [0, pool_rows) is never followed: such an event reads zeros for its pool part.
// Attention takes strides below 2^29 elements.
struct PooledSide {
    void const* pool = nullptr;      // [pool_rows, pool_width], rows `pool_stride` elements apart
    int32_t const* index = nullptr;  // [events of all users]
    void const* user = nullptr;      // [events of all users, user_width], `user_stride` apart
    int64_t pool_rows = 0;
    int64_t pool_stride = 0;
    int64_t user_stride = 0;
    int32_t pool_width = 0;
    int32_t user_width = 0;

    constexpr int32_t width() const { return pool_width + user_width; }
};

}  // namespace ckv
