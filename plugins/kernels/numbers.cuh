// Element types: to and from float, pairs of 16-bit numbers in one register, raw vectors.
#pragma once

#include "device.cuh"

namespace ckv {

CKV_DEVICE float to_float(float x) { return x; }
CKV_DEVICE float to_float(__half x) { return __half2float(x); }
CKV_DEVICE float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
CKV_DEVICE T from_float(float x);
template <>
CKV_DEVICE float from_float<float>(float x) {
    return x;
}
template <>
CKV_DEVICE __half from_float<__half>(float x) {
    return __float2half_rn(x);
}
template <>
CKV_DEVICE __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

template <typename T>
struct alignas(2 * sizeof(T)) Pair {
    T low, high;
};

// `low` in the lower half of the register, as mma fragments want neighbours along k.
template <typename T>
CKV_DEVICE uint32_t pack(float low, float high) {
    union {
        Pair<T> pair;
        uint32_t bits;
    } both{{from_float<T>(low), from_float<T>(high)}};
    return both.bits;
}

CKV_DEVICE uint32_t bits_of(float x) {
    union {
        float number;
        uint32_t bits;
    } both{x};
    return both.bits;
}
CKV_DEVICE float float_of(uint32_t bits) {
    union {
        uint32_t bits;
        float number;
    } both{bits};
    return both.number;
}

// x / (1 + e^-x). Far below zero e^-x is inf, and the quotient 0.
CKV_DEVICE float silu(float x) {
    return device::divide(x, 1.0F + device::exp2_(-1.44269504F * x));
}

// kBytes of plain data that move in one instruction: words, not bytes, or nvcc splits them.
template <int kBytes>
struct RawWords;
template <>
struct RawWords<2> {
    using Type = uint16_t;
};
template <>
struct RawWords<4> {
    using Type = uint32_t;
};
template <>
struct RawWords<8> {
    using Type = uint2;
};
template <>
struct RawWords<16> {
    using Type = uint4;
};
template <int kBytes>
using Raw = typename RawWords<kBytes>::Type;

}  // namespace ckv
