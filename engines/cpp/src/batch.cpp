#include <ckv/error.h>
#include <ckv/record.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>

#include "opened.h"
#include "values.h"

namespace ckv {
namespace {

constexpr char kMask[] = "history_mask";

[[noreturn]] void refuse(std::string const& what) { throw Error(ErrorCode::kRecord, what); }

std::int64_t product(std::initializer_list<std::int64_t> sizes) {
    std::int64_t whole = 1;
    for (std::int64_t const size : sizes) {
        if (size < 0 || __builtin_mul_overflow(whole, size, &whole)) {
            refuse("a batch of such sizes can't be addressed: a size is " + std::to_string(size));
        }
    }
    return whole;
}

std::int64_t tensor_bytes(Field const& field, std::int64_t users, std::int64_t events) {
    return product({4, users, field.layers, events, field.width});
}

// Of a tensor that has elements.
template <typename Pointer>
Pointer address(std::map<std::string, Pointer> const& tensors, std::string const& name) {
    auto const found = tensors.find(name);
    if (found == tensors.end() || found->second == nullptr) {
        refuse("the tensors of the call lack '" + name + "'");
    }
    return found->second;
}

// A field and the batch's tensor of it.
struct Target {
    Field const& field;
    std::uint8_t* tensor;  // null where it holds nothing
};

std::vector<Target> targets(Section const& section, std::int64_t users, std::int64_t events,
                            std::map<std::string, void*> const& out) {
    std::vector<Target> found;
    for (Field const& field : section.fields) {
        bool const any = tensor_bytes(field, users, events) > 0;
        found.push_back(
            {field, any ? static_cast<std::uint8_t*>(address(out, field.name)) : nullptr});
    }
    return found;
}

// What stands for `count` events that are none in layer `l`.
void pad(Field const& field, std::int64_t l, std::int64_t count, std::uint8_t* out) {
    std::int64_t const vector = 4 * field.width;
    if (field.padding.empty()) {
        std::memset(out, 0, static_cast<std::size_t>(count * vector));
        return;
    }
    for (std::int64_t i = 0; i < count; ++i) {
        std::memcpy(out + i * vector, field.padding.data() + l * vector,
                    static_cast<std::size_t>(vector));
    }
}

// One user's rows at the end of its part of the batch's tensors, padding before.
void place(std::vector<Target> const& to, std::uint8_t const* rows, std::size_t row_bytes,
           std::int64_t count, std::int64_t user, std::int64_t events) {
    std::int64_t const taken = std::min(count, events), padding = events - taken;
    std::uint8_t const* const first = rows + static_cast<std::size_t>(count - taken) * row_bytes;
    for (auto const& [field, tensor] : to) {
        if (tensor == nullptr) {
            continue;
        }
        std::int64_t const vector = 4 * field.width;
        auto* const mine = tensor + user * tensor_bytes(field, 1, events);
        for (std::int64_t l = 0; l < field.layers; ++l) {
            pad(field, l, padding, mine + l * events * vector);
        }
        detail::load(field, first, row_bytes, taken, mine + padding * vector, events);
    }
}

}  // namespace

std::map<std::string, std::size_t> batch_bytes(RecordLayout const& layout, std::int64_t users,
                                               std::int64_t events) {
    std::map<std::string, std::size_t> bytes;
    bytes[kMask] = static_cast<std::size_t>(product({users, events}));
    for (Field const& field : layout.window.fields) {
        std::int64_t const cached = layout.window_rows(events);
        bytes[field.name] = static_cast<std::size_t>(tensor_bytes(field, users, cached));
    }
    for (Field const& field : layout.events.fields) {
        bytes[field.name] = static_cast<std::size_t>(tensor_bytes(field, users, events));
    }
    return bytes;
}

std::int64_t batch_events(RecordLayout const& layout, std::vector<Bytes> const& records,
                          std::int64_t appended) {
    if (layout.pad_to) {
        if (appended < 0 || appended > *layout.pad_to) {
            refuse("a call appends 0 to " + std::to_string(*layout.pad_to) + " events, got " +
                   std::to_string(appended));
        }
        return *layout.pad_to - appended;
    }
    std::int64_t longest = 0;
    for (Bytes const& record : records) {
        longest = std::max(longest, count(layout, record));
    }
    return longest;
}

void batch(RecordLayout const& layout, std::vector<Bytes> const& records, std::int64_t events,
           std::map<std::string, void*> const& out) {
    if (events < 0) {
        refuse("a batch has 0 events or more, got " + std::to_string(events));
    }
    auto const users = static_cast<std::int64_t>(records.size());
    bool const any = product({users, events}) > 0;
    auto* const mask = any ? static_cast<std::uint8_t*>(address(out, kMask)) : nullptr;
    std::int64_t const cached = layout.window_rows(events);
    auto const window = targets(layout.window, users, cached, out);
    auto const whole = targets(layout.events, users, events, out);
    for (std::size_t i = 0; i < records.size(); ++i) {
        auto const user = static_cast<std::int64_t>(i);
        try {
            detail::Opened const opened = detail::open_record(layout, records[i]);
            detail::Header const& header = opened.header;
            place(window, opened.window, layout.window.row_bytes, header.window_rows, user, cached);
            place(whole, opened.events, layout.events.row_bytes, header.events, user, events);
            std::int64_t const taken = std::min(events, std::int64_t{header.events});
            std::uint8_t* const real = std::fill_n(mask + user * events, events - taken, 0);
            std::fill_n(real, taken, 1);
        } catch (Error const& error) {
            refuse("record " + std::to_string(i) + " of the batch: " + error.what());
        }
    }
}

HostTensors user_events(RecordLayout const& layout,
                        std::map<std::string, void const*> const& tensors, Sizes const& sizes,
                        std::int64_t user, CallGraph graph) {
    bool const prefill = graph == CallGraph::kPrefill;
    std::string const event = prefill ? "event" : "append";
    auto const length = sizes.find(prefill ? "S" : "T");
    auto const users = sizes.find("B");
    if (length == sizes.end() || length->second < 0 || users == sizes.end() || user < 0 ||
        user >= users->second) {
        refuse("sizes must give B, above the user's number, and the events of the call");
    }
    std::int64_t const given = length->second;
    auto const* const masks =
        given > 0 ? static_cast<std::uint8_t const*>(address(tensors, event + "_mask")) : nullptr;
    std::vector<std::int64_t> real;
    for (std::int64_t e = 0; e < given; ++e) {
        if (masks[user * given + e] != 0) {
            real.push_back(e);
        }
    }
    HostTensors taken;
    auto const count = static_cast<std::int64_t>(real.size());
    for (Section const* section : {&layout.window, &layout.events}) {
        for (Field const& field : section->fields) {
            std::string const suffix = field.name.substr(field.name.find('_'));
            std::string const prefix = prefill && field.layered ? "cache" : event;
            HostTensor& tensor = taken[field.name];
            tensor.events = count;
            tensor.data.resize(static_cast<std::size_t>(tensor_bytes(field, 1, count)));
            std::int64_t const vector = 4 * field.width;
            if (tensor.data.empty()) {
                continue;
            }
            auto const* const from =
                static_cast<std::uint8_t const*>(address(tensors, prefix + suffix)) +
                user * tensor_bytes(field, 1, given);
            for (std::int64_t l = 0; l < field.layers; ++l) {
                for (std::int64_t e = 0; e < count; ++e) {
                    std::memcpy(tensor.data.data() + (l * count + e) * vector,
                                from + (l * given + real[static_cast<std::size_t>(e)]) * vector,
                                static_cast<std::size_t>(vector));
                }
            }
        }
    }
    return taken;
}

}  // namespace ckv
