#include <ckv/error.h>
#include <ckv/record.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "crc32.h"
#include "header.h"
#include "opened.h"
#include "values.h"

namespace ckv {
namespace {

constexpr std::int64_t kMostEvents = std::numeric_limits<std::uint32_t>::max();

[[noreturn]] void refuse(std::string const& what) { throw Error(ErrorCode::kRecord, what); }

std::size_t size_of(std::int64_t rows, Section const& section) {
    return static_cast<std::size_t>(rows) * section.row_bytes;
}

UserTensor const& given(UserTensors const& tensors, Field const& field) {
    auto const found = tensors.find(field.name);
    if (found == tensors.end()) {
        refuse("a record needs '" + field.name + "', which is missing");
    }
    UserTensor const& tensor = found->second;
    if (tensor.events < 0 || (tensor.data == nullptr && tensor.events > 0 && field.width > 0)) {
        refuse("'" + field.name + "' has no data");
    }
    return tensor;
}

std::int64_t common_events(Section const& section, UserTensors const& tensors) {
    if (section.fields.empty()) {
        refuse("this layout is empty: RecordLayout::of makes one");
    }
    std::int64_t const events = given(tensors, section.fields.front()).events;
    for (Field const& field : section.fields) {
        std::int64_t const its = given(tensors, field).events;
        if (its != events) {
            refuse("the fields of a record must have as many events each: '" + field.name +
                   "' has " + std::to_string(its) + ", '" + section.fields.front().name +
                   "' has " + std::to_string(events));
        }
    }
    return events;
}

struct Rows {
    std::int64_t count = 0;
    std::vector<std::uint8_t> bytes;
};

// Rows of the last `count` of `events` events.
Rows pack(Section const& section, UserTensors const& tensors, std::int64_t events,
          std::int64_t count) {
    Rows rows{count, std::vector<std::uint8_t>(size_of(count, section))};
    for (Field const& field : section.fields) {
        detail::store(field, given(tensors, field).data, detail::contiguous(field, events),
                      events - count, count, rows.bytes.data(), section.row_bytes);
    }
    return rows;
}

struct Packed {
    Rows window;
    Rows events;
};

// Rows of one user's tensors: the last ones of the window, and all events.
Packed pack_all(RecordLayout const& layout, UserTensors const& tensors) {
    std::size_t const fields = layout.window.fields.size() + layout.events.fields.size();
    std::int64_t const events = common_events(layout.events, tensors);
    if (events > kMostEvents) {
        refuse("a record holds at most 4294967295 events");
    }
    Packed packed;
    if (!layout.window.fields.empty()) {
        std::int64_t const last = layout.window_rows(events);
        std::int64_t const entries = common_events(layout.window, tensors);
        if (entries < last) {
            refuse("the window needs cache entries of the last " + std::to_string(last) +
                   " events, got " + std::to_string(entries));
        }
        packed.window = pack(layout.window, tensors, entries, last);
    }
    if (tensors.size() != fields) {
        refuse("a record of this model has " + std::to_string(fields) + " tensors, got " +
               std::to_string(tensors.size()));
    }
    packed.events = pack(layout.events, tensors, events, events);
    return packed;
}

// From one header to another: how many old and new rows of each section stay.
class Change {
public:
    Change(RecordLayout const& layout, detail::Header const& header, std::int64_t added,
           std::optional<std::int64_t> max_events)
        : layout_(layout), header_(header) {
        events_ = std::int64_t{header.events} + added;
        if (events_ > kMostEvents) {
            refuse("a record holds at most 4294967295 events");
        }
        events_ = max_events ? std::min(events_, *max_events) : events_;
        window_ = layout.window_rows(events_);
        new_events_ = std::min(added, events_);
        new_window_ = std::min(added, window_);
    }

    std::size_t size() const { return layout_.record_bytes(events_); }

    // Move what stays, write what is new, then the header.
    void apply(std::uint8_t* record, Packed const& packed) const {
        std::size_t const end = kRecordHeaderBytes + size_of(window_, layout_.window);
        std::size_t const old_end =
            kRecordHeaderBytes + size_of(header_.window_rows, layout_.window);
        std::int64_t const kept_events = events_ - new_events_;
        std::int64_t const kept_window = window_ - new_window_;
        std::size_t const dropped_window =
            size_of(header_.window_rows - kept_window, layout_.window);
        std::size_t const dropped_events =
            size_of(header_.events - kept_events, layout_.events);
        // The window first: events may go to where its old rows stand, never the other way round.
        move(record, kRecordHeaderBytes + dropped_window, kRecordHeaderBytes,
             size_of(kept_window, layout_.window));
        move(record, old_end + dropped_events, end, size_of(kept_events, layout_.events));
        put_last(record + end, packed.window, new_window_, layout_.window);
        std::size_t const new_bytes =
            put_last(record + size(), packed.events, new_events_, layout_.events);
        detail::Header next{static_cast<std::uint32_t>(events_),
                            static_cast<std::uint32_t>(window_), 0, 0};
        next.window_checksum = detail::crc32(record + kRecordHeaderBytes, end - kRecordHeaderBytes);
        bool const extends = kept_events == header_.events;
        next.events_checksum =
            extends ? detail::crc32(record + size() - new_bytes, new_bytes, header_.events_checksum)
                    : detail::crc32(record + end, size() - end);
        detail::write_header(layout_, next, record);
    }

private:
    static void move(std::uint8_t* record, std::size_t from, std::size_t to, std::size_t size) {
        if (size > 0 && from != to) {
            std::memmove(record + to, record + from, size);
        }
    }

