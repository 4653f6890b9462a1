#include "scheduler.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

namespace ckv::emulator {
namespace {

constexpr size_t kStack = 128 * 1024;

[[noreturn]] void fail(char const* why) {
    std::fprintf(stderr, "emulator: %s\n", why);
    std::abort();
}

void make(Copy const& copy) {
    if (copy.from) {
        std::memcpy(copy.to, copy.from, copy.bytes);
    } else {
        std::memset(copy.to, 0, copy.bytes);
    }
}

}  // namespace

Block& Block::current() {
    static Block block;
    return block;
}

void Block::enter() {
    Block& block = current();
    (*block.body_)();
    block.fibers_[block.thread_].finished = true;
    --block.alive_;
    ++block.progress_;
    block.yield();
}

void Block::run(int threads, unsigned const (&place)[3], char* shared, uint32_t seed,
    std::function<void()> const& body) {
    if (threads % 32 != 0) {
        fail("a block must be whole warps");
    }
    fibers_.resize(std::max<size_t>(fibers_.size(), threads));
    warps_.assign(threads / 32, Warp{});
    body_ = &body;
    random_.seed(seed);
    std::copy(place, place + 3, place_);
    shared_ = shared;
    alive_ = threads;
    at_barrier_ = 0;
    for (int t = 0; t < threads; ++t) {
        Fiber& fiber = fibers_[t];
        if (!fiber.stack) {
            fiber.stack = std::make_unique<char[]>(kStack);
        }
        fiber.finished = false;
        fiber.open.clear();
        fiber.committed.clear();
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStack;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, enter, 0);
    }
    std::vector<int> order(threads);
    std::iota(order.begin(), order.end(), 0);
    while (alive_ > 0) {
        std::shuffle(order.begin(), order.end(), random_);
        uint64_t const before = progress_;
        for (int t : order) {
            if (!fibers_[t].finished) {
                thread_ = t;
                swapcontext(&home_, &fibers_[t].context);
            }
        }
        if (progress_ == before) {
            fail("deadlock: some threads never reach a barrier that others wait at");
        }
    }
}

void Block::yield() {
    int const me = thread_;
    swapcontext(&fibers_[me].context, &home_);
}

void Block::barrier() {
    uint64_t const mine = barrier_generation_;
    ++at_barrier_;
    ++progress_;
    while (barrier_generation_ == mine) {
        // Threads that have ended count as arrived, as they do on a GPU.
        if (at_barrier_ >= alive_) {
            at_barrier_ = 0;
            ++barrier_generation_;
            ++progress_;
            return;
        }
        yield();
    }
}

unsigned char const (*Block::exchange(void const* mine, size_t bytes))[Warp::kSlot] {
    if (bytes > static_cast<size_t>(Warp::kSlot)) {
        fail("a collective's operand is too large");
    }
    Warp& warp = warps_[thread_ / 32];
    uint64_t const generation = warp.generation;
    auto* slots = warp.slots[generation % 2];
    std::memcpy(slots[thread_ % 32], mine, bytes);
    ++progress_;
    if (++warp.arrived == 32) {
        warp.arrived = 0;
        ++warp.generation;
        return slots;
    }
    while (warp.generation == generation) {
        yield();
    }
    return slots;
}

void Block::copy_async(Copy const& copy) {
    auto const address = reinterpret_cast<uintptr_t>(copy.to) |
                         reinterpret_cast<uintptr_t>(copy.from);
    if (address % static_cast<unsigned>(copy.bytes) != 0) {
        fail("misaligned asynchronous copy");
    }
    // Hardware promises no more than the wait does: some copies land at once, others last.
    if (random_() % 2 == 0) {
        make(copy);
    } else {
        fibers_[thread_].open.push_back(copy);
    }
}

void Block::commit() {
    Fiber& fiber = fibers_[thread_];
    fiber.committed.insert(fiber.committed.end(), fiber.open.begin(), fiber.open.end());
    fiber.open.clear();
}

void Block::wait() {
    auto& committed = fibers_[thread_].committed;
    std::for_each(committed.begin(), committed.end(), make);
    committed.clear();
}

}  // namespace ckv::emulator
