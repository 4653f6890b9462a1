#include <ckv/error.h>
#include <ckv/record.h>

#include <algorithm>
#include <cstring>

#include "crc32.h"

namespace ckv {
namespace {

constexpr std::int64_t kUint16Rows = 65536;
constexpr std::int64_t kScaleBytes = 2;

[[noreturn]] void refuse(std::string const& what) { throw Error(ErrorCode::kRecord, what); }

bool starts_with(std::string const& text, std::string const& prefix) {
    return text.compare(0, prefix.size(), prefix) == 0;
}

std::string stored_name(StoredType stored) {
    switch (stored) {
        case StoredType::kUint16: return "uint16";
        case StoredType::kInt32: return "int32";
        case StoredType::kFloat32: return "float32";
        case StoredType::kFloat16: return "float16";
        case StoredType::kInt8: return "int8";
        case StoredType::kNone: break;
    }
    return "nothing";
}

std::int64_t stored_bytes(StoredType stored) {
    switch (stored) {
        case StoredType::kUint16:
        case StoredType::kFloat16: return 2;
        case StoredType::kInt8: return 1;
        default: return 4;
    }
}

StoredType stored_type(UserType type) {
    switch (type) {
        case UserType::kFloat32: return StoredType::kFloat32;
        case UserType::kInt8: return StoredType::kInt8;
        case UserType::kFloat16: break;
    }
    return StoredType::kFloat16;
}

// The first 16 bytes of a SHA-256 in hex.
std::array<std::uint8_t, 16> short_fingerprint(std::string const& hex) {
    static constexpr char kDigits[] = "0123456789abcdef";
    if (hex.size() != 64 || hex.find_first_not_of(kDigits) != std::string::npos) {
        refuse("a model's fingerprint must be a SHA-256 of 64 hex digits, got '" + hex + "'");
    }
    std::array<std::uint8_t, 16> bytes{};
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        auto const digit = [&](std::size_t at) {
            return static_cast<std::size_t>(std::find(kDigits, kDigits + 16, hex[at]) - kDigits);
        };
        bytes[i] = static_cast<std::uint8_t>(digit(2 * i) << 4 | digit(2 * i + 1));
    }
    return bytes;
}

// Sizes of an event from the tensor's axes, `outer` of which (users, layers, events) come first; only
// users and events vary.
void take_shape(Field& field, TensorSpec const& tensor, std::size_t outer) {
    if (tensor.type != ElementType::kInt32 && tensor.type != ElementType::kFloat32) {
        refuse("the tensor '" + tensor.name + "' is of a type that records don't hold");
    }
    if (tensor.axes.size() < outer) {
        refuse("the tensor '" + tensor.name + "' has too few axes to be cached");
    }
    for (std::size_t i = 1; i < tensor.axes.size(); ++i) {
        if (i + 1 != outer && !tensor.axes[i].name.empty()) {
            refuse("the tensor '" + tensor.name + "' has an event of no fixed size");
        }
        if (i < outer) {
            continue;
        }
        field.shape.push_back(tensor.axes[i].size);
        if (__builtin_mul_overflow(field.width, tensor.axes[i].size, &field.width)) {
            refuse("an event's '" + tensor.name + "' is too large for a record");
        }
    }
}

// `values` as the graph takes them, for `Field::padding`.
std::vector<std::uint8_t> padding_bytes(Field const& field, std::vector<double> const& values) {
    if (static_cast<std::int64_t>(values.size()) != field.layers * field.width) {
        refuse("the padding of " + field.name + " has another size than an event");
    }
    std::vector<std::uint8_t> bytes(4 * values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
        if (field.rows && !(values[i] >= 0 && values[i] < static_cast<double>(*field.rows))) {
            refuse("the padding of " + field.name + " is no row of its pool");
        }
        auto const row = field.rows ? static_cast<std::int32_t>(values[i]) : 0;
        auto const number = field.rows ? 0.0F : static_cast<float>(values[i]);
        std::memcpy(bytes.data() + 4 * i, field.rows ? static_cast<void const*>(&row) : &number, 4);
    }
    return bytes;
}

// A cache entry, [B, L, K] or [B, L, K, width].
Field entry_field(TensorSpec const& tensor, Manifest const& manifest, StoredType user_type) {
    Model const& model = manifest.model;
    Field field;
    field.name = tensor.name;
    field.type = tensor.type;
    field.layered = true;
    take_shape(field, tensor, 3);
    field.layers = tensor.axes[1].size;
    field.shape.insert(field.shape.begin(), field.layers);
    field.stored = user_type;
    if (tensor.type == ElementType::kInt32) {
        field.rows = starts_with(tensor.name, "cache_k") ? model.pool_rows_k : model.pool_rows_v;
        field.stored = *field.rows <= kUint16Rows ? StoredType::kUint16 : StoredType::kInt32;
    }
    auto const padding = manifest.padding.find(field.name);
    if (padding != manifest.padding.end()) {
        field.padding = padding_bytes(field, padding->second);
    }
    return field;
}

// history_<f>, [B, S, ..].
Field feature_field(TensorSpec const& tensor, Model const& model) {
    Field field;
    field.name = tensor.name;
    field.type = tensor.type;
    take_shape(field, tensor, 2);
    field.stored =
        tensor.type == ElementType::kInt32 ? StoredType::kInt32 : StoredType::kFloat32;
    for (Feature const& feature : model.features) {
        bool const has_table = feature.kind == "categorical" || feature.kind == "sequence";
        if (feature.role == "item" && has_table && tensor.name == "history_" + feature.name) {
            field.rows = feature.vocab_size;
        }
    }
    return field;
}

// Give the fields their places in a row, one behind the other.
void place(Section& section) {
    std::int64_t bytes = 0;
    for (Field& field : section.fields) {
        field.offset = static_cast<std::size_t>(bytes);
        std::int64_t numbers = 0, size = 0;
        bool overflow = __builtin_mul_overflow(field.layers, field.width, &numbers);
        overflow |= __builtin_mul_overflow(numbers, stored_bytes(field.stored), &size);
        bool const scaled = field.stored == StoredType::kInt8 && numbers > 0;
        overflow |= __builtin_add_overflow(bytes, size + (scaled ? kScaleBytes * field.layers : 0),
                                           &bytes);
        if (overflow || bytes > 1 << 30) {
            refuse("an event of this model is too large for a record");
        }
    }
    section.row_bytes = static_cast<std::size_t>(bytes);
}

}  // namespace