    // The last `count` rows, so that they end at `end`; returns their size.
    static std::size_t put_last(std::uint8_t* end, Rows const& rows, std::int64_t count,
                                Section const& section) {
        std::size_t const bytes = size_of(count, section);
        if (bytes > 0) {
            std::memcpy(end - bytes, rows.bytes.data() + rows.bytes.size() - bytes, bytes);
        }
        return bytes;
    }

    RecordLayout const& layout_;
    detail::Header header_;
    std::int64_t events_ = 0;
    std::int64_t window_ = 0;
    std::int64_t new_events_ = 0;
    std::int64_t new_window_ = 0;
};

void check_max(std::optional<std::int64_t> max_events) {
    if (max_events && *max_events < 0) {
        refuse("max_events must be at least 0, got " + std::to_string(*max_events));
    }
}

void unpack(Section const& section, std::uint8_t const* rows, std::int64_t count,
            HostTensors& tensors) {
    for (Field const& field : section.fields) {
        HostTensor tensor{count, std::vector<std::uint8_t>(static_cast<std::size_t>(
                                     4 * field.layers * field.width * count))};
        detail::load(field, rows, section.row_bytes, count, tensor.data.data(), count);
        tensors[field.name] = std::move(tensor);
    }
}

detail::Header whole_header(RecordLayout const& layout, Bytes record) {
    detail::Header const header = detail::read_header(layout, record);
    std::size_t const wanted = layout.record_bytes(header.events);
    if (record.size != wanted) {
        refuse(std::string("the record is ") +
               (record.size < wanted ? "truncated" : "followed by other bytes") + ": " +
               std::to_string(header.events) + " events take " + std::to_string(wanted) +
               " bytes, got " + std::to_string(record.size));
    }
    return header;
}

}  // namespace

namespace detail {

Opened open_record(RecordLayout const& layout, Bytes record) {
    Opened opened{whole_header(layout, record), record.data + kRecordHeaderBytes, nullptr};
    std::size_t const window_bytes = size_of(opened.header.window_rows, layout.window);
    opened.events = opened.window + window_bytes;
    std::size_t const events_bytes = size_of(opened.header.events, layout.events);
    if (crc32(opened.window, window_bytes) != opened.header.window_checksum) {
        refuse("the record's window section is damaged: its checksum differs");
    }
    if (crc32(opened.events, events_bytes) != opened.header.events_checksum) {
        refuse("the record's events section is damaged: its checksum differs");
    }
    return opened;
}

}  // namespace detail

UserTensors views(HostTensors const& tensors) {
    UserTensors views;
    for (auto const& [name, tensor] : tensors) {
        views[name] = {tensor.data.data(), tensor.events};
    }
    return views;
}

std::vector<std::uint8_t> encode(RecordLayout const& layout, UserTensors const& tensors) {
    std::vector<std::uint8_t> record = empty_record(layout);
    append(layout, record, tensors);
    return record;
}

std::vector<std::uint8_t> empty_record(RecordLayout const& layout) {
    std::vector<std::uint8_t> record(kRecordHeaderBytes);
    detail::write_header(layout, {}, record.data());
    return record;
}

HostTensors decode(RecordLayout const& layout, Bytes record) {
    detail::Opened const opened = detail::open_record(layout, record);
    HostTensors tensors;
    unpack(layout.window, opened.window, opened.header.window_rows, tensors);
    unpack(layout.events, opened.events, opened.header.events, tensors);
    return tensors;
}

std::int64_t count(RecordLayout const& layout, Bytes record) {
    return whole_header(layout, record).events;
}

std::size_t record_size(RecordLayout const& layout, Bytes buffer) {
    return layout.record_bytes(detail::read_header(layout, buffer).events);
}

void append(RecordLayout const& layout, std::vector<std::uint8_t>& record,
            UserTensors const& tensors, std::optional<std::int64_t> max_events) {
    check_max(max_events);
    detail::Header const header = detail::open_record(layout, record).header;
    Packed const packed = pack_all(layout, tensors);
    Change const change(layout, header, packed.events.count, max_events);
    record.resize(std::max(record.size(), change.size()));
    change.apply(record.data(), packed);
    record.resize(change.size());
}

std::size_t append_into(RecordLayout const& layout, std::uint8_t* buffer, std::size_t capacity,
                        UserTensors const& tensors, std::optional<std::int64_t> max_events) {
    check_max(max_events);
    std::size_t const size = record_size(layout, {buffer, capacity});
    detail::Header const header =
        detail::open_record(layout, {buffer, std::min(size, capacity)}).header;
    Packed const packed = pack_all(layout, tensors);
    Change const change(layout, header, packed.events.count, max_events);
    if (change.size() > capacity) {
        refuse("the grown record takes " + std::to_string(change.size()) +
               " bytes, the buffer has " + std::to_string(capacity));
    }
    change.apply(buffer, packed);
    return change.size();
}

}  // namespace ckv
