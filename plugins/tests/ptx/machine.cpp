#include "ptx/machine.h"

#include <algorithm>
#include <vector>

#include "ptx/warp.h"

namespace ckv::ptx {
namespace {

constexpr int kLongestTurn = 200;  // statements

void run_block(std::vector<Warp>& warps, BlockState& block, int threads, std::mt19937& random) {
    block.shared.begin_block();
    for (size_t i = 0; i < warps.size(); ++i) {
        warps[i].begin(block, std::min(kLanes, threads - static_cast<int>(i) * kLanes));
    }
    std::vector<Warp*> running;
    for (;;) {
        running.clear();
        for (Warp& warp : warps) {
            if (warp.state() == Warp::State::kRuns) {
                running.push_back(&warp);
            }
        }
        if (!running.empty()) {
            running[random() % running.size()]->run(1 + static_cast<int>(random() % kLongestTurn));
            continue;
        }
        bool waiting = false;
        for (Warp& warp : warps) {
            if (warp.state() == Warp::State::kAtBarrier) {
                warp.leave_barrier();
                waiting = true;
            }
        }
        if (!waiting) {
            return;
        }
        block.shared.barrier();
    }
}

}  // namespace

void run(Program const& program, Launch const& launch, GlobalMemory& global,
    std::mt19937& random) {
    SharedMemory shared(launch.shared_bytes);
    std::vector<Warp> warps;
    for (int first = 0; first < launch.threads; first += kLanes) {
        warps.emplace_back(program, first);
    }
    global.begin_launch();
    BlockState block{shared, global, launch.parameters,
        static_cast<uint64_t>(program.kernel.parameter_bytes()), {}, 0};
    for (uint32_t z = 0; z < launch.grid[2]; ++z) {
        for (uint32_t y = 0; y < launch.grid[1]; ++y) {
            for (uint32_t x = 0; x < launch.grid[0]; ++x) {
                block.place[0] = x;
                block.place[1] = y;
                block.place[2] = z;
                try {
                    run_block(warps, block, launch.threads, random);
                } catch (Fault const& fault) {
                    throw Fault(program.kernel.name + ", block " + std::to_string(x) + " " +
                                std::to_string(y) + " " + std::to_string(z) + ": " +
                                fault.what());
                }
                block.first_thread += static_cast<uint32_t>(launch.threads);
            }
        }
    }
}

}  // namespace ckv::ptx
