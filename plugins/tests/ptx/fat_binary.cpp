#include "ptx/fat_binary.h"

#include <cstdint>
#include <cstring>

#include "ptx/module.h"

namespace ckv::ptx {

// A header (magic number, 16-bit version, 16-bit own size, 64-bit size of what follows), then
// entries (16-bit kind, 1 for PTX; 32-bit own size at 4, 64-bit size at 8).
std::string ptx_of(void const* fat_binary) {
    auto const read = [](char const* at, auto& x) { std::memcpy(&x, at, sizeof x); };
    char const* data = nullptr;
    read(static_cast<char const*>(fat_binary) + 8, data);
    uint32_t magic = 0;
    uint16_t own = 0;
    uint64_t size = 0;
    read(data, magic);
    read(data + 6, own);
    read(data + 8, size);
    if (magic != 0xBA55ED50) {
        throw Fault("this is no fat binary");
    }
    for (char const* at = data + own; at < data + own + size;) {
        uint16_t kind = 0;
        uint32_t header = 0;
        uint64_t bytes = 0;
        read(at, kind);
        read(at + 4, header);
        read(at + 8, bytes);
        std::string text(at + header, bytes);
        if (kind == 1 && text.find(".version") != std::string::npos) {
            return text.substr(0, text.find('\0', text.find(".version")));
        }
        at += header + bytes;
    }
    throw Fault("this fat binary has no uncompressed PTX");
}

}  // namespace ckv::ptx
