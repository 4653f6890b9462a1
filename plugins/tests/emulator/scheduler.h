// Runs the threads of one CUDA block on one CPU thread, as fibers that switch only at barriers.
//
// Between barriers, threads run one after the other in an order that a seed shuffles anew every
// round: a kernel that misses a barrier reads what was not yet written, or already overwritten.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include <ucontext.h>

namespace ckv::emulator {

// The compute capability that kernels are told; set by the tests.
inline int capability = 90;

struct Copy {
    void* to;
    void const* from;  // null: zeros
    int bytes;
};

// What every lane of a warp laid down at a collective, twice: a lane that has run ahead to the
// next collective must not overwrite what slower lanes still read.
struct Warp {
    static constexpr int kSlot = 32;
    alignas(16) unsigned char slots[2][32][kSlot];
    int arrived = 0;
    uint64_t generation = 0;
};

struct Fiber {
    ucontext_t context{};
    std::unique_ptr<char[]> stack;
    bool finished = false;
    // Asynchronous copies not yet made: those that a wait makes, and those not yet committed.
    std::vector<Copy> committed, open;
};

class Block {
public:
    static Block& current();

    // Runs `body` once for every thread of the block.
    void run(int threads, unsigned const (&place)[3], char* shared, uint32_t seed,
        std::function<void()> const& body);

    int thread() const { return thread_; }
    unsigned place(int axis) const { return place_[axis]; }
    char* shared() const { return shared_; }

    void barrier();
    // Lays `bytes` of `mine` down, waits for the warp, returns all 32 slots.
    unsigned char const (*exchange(void const* mine, size_t bytes))[Warp::kSlot];

    void copy_async(Copy const& copy);
    void commit();
    void wait();

private:
    void yield();
    static void enter();

    std::vector<Fiber> fibers_;
    std::vector<Warp> warps_;
    std::function<void()> const* body_ = nullptr;
    std::mt19937 random_;
    ucontext_t home_{};
    unsigned place_[3] = {};
    char* shared_ = nullptr;
    int thread_ = 0;
    int alive_ = 0;
    int at_barrier_ = 0;
    uint64_t barrier_generation_ = 0;
    uint64_t progress_ = 0;
};

}  // namespace ckv::emulator
