// Elements of tensors on the host: float to fp32, fp16 or bf16 bytes and back.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "ckv/types.h"

namespace ckv::reference {

inline void put(Dtype dtype, char* at, float x) {
    __half_raw const half = __float2half_rn(x);
    __nv_bfloat16_raw const brain = __float2bfloat16_rn(x);
    switch (dtype) {
        case Dtype::kFloat32: std::memcpy(at, &x, 4); break;
        case Dtype::kFloat16: std::memcpy(at, &half.x, 2); break;
        case Dtype::kBFloat16: std::memcpy(at, &brain.x, 2); break;
    }
}

inline float get(Dtype dtype, char const* at) {
    float x = 0;
    __half_raw half{};
    __nv_bfloat16_raw brain{};
    switch (dtype) {
        case Dtype::kFloat32: std::memcpy(&x, at, 4); return x;
        case Dtype::kFloat16: std::memcpy(&half.x, at, 2); return __half2float(half);
        case Dtype::kBFloat16: std::memcpy(&brain.x, at, 2); return __bfloat162float(brain);
    }
    return x;
}

// What is left of `values` in the dtype.
inline void round(Dtype dtype, float* values, int64_t count) {
    char bytes[4];
    for (int64_t i = 0; i < count; ++i) {
        put(dtype, bytes, values[i]);
        values[i] = get(dtype, bytes);
    }
}

// Rows of `width` elements into rows of `stride`.
inline void put_rows(Dtype dtype, char* to, int64_t stride, float const* from, int64_t rows,
    int64_t width) {
    int64_t const bytes = dtype_bytes(dtype);
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t i = 0; i < width; ++i) {
            put(dtype, to + (row * stride + i) * bytes, from[row * width + i]);
        }
    }
}

}  // namespace ckv::reference
