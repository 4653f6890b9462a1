// A record whose header and checksums are right.
#pragma once

#include <ckv/record.h>

#include "header.h"

namespace ckv::detail {

struct Opened {
    Header header;
    std::uint8_t const* window = nullptr;
    std::uint8_t const* events = nullptr;
};

// Check everything but the values in the rows; throws kRecord.
Opened open_record(RecordLayout const& layout, Bytes record);

}  // namespace ckv::detail
