// The 64 bytes in front of a record: see RECORD.md.
#pragma once

#include <ckv/record.h>

#include <cstdint>

namespace ckv::detail {

struct Header {
    std::uint32_t events = 0;
    std::uint32_t window_rows = 0;
    std::uint32_t window_checksum = 0;
    std::uint32_t events_checksum = 0;
};

void write_header(RecordLayout const& layout, Header const& header, std::uint8_t* record);

// Throws kRecord, checking in the order that RECORD.md gives.
Header read_header(RecordLayout const& layout, Bytes buffer);

}  // namespace ckv::detail
