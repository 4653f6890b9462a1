#include "header.h"

#include <ckv/error.h>

#include <algorithm>
#include <cstring>

#include "crc32.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "records are little-endian, and so must the machine be"
#endif

namespace ckv::detail {
namespace {

constexpr char kMagic[] = "CKVR";
constexpr std::uint16_t kVersion = 1;
constexpr std::size_t kChecksumAt = 60;
constexpr char kOrNameIds[] =
    ", or export with that one's --item-ids if item ids mean the same in both";

[[noreturn]] void refuse(std::string const& what) { throw Error(ErrorCode::kRecord, what); }

template <typename T>
T read(std::uint8_t const* record, std::size_t offset) {
    T value{};
    std::memcpy(&value, record + offset, sizeof value);
    return value;
}

template <typename T>
void write(std::uint8_t* record, std::size_t offset, T value) {
    std::memcpy(record + offset, &value, sizeof value);
}

std::string hex(std::uint8_t const* bytes, std::size_t size) {
    std::string text;
    for (std::size_t i = 0; i < size; ++i) {
        text += "0123456789abcdef"[bytes[i] >> 4];
        text += "0123456789abcdef"[bytes[i] & 15];
    }
    return text;
}

std::uint8_t code_of(RecordLayout const& layout, char const* name) {
    for (Section const* section : {&layout.window, &layout.events}) {
        for (Field const& field : section->fields) {
            if (field.name == name) {
                return static_cast<std::uint8_t>(field.stored);
            }
        }
    }
    return 0;
}

}  // namespace

void write_header(RecordLayout const& layout, Header const& header, std::uint8_t* record) {
    std::memset(record, 0, kRecordHeaderBytes);
    std::memcpy(record, kMagic, 4);
    write(record, 4, kVersion);
    write(record, 6, static_cast<std::uint16_t>(kRecordHeaderBytes));
    std::memcpy(record + 8, layout.fingerprint.data(), layout.fingerprint.size());
    write(record, 24, layout.checksum);
    write(record, 28, code_of(layout, "cache_k_index"));
    write(record, 29, code_of(layout, "cache_v_index"));
    write(record, 30, static_cast<std::uint8_t>(layout.user_type));
    write(record, 32, header.events);
    write(record, 36, header.window_rows);
    write(record, 40, static_cast<std::uint32_t>(layout.events.row_bytes));
    write(record, 44, static_cast<std::uint32_t>(layout.window.row_bytes));
    write(record, 48, header.window_checksum);
    write(record, 52, header.events_checksum);
    write(record, kChecksumAt, crc32(record, kChecksumAt));
}

Header read_header(RecordLayout const& layout, Bytes buffer) {
    if (buffer.size < kRecordHeaderBytes) {
        refuse("the record is truncated: a header is 64 bytes, got " +
               std::to_string(buffer.size));
    }
    std::uint8_t const* const at = buffer.data;
    if (std::memcmp(at, kMagic, 4) != 0) {
        refuse("this is no cache record: it starts with 0x" + hex(at, 4) + ", not 'CKVR'");
    }
    auto const version = read<std::uint16_t>(at, 4);
    if (version != kVersion) {
        refuse("the record has format version " + std::to_string(version) +
               ", this library reads 1: prefill the user again");
    }
    if (crc32(at, kChecksumAt) != read<std::uint32_t>(at, kChecksumAt)) {
        refuse("the record's header is damaged: its checksum differs");
    }
    if (std::memcmp(at + 8, layout.fingerprint.data(), layout.fingerprint.size()) != 0) {
        bool const only_ids = layout.user_type == StoredType::kNone;
        refuse("the record is of model " + hex(at + 8, 16) + ", this is " +
               hex(layout.fingerprint.data(), 16) + ": prefill the user again" +
               (only_ids ? kOrNameIds : ""));
    }
    if (read<std::uint32_t>(at, 24) != layout.checksum) {
        std::string wanted = layout.describe();
        std::replace(wanted.begin(), wanted.end(), '\n', ';');
        refuse("the record has another layout (form of events, dtype of user parts, or graph) "
               "than this server's, which is " + wanted);
    }
    Header const header{read<std::uint32_t>(at, 32), read<std::uint32_t>(at, 36),
                        read<std::uint32_t>(at, 48), read<std::uint32_t>(at, 52)};
    if (header.window_rows != layout.window_rows(header.events)) {
        refuse("the record contradicts itself: " + std::to_string(header.window_rows) +
               " window rows for " + std::to_string(header.events) + " events, must be " +
               std::to_string(layout.window_rows(header.events)));
    }
    std::array<std::uint8_t, kRecordHeaderBytes> wanted{};
    write_header(layout, header, wanted.data());
    if (std::memcmp(at, wanted.data(), wanted.size()) != 0) {
        refuse("the record contradicts its layout: dtype codes, row or header size");
    }
    return header;
}

}  // namespace ckv::detail
