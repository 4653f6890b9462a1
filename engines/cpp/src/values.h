// Numbers as a record stores them, and back: see RECORD.md.
#pragma once

#include <ckv/record.h>

#include <cstddef>
#include <cstdint>

namespace ckv::detail {

// Where the numbers of a tensor lie: number j of event e and layer l is at
// layer_stride * l + event_stride * e + j, in elements.
struct Strides {
    std::int64_t layer = 0;
    std::int64_t event = 0;
};

// Of a contiguous tensor with that many events.
Strides contiguous(Field const& field, std::int64_t events);

// What they are given; throw kRecord for what neither a record nor a graph may hold.
std::int32_t checked(Field const& field, std::int32_t id);
float checked(Field const& field, float number);

// Write `count` events from `start` on into rows; throws kRecord for what can't be stored.
void store(Field const& field, void const* tensor, Strides strides, std::int64_t start,
           std::int64_t count, std::uint8_t* rows, std::size_t row_bytes);

// Read `count` rows into the first events of a tensor of `events`; throws kRecord for what must not
// reach a graph.
void load(Field const& field, std::uint8_t const* rows, std::size_t row_bytes, std::int64_t count,
          void* tensor, std::int64_t events);

}  // namespace ckv::detail
