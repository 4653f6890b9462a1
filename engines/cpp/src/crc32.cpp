#include "crc32.h"

#include <array>
#include <cstring>

namespace ckv::detail {
namespace {

// Eight tables: eight bytes a step (Kounavis and Berry, "slicing by 8", 2005).
using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

constexpr Tables make_tables() {
    Tables tables{};
    for (std::uint32_t i = 0; i < 256; ++i) {
        std::uint32_t value = i;
        for (int bit = 0; bit < 8; ++bit) {
            value = value >> 1 ^ (0xedb88320U & (0U - (value & 1)));
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

}  // namespace

std::uint32_t crc32(void const* data, std::size_t size, std::uint32_t previous) {
    auto const* bytes = static_cast<std::uint8_t const*>(data);
    std::uint32_t crc = ~previous;
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
    return ~crc;
}

}  // namespace ckv::detail