RecordLayout RecordLayout::of(Manifest const& manifest, UserType user_type,
                              std::string const& graph) {
    std::string const name =
        !graph.empty() ? graph : manifest.item_table ? "decode_items" : "decode";
    if (!starts_with(name, "decode")) {
        refuse("records are for a decode graph, got '" + name + "'");
    }
    Model const& model = manifest.model;
    RecordLayout layout;
    std::vector<Field> entries, history;
    for (TensorSpec const& tensor : manifest.graph(name).inputs) {
        if (starts_with(tensor.name, "cache_")) {
            entries.push_back(entry_field(tensor, manifest, stored_type(user_type)));
        } else if (starts_with(tensor.name, "history_") && tensor.name != "history_mask") {
            history.push_back(feature_field(tensor, model));
        }
    }
    layout.fingerprint = short_fingerprint(entries.empty() ? manifest.ids : manifest.entries);
    layout.user_type = entries.empty() ? StoredType::kNone : stored_type(user_type);
    if (model.window) {
        layout.cap = entries.empty() ? 0 : *model.window - 1;
        layout.window.fields = std::move(entries);
        layout.events.fields = std::move(history);
        layout.pad_to = model.max_len;
        auto const longest = manifest.profile.find("S");
        if (longest != manifest.profile.end()) {
            layout.pad_to = std::min(model.max_len, longest->second.max);
        }
    } else {
        entries.insert(entries.end(), history.begin(), history.end());
        layout.events.fields = std::move(entries);
    }
    place(layout.window);
    place(layout.events);
    if (layout.events.row_bytes == 0) {
        refuse("the bundle " + manifest.name + " keeps nothing of an event");
    }
    std::string const text = layout.describe();
    layout.checksum = detail::crc32(text.data(), text.size());
    return layout;
}

std::string RecordLayout::describe() const {
    std::string text = "window " + std::to_string(cap) + "\n";
    for (auto const* section : {&window, &events}) {
        for (Field const& field : section->fields) {
            text += section == &window ? "window " : "events ";
            text += field.name + " " + stored_name(field.stored) + " ";
            std::string shape;
            for (std::int64_t const size : field.shape) {
                shape += (shape.empty() ? "" : "x") + std::to_string(size);
            }
            text += (shape.empty() ? "1" : shape) + "\n";
        }
    }
    return text;
}

std::size_t RecordLayout::record_bytes(std::int64_t of) const {
    return kRecordHeaderBytes + static_cast<std::size_t>(window_rows(of)) * window.row_bytes +
           static_cast<std::size_t>(of) * events.row_bytes;
}

}  // namespace ckv
