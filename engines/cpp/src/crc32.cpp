#include "crc32.h"

#include <array>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#define CKV_CAN_FOLD 1
#include <immintrin.h>
#endif

namespace ckv::detail {
namespace {

constexpr std::uint32_t kPolynomial = 0xedb88320U;

// A remainder times x.
constexpr std::uint32_t next(std::uint32_t value) {
    return value >> 1 ^ (kPolynomial & (0U - (value & 1)));
}

// Eight tables: eight bytes a step (Kounavis and Berry, "slicing by 8", 2005).
using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

constexpr Tables make_tables() {
    Tables tables{};
    for (std::uint32_t i = 0; i < 256; ++i) {
        std::uint32_t value = i;
        for (int bit = 0; bit < 8; ++bit) {
            value = next(value);
        }
        tables[0][i] = value;
    }
    for (std::size_t k = 1; k < 8; ++k) {
        for (std::size_t i = 0; i < 256; ++i) {
            std::uint32_t const before = tables[k - 1][i];
            tables[k][i] = before >> 8 ^ tables[0][before & 255];
        }
    }
    return tables;
}

constexpr Tables kTables = make_tables();

// The register after these bytes, as it was before them; neither inverted.
std::uint32_t by_tables(std::uint32_t crc, std::uint8_t const* bytes, std::size_t size) {
    for (; size >= 8; bytes += 8, size -= 8) {
        std::uint32_t low = 0, high = 0;
        std::memcpy(&low, bytes, 4);
        std::memcpy(&high, bytes + 4, 4);
        low ^= crc;
        crc = kTables[7][low & 255] ^ kTables[6][low >> 8 & 255] ^ kTables[5][low >> 16 & 255] ^
              kTables[4][low >> 24] ^ kTables[3][high & 255] ^ kTables[2][high >> 8 & 255] ^
              kTables[1][high >> 16 & 255] ^ kTables[0][high >> 24];
    }
    for (; size > 0; ++bytes, --size) {
        crc = crc >> 8 ^ kTables[0][(crc ^ *bytes) & 255];
    }
    return crc;
}

#ifdef CKV_CAN_FOLD

// Carry-less products fold 64 bytes at a time (Gopal et al., "Fast CRC computation for generic
// polynomials using PCLMULQDQ", Intel 2009): 16 bytes B, followed by n bits more, leave the remainder
// of B x^n, and x^n mod P is short. Everything is bit-reversed, as this CRC is: a product of two
// reversed numbers comes out one bit low, hence the shift.
constexpr std::uint64_t power(unsigned n) {
    std::uint32_t value = 0x80000000U;  // 1
    for (unsigned i = 0; i < n; ++i) {
        value = next(value);
    }
    return std::uint64_t{value} << 1;
}

// Of a block that stands n bits above another: what its first and its last 8 bytes are multiplied
// with. The first stand 64 bits higher, and the product with a 32-bit number ends 32 bits lower.
struct Step {
    std::uint64_t first, last;
};
constexpr Step step(unsigned n) { return {power(n + 32), power(n - 32)}; }

__attribute__((target("pclmul,sse2"))) inline __m128i load_block(std::uint8_t const* bytes) {
    return _mm_loadu_si128(reinterpret_cast<__m128i const*>(bytes));
}

__attribute__((target("pclmul,sse2"))) inline __m128i fold(
    __m128i block, __m128i by, __m128i onto) {
    __m128i const first = _mm_clmulepi64_si128(block, by, 0x00);
    __m128i const last = _mm_clmulepi64_si128(block, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(first, last), onto);
}

__attribute__((target("pclmul,sse2"))) inline __m128i factors(Step by) {
    return _mm_set_epi64x(static_cast<long long>(by.last), static_cast<long long>(by.first));
}

// The same register for 64 bytes and more.
__attribute__((target("pclmul,sse2"))) std::uint32_t by_folding(
    std::uint32_t crc, std::uint8_t const* bytes, std::size_t size) {
    __m128i lanes[4];
    for (int i = 0; i < 4; ++i) {
        lanes[i] = load_block(bytes + 16 * i);
    }
    lanes[0] = _mm_xor_si128(lanes[0], _mm_cvtsi32_si128(static_cast<int>(crc)));
    __m128i const far = factors(step(512)), near = factors(step(128));
    for (bytes += 64, size -= 64; size >= 64; bytes += 64, size -= 64) {
        for (int i = 0; i < 4; ++i) {
            lanes[i] = fold(lanes[i], far, load_block(bytes + 16 * i));
        }
    }
    __m128i block = lanes[0];
    for (int i = 1; i < 4; ++i) {
        block = fold(block, near, lanes[i]);
    }
    for (; size >= 16; bytes += 16, size -= 16) {
        block = fold(block, near, load_block(bytes));
    }
    // A block with the remainder of everything so far, the register's old value included.
    std::uint8_t rest[16];
    std::memcpy(rest, &block, sizeof rest);
    return by_tables(by_tables(0, rest, sizeof rest), bytes, size);
}

bool can_fold() {
    static bool const can = __builtin_cpu_supports("pclmul") != 0;
    return can;
}

#endif

}  // namespace

std::uint32_t crc32(void const* data, std::size_t size, std::uint32_t previous) {
    auto const* bytes = static_cast<std::uint8_t const*>(data);
#ifdef CKV_CAN_FOLD
    if (size >= 64 && can_fold()) {
        return ~by_folding(~previous, bytes, size);
    }
#endif
    return ~by_tables(~previous, bytes, size);
}

}  // namespace ckv::detail
