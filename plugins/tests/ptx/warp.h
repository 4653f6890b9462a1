// One warp: registers of 32 lanes, and where each lane stands.
//
// Lanes that stand at the same statement take it together; of several groups the one furthest
// behind goes first, so that they meet again where their paths do. A group that comes to a barrier
// or a warp-wide instruction waits there for the others.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "ptx/memory.h"
#include "ptx/program.h"

namespace ckv::ptx {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = 0xFFFFFFFF;

// An asynchronous copy of one lane that has not landed.
struct Copy {
    uint32_t to;
    uint64_t from;  // 0: zeros
    int bytes;
};

// What all warps of a block see.
struct BlockState {
    SharedMemory& shared;
    GlobalMemory& global;
    char const* parameters;
    uint64_t parameter_bytes;
    uint32_t place[3];      // %ctaid
    uint32_t first_thread;  // of the block, among the launch's
};

class Warp {
public:
    enum class State { kRuns, kAtBarrier, kEnded };

    Warp(Program const& program, int first_thread);

    // A new block, with `lanes` of 32 that exist.
    void begin(BlockState& block, int lanes);
    // Takes up to `statements`, fewer where it comes to a barrier or its end; throws Fault.
    State run(int statements);
    State state() const { return state_; }
    void leave_barrier() { state_ = State::kRuns; }

    // For instructions: a lane's slot of 4 or 8 bytes in the row that begins at `row`.
    template <typename T>
    T get(int row, int lane) const {
        using Slot = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
        Slot slot;
        std::memcpy(&slot, file_.data() + row + lane * sizeof slot, sizeof slot);
        T x;
        std::memcpy(&x, &slot, sizeof x);
        return x;
    }
    template <typename T>
    void put(int row, int lane, T x) {
        using Slot = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
        Slot slot = 0;
        std::memcpy(&slot, &x, sizeof x);
        std::memcpy(file_.data() + row + lane * sizeof slot, &slot, sizeof slot);
    }
    BlockState& block() { return *block_; }
    int thread(int lane) const { return first_thread_ + lane; }

    struct Pending {
        std::vector<Copy> open;
        std::vector<std::vector<Copy>> committed;
    };
    Pending& copies(int lane) { return copies_[lane]; }

private:
    struct Group {
        int at;
        uint32_t lanes;
        bool waits = false;  // for the other lanes, at a statement that all take together
    };

    size_t next_group() const;
    uint32_t guarded(Instruction const& i, uint32_t lanes) const;
    void step();
    void take(size_t group, Instruction const& i, uint32_t lanes);
    bool all_here(size_t group, uint32_t lanes, uint32_t wanted);
    void branch(size_t group, int target, uint32_t taken);
    void join(size_t group);
    void exit(size_t group, uint32_t lanes);
    void check_copies(uint32_t lanes) const;

    Program const& program_;
    int first_thread_;
    std::vector<char> file_;
    std::vector<Group> groups_;
    uint32_t alive_ = 0;
    State state_ = State::kEnded;
    BlockState* block_ = nullptr;
    std::vector<Pending> copies_;
};

}  // namespace ckv::ptx
