// CRC-32 as zlib has it: reflected polynomial 0xedb88320.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ckv::detail {

// Of `previous`'s bytes followed by these.
std::uint32_t crc32(void const* data, std::size_t size, std::uint32_t previous = 0);

}  // namespace ckv::detail
