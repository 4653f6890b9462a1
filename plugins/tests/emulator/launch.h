// kernels/launch.h for the emulator: blocks run one after the other, in the calling thread.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "emulator/scheduler.h"

namespace ckv {

struct Grid {
    int64_t x = 1, y = 1, z = 1;
};

namespace emulator {

// Of the order of threads; set by the tests.
inline uint32_t seed = 1;

// Of how many launches from now the last one fails; 0 of none.
inline int failing_launch = 0;

// Shared memory that begins as NaNs and ends at a page that can't be touched.
class SharedMemory {
public:
    explicit SharedMemory(size_t bytes) : bytes_((bytes + 15) / 16 * 16) {
        size_t const page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        usable_ = (bytes_ + page - 1) / page * page;
        mapped_ = static_cast<char*>(mmap(nullptr, usable_ + page, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        mprotect(mapped_ + usable_, page, PROT_NONE);
        page_ = page;
    }
    SharedMemory(SharedMemory const&) = delete;
    SharedMemory& operator=(SharedMemory const&) = delete;
    ~SharedMemory() { munmap(mapped_, usable_ + page_); }

    char* poisoned() {
        char* const first = mapped_ + usable_ - bytes_;
        std::memset(first, 0xFF, bytes_);
        return first;
    }

private:
    size_t bytes_, usable_ = 0, page_ = 0;
    char* mapped_ = nullptr;
};

}  // namespace emulator

template <typename Args>
cudaError_t launch(void (*kernel)(Args), Grid grid, int threads, size_t shared_bytes,
    cudaStream_t /*stream*/, Args args) {
    if (emulator::failing_launch > 0 && --emulator::failing_launch == 0) {
        return cudaErrorLaunchFailure;
    }
    bool const empty = grid.x < 1 || grid.y < 1 || grid.z < 1;
    if (empty || grid.x > INT32_MAX || grid.y > UINT16_MAX || grid.z > UINT16_MAX) {
        return cudaErrorInvalidConfiguration;
    }
    emulator::SharedMemory shared(shared_bytes);
    uint32_t seed = emulator::seed;
    for (int64_t z = 0; z < grid.z; ++z) {
        for (int64_t y = 0; y < grid.y; ++y) {
            for (int64_t x = 0; x < grid.x; ++x) {
                unsigned const place[3] = {static_cast<unsigned>(x), static_cast<unsigned>(y),
                    static_cast<unsigned>(z)};
                emulator::Block::current().run(
                    threads, place, shared.poisoned(), ++seed, [&] { kernel(args); });
            }
        }
    }
    return cudaSuccess;
}

template <auto kKernel>
bool runs_here(int capability, size_t /*shared_bytes*/) {
    return emulator::capability >= capability;
}

inline cudaError_t clear(void* at, size_t bytes, cudaStream_t /*stream*/) {
    std::memset(at, 0, bytes);
    return cudaSuccess;
}

}  // namespace ckv
