// SHA-256 (FIPS 180-4), so that a program that embeds an engine needs no crypto library.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace ckv::detail {

class Sha256 {
public:
    void update(void const* data, std::size_t size);

    // The digest in hex. Call it once, last.
    std::string finish();

private:
    void block(std::uint8_t const* bytes);

    std::array<std::uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                           0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<std::uint8_t, 64> pending_{};
    std::size_t held_ = 0;
    std::uint64_t total_ = 0;
};

}  // namespace ckv::detail
