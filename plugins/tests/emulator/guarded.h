// Memory of a test's tensor that ends at an untouchable page: reading past it ends the process.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <utility>

namespace ckv::emulator {

// `alignment` 1 puts the last byte at the page's edge; 16 leaves a device allocation's alignment.
class Guarded {
public:
    Guarded(size_t bytes, size_t alignment) : bytes_(bytes) {
        size_t const page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        size_t const usable = (bytes + page) / page * page;
        mapped_ = usable + 2 * page;
        map_ = static_cast<char*>(
            mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        mprotect(map_ + page, usable, PROT_READ | PROT_WRITE);
        std::memset(map_ + page, 0xFF, usable);
        data_ = map_ + page + (usable - bytes) / alignment * alignment;
    }
    Guarded(Guarded&& other) noexcept { swap(other); }
    Guarded& operator=(Guarded&& other) noexcept {
        swap(other);
        return *this;
    }
    Guarded(Guarded const&) = delete;
    Guarded& operator=(Guarded const&) = delete;
    ~Guarded() {
        if (map_) {
            munmap(map_, mapped_);
        }
    }

    char* data() const { return data_; }
    size_t bytes() const { return bytes_; }

private:
    void swap(Guarded& other) {
        std::swap(map_, other.map_);
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        std::swap(mapped_, other.mapped_);
    }
    char* map_ = nullptr;
    char* data_ = nullptr;
    size_t bytes_ = 0, mapped_ = 0;
};

}  // namespace ckv::emulator
