// float16 as IEEE 754 has it, on any CPU.
#pragma once

#include <cstdint>
#include <cstring>

namespace ckv::detail {

inline std::uint32_t bits_of(float value) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of(std::uint32_t bits) {
    float value = 0;
    std::memcpy(&value, &bits, 4);
    return value;
}

// By masks, not by branches: loops over numbers then take several at a time.
inline float half_to_float(std::uint16_t half) {
    std::uint32_t const sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
    std::uint32_t const magnitude = static_cast<std::uint32_t>(half & 0x7fff) << 13;
    std::uint32_t const tiny = 0U - static_cast<std::uint32_t>(magnitude < 0x00800000);
    std::uint32_t const endless = 0U - static_cast<std::uint32_t>(magnitude >= 0x0f800000);
    // Where the exponent is 0: multiples of 2^-24, exact in float.
    std::uint32_t const small = bits_of(float_of(magnitude + 0x38800000) - 0x1p-14F);
    std::uint32_t const normal = magnitude + 0x38000000 + (endless & 0x38000000);
    return float_of(sign | (tiny & small) | (~tiny & normal));
}

// Nearest, ties to even; infinity beyond the largest.
inline std::uint16_t float_to_half(float value) {
    std::uint32_t const bits = bits_of(value);
    auto const sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
    std::uint32_t const magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) {
        return static_cast<std::uint16_t>(sign | 0x7e00);
    }
    if (magnitude >= 0x47800000) {  // 65536
        return static_cast<std::uint16_t>(sign | 0x7c00);
    }
    if (magnitude < 0x38800000) {  // 2^-14: below it halfs are multiples of 2^-24
        // Adding 0.5 leaves such a multiple, rounded by the FPU, in the low bits of the sum.
        float const sum = float_of(magnitude) + 0.5F;
        return static_cast<std::uint16_t>(sign | (bits_of(sum) - 0x3f000000));
    }
    std::uint32_t const odd = magnitude >> 13 & 1;
    std::uint32_t const rounded = magnitude - 0x38000000 + 0xfff + odd;
    return static_cast<std::uint16_t>(sign | rounded >> 13);
}

}  // namespace ckv::detail
