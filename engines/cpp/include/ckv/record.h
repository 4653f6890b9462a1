// What a server keeps of one user between requests, as bytes.
//
// The format is that of ckv_export/cache/record/RECORD.md; Python reads and writes the same bytes.
// Functions that throw kRecord leave what they were given as it was. Layouts are immutable: use one
// from any number of threads.
#pragma once

#include <ckv/manifest.h>
#include <ckv/tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace ckv {

inline constexpr std::size_t kRecordHeaderBytes = 64;

enum class UserType { kFloat32, kFloat16, kInt8 };

enum class StoredType : std::uint8_t {
    kNone = 0, kUint16 = 1, kInt32 = 2, kFloat32 = 3, kFloat16 = 4, kInt8 = 5
};

// One tensor of a record.
struct Field {
    std::string name;  // of the decode graph's input
    ElementType type = ElementType::kFloat32;  // the graph's
    StoredType stored = StoredType::kFloat32;  // the record's
    bool layered = false;  // [layers, events, width], or [events, width]
    std::int64_t layers = 1;
    std::int64_t width = 1;  // numbers of an event (and layer)
    std::vector<std::int64_t> shape;  // of one event
    std::optional<std::int64_t> rows;  // ids and row numbers lie in [0, rows)
    std::vector<std::uint8_t> padding;  // of `type`, [layers, width]: a batch's event that is none
    std::size_t offset = 0;  // in its section's row; of the scales, where it is int8
};

// Rows of one size, an event each, oldest first.
struct Section {
    std::vector<Field> fields;
    std::size_t row_bytes = 0;
};

struct RecordLayout {
    std::array<std::uint8_t, 16> fingerprint{};
    StoredType user_type = StoredType::kNone;
    std::int64_t cap = 0;  // events that the window section keeps
    Section window;
    Section events;
    std::optional<std::int64_t> pad_to;  // see `batch`
    std::uint32_t checksum = 0;  // CRC-32 of describe()

    // `graph`: "decode" or "decode_items", whose users are only ids; empty takes the second where
    // the bundle has it. Throws kRecord.
    static RecordLayout of(Manifest const& manifest, UserType user_type = UserType::kFloat16,
                           std::string const& graph = "");

    std::string describe() const;
    std::int64_t window_rows(std::int64_t of) const { return of < cap ? of : cap; }
    std::size_t record_bytes(std::int64_t of) const;  // of that many events
};

// Bytes that someone else owns.
struct Bytes {
    std::uint8_t const* data = nullptr;
    std::size_t size = 0;

    Bytes() = default;
    Bytes(void const* start, std::size_t length)
        : data(static_cast<std::uint8_t const*>(start)), size(length) {}
    Bytes(std::vector<std::uint8_t> const& bytes) : data(bytes.data()), size(bytes.size()) {}
};

// One user's tensor, no batch axis, at the graph's type: [layers, events, width] or
// [events, width], contiguous.
struct UserTensor {
    void const* data = nullptr;
    std::int64_t events = 0;
};
using UserTensors = std::map<std::string, UserTensor>;

// The same, owned.
struct HostTensor {
    std::int64_t events = 0;
    std::vector<std::uint8_t> data;
};
using HostTensors = std::map<std::string, HostTensor>;

UserTensors views(HostTensors const& tensors);

// One user's real events, oldest first, every field of the layout. The window's may begin later.
std::vector<std::uint8_t> encode(RecordLayout const& layout, UserTensors const& tensors);

// The record of a user without events.
std::vector<std::uint8_t> empty_record(RecordLayout const& layout);

// Every field; an index outside its pool, NaN and infinity are refused.
HostTensors decode(RecordLayout const& layout, Bytes record);

// Events of a record. Checks header and length only.
std::int64_t count(RecordLayout const& layout, Bytes record);

// Bytes of the record at the start of `buffer`, which may go on behind it.
std::size_t record_size(RecordLayout const& layout, Bytes buffer);

// New events behind a record's; the oldest beyond `max_events` go. Byte for byte what `encode`
// makes of all events.
void append(RecordLayout const& layout, std::vector<std::uint8_t>& record,
            UserTensors const& tensors, std::optional<std::int64_t> max_events = std::nullopt);

// The same in place, in a buffer of `capacity` bytes; returns the record's new size.
std::size_t append_into(RecordLayout const& layout, std::uint8_t* buffer, std::size_t capacity,
                        UserTensors const& tensors,
                        std::optional<std::int64_t> max_events = std::nullopt);

// Which of a call's tensors hold a user's events: prefill's cache_* and event_*, or decode's
// append_*.
enum class CallGraph { kPrefill, kDecode };

// Real events of user number `user` of a call, from its inputs and outputs in host memory; the
// call's mask says which they are. `sizes` are the call's.
HostTensors user_events(RecordLayout const& layout,
                        std::map<std::string, void const*> const& tensors, Sizes const& sizes,
                        std::int64_t user, CallGraph graph);

// Inputs of decode that `batch` writes: cache_*, history_mask, history_*, with their sizes in bytes
// for B users and histories of S events. Throws kRecord for sizes below 0 or beyond 64 bits.
std::map<std::string, std::size_t> batch_bytes(RecordLayout const& layout, std::int64_t users,
                                               std::int64_t events);

// S for these records in a call that appends `appended` events (T): where a model has `pad_to`, what
// those leave of it, since the scores of a target-attention model depend on S + T; otherwise the
// longest history.
std::int64_t batch_events(RecordLayout const& layout, std::vector<Bytes> const& records,
                          std::int64_t appended = 0);

// Left-padded inputs of decode from the records of B users, each last S events, written into the
// caller's host buffers (pinned ones, say), which have `batch_bytes`; one without any may be null. K
// is min(S, W - 1). Throws kRecord naming the position of a bad record; the buffers' contents are
// then unspecified.
//
// For a prefill that goes on where a record ends (HSTU), give the buffers of past_* under the names
// that decode has for them.
void batch(RecordLayout const& layout, std::vector<Bytes> const& records, std::int64_t events,
           std::map<std::string, void*> const& out);

}  // namespace ckv
