// The library for Python's ctypes, so that tests can compare it with the Python package.
#include <ckv/record.h>
#include <ckv/tensor_file.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "../src/crc32.h"
#include "../src/half.h"
#include "../src/sha256.h"
#include "guarded.h"

namespace {

ckv::UserTensors user_tensors(int count, char const** names, void const** data,
                              std::int64_t const* events) {
    ckv::UserTensors tensors;
    for (int i = 0; i < count; ++i) {
        tensors[names[i]] = {data[i], events[i]};
    }
    return tensors;
}

std::vector<ckv::Bytes> all_bytes(int users, std::uint8_t const** records,
                                  std::int64_t const* sizes) {
    std::vector<ckv::Bytes> bytes;
    for (int i = 0; i < users; ++i) {
        bytes.emplace_back(records[i], static_cast<std::size_t>(sizes[i]));
    }
    return bytes;
}

std::int64_t give(std::vector<std::uint8_t> const& record, std::uint8_t* out) {
    std::memcpy(out, record.data(), record.size());
    return static_cast<std::int64_t>(record.size());
}

}  // namespace

extern "C" {

char const* ckv_error() { return g_error.c_str(); }

ckv::RecordLayout* ckv_layout(char const* bundle, int type, char const* graph, int verify) {
    ckv::RecordLayout* layout = nullptr;
    guarded([&] {
        auto const opened = verify != 0 ? ckv::Bundle::open(bundle)
                                        : ckv::Bundle::open_unverified(bundle);
        layout = new ckv::RecordLayout(
            ckv::RecordLayout::of(opened.manifest, static_cast<ckv::UserType>(type), graph));
        return 0;
    });
    return layout;
}

void ckv_layout_free(ckv::RecordLayout* layout) { delete layout; }

char const* ckv_describe(ckv::RecordLayout const* layout) {
    static thread_local std::string text;
    text = layout->describe();
    return text.c_str();
}

std::int64_t ckv_pad_to(ckv::RecordLayout const* layout) { return layout->pad_to.value_or(-1); }

std::int64_t ckv_encode(ckv::RecordLayout const* layout, int count, char const** names,
                        void const** data, std::int64_t const* events, std::uint8_t* out) {
    return guarded([&] {
        return give(ckv::encode(*layout, user_tensors(count, names, data, events)), out);
    });
}

std::int64_t ckv_append(ckv::RecordLayout const* layout, std::uint8_t* buffer,
                        std::int64_t capacity, int count, char const** names, void const** data,
                        std::int64_t const* events, std::int64_t max_events) {
    return guarded([&] {
        auto const most = max_events < 0 ? std::nullopt : std::optional(max_events);
        return static_cast<std::int64_t>(
            ckv::append_into(*layout, buffer, static_cast<std::size_t>(capacity),
                             user_tensors(count, names, data, events), most));
    });
}

// Tensors one behind the other, in the layout's order.
std::int64_t ckv_decode(ckv::RecordLayout const* layout, std::uint8_t const* record,
                        std::int64_t size, std::uint8_t* out) {
    return guarded([&] {
        auto const tensors = ckv::decode(*layout, {record, static_cast<std::size_t>(size)});
        for (auto const* section : {&layout->window, &layout->events}) {
            for (ckv::Field const& field : section->fields) {
                auto const& bytes = tensors.at(field.name).data;
                if (!bytes.empty()) {
                    std::memcpy(out, bytes.data(), bytes.size());
                }
                out += bytes.size();
            }
        }
        return ckv::count(*layout, {record, static_cast<std::size_t>(size)});
    });
}

std::int64_t ckv_batch_events(ckv::RecordLayout const* layout, int users,
                              std::uint8_t const** records, std::int64_t const* sizes,
                              std::int64_t appended) {
    return guarded([&] {
        return ckv::batch_events(*layout, all_bytes(users, records, sizes), appended);
    });
}

std::int64_t ckv_batch(ckv::RecordLayout const* layout, int users, std::uint8_t const** records,
                       std::int64_t const* sizes, std::int64_t events, int count,
                       char const** names, void** data) {
    return guarded([&] {
        auto const bytes = all_bytes(users, records, sizes);
        std::map<std::string, void*> out;
        for (int i = 0; i < count; ++i) {
            out[names[i]] = data[i];
        }
        std::int64_t const length = events < 0 ? ckv::batch_events(*layout, bytes) : events;
        ckv::batch(*layout, bytes, length, out);
        return length;
    });
}

// The user's real events of a call, encoded.
std::int64_t ckv_user_events(ckv::RecordLayout const* layout, int count, char const** names,
                             void const** data, std::int64_t users, std::int64_t events,
                             std::int64_t user, int prefill, std::uint8_t* out) {
    return guarded([&] {
        std::map<std::string, void const*> tensors;
        for (int i = 0; i < count; ++i) {
            tensors[names[i]] = data[i];
        }
        auto const graph = prefill != 0 ? ckv::CallGraph::kPrefill : ckv::CallGraph::kDecode;
        auto const taken = ckv::user_events(
            *layout, tensors, {{"B", users}, {"S", events}, {"T", events}}, user, graph);
        return give(ckv::encode(*layout, ckv::views(taken)), out);
    });
}

// Rows of the bundle's item table, or 0 for its pools; `out` gets the tensor `name`, unless that is
// empty.
std::int64_t ckv_tensor_file(char const* bundle, int pools, char const* name, void* out) {
    return guarded([&] {
        auto const opened = ckv::Bundle::open_unverified(bundle);
        auto const file = pools != 0 ? ckv::TensorFile::pools(opened)
                                     : ckv::TensorFile::item_table(opened);
        if (*name != '\0') {
            file.read(name, out);
        }
        return file.sizes().empty() ? std::int64_t{0} : file.sizes().begin()->second;
    });
}

std::uint32_t ckv_crc32(void const* data, std::int64_t size, std::uint32_t previous) {
    return ckv::detail::crc32(data, static_cast<std::size_t>(size), previous);
}

void ckv_sha256(void const* data, std::int64_t size, std::int64_t piece, char* hex) {
    ckv::detail::Sha256 digest;
    auto const* bytes = static_cast<std::uint8_t const*>(data);
    for (std::int64_t at = 0; at < size; at += piece) {
        digest.update(bytes + at, static_cast<std::size_t>(std::min(piece, size - at)));
    }
    std::strcpy(hex, digest.finish().c_str());
}

void ckv_to_half(float const* from, std::int64_t count, std::uint16_t* to) {
    for (std::int64_t i = 0; i < count; ++i) {
        to[i] = ckv::detail::float_to_half(from[i]);
    }
}

void ckv_from_half(std::uint16_t const* from, std::int64_t count, float* to) {
    for (std::int64_t i = 0; i < count; ++i) {
        to[i] = ckv::detail::half_to_float(from[i]);
    }
}

}  // extern "C"
