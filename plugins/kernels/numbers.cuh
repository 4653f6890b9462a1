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

// The same bits as another type of that size.
template <typename To, typename From>
CKV_DEVICE To bits_as(From x) {
    static_assert(sizeof(To) == sizeof(From), "no bit is made up or lost");
    union {
        From from;
        To to;
    } both{x};
    return both.to;
}

// `low` in the lower half of the register, as mma fragments want neighbours along k.
template <typename T>
CKV_DEVICE uint32_t pack(float low, float high) {
    return bits_as<uint32_t>(Pair<T>{from_float<T>(low), from_float<T>(high)});
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
