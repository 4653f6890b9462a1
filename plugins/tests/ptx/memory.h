// Memory of the GPU that knows who touched what, and when.
//
// Every access is checked: inside its allocation, aligned to its size, written before it is read,
// and not racing another thread's. Two threads of a block race if they touch the same bytes of
// shared memory between the same two barriers and one of them writes; threads of a launch, if one
// touches bytes of global memory that another has written. Atomic operations race no other of
// their kind. The bytes of an asynchronous copy are nobody's until its thread has waited for it.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace ckv::ptx {

// Accesses are of 2 bytes or a multiple.
constexpr int kGrain = 2;

enum class Access { kRead, kWrite, kAtomic };

class SharedMemory {
public:
    explicit SharedMemory(size_t bytes);

    // A new block: nothing is written yet.
    void begin_block();
    // All threads have met.
    void barrier() { ++epoch_; }

    // Where `address` lies, for `thread`; throws Fault.
    char* at(uint32_t address, int bytes, Access access, int thread);
    // A copy by `thread` is under way, and has ended.
    void begin_copy(uint32_t address, int bytes, int thread);
    char* end_copy(uint32_t address, int bytes, int thread);

private:
    static constexpr int kNobody = -1, kSeveral = -2, kAtomics = -3;
    struct Grain {
        uint32_t written = 0, read = 0;  // epochs; those before this block's first count as never
        int16_t writer = kNobody, reader = kNobody;
        bool copying = false;
    };

    void check_range(uint32_t address, int bytes) const;
    // True where several threads had read before: nobody may write until the next barrier.
    bool read(Grain& grain, uint32_t address, int thread) const;
    void write(Grain& grain, uint32_t address, int thread) const;

    std::vector<char> bytes_;
    std::vector<Grain> grains_;
    // Reads by several threads that need no second look, by their address: most reads are such.
    struct Shown {
        uint32_t address = 0, epoch = 0;
        int bytes = 0;
    };
    std::array<Shown, 1024> shown_;
    uint32_t epoch_ = 1, first_ = 1;
};

// One cudaMalloc.
struct Allocation {
    explicit Allocation(size_t count);

    std::unique_ptr<char[]> storage;
    char* begin;  // 256-byte aligned, as cudaMalloc promises
    size_t bytes;
    std::vector<bool> written;
    std::vector<uint64_t> writer;  // launch and thread
};

class GlobalMemory {
public:
    void* allocate(size_t bytes);
    // False where `pointer` is no allocation's beginning.
    bool free(void* pointer);
    // The host reads or writes through the runtime; throws Fault.
    void host(void const* pointer, size_t bytes, Access access);

    void begin_launch() { ++launch_; }
    // `thread` counts all threads of the launch.
    char* at(uint64_t address, int bytes, Access access, uint32_t thread);

private:
    Allocation& find(uint64_t address, size_t bytes, char const* what);

    std::map<uint64_t, Allocation> allocations_;
    Allocation* latest_ = nullptr;
    uint64_t launch_ = 0;
};

}  // namespace ckv::ptx
