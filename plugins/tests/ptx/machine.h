// Runs a launch: blocks one after the other, the warps of a block in turns of random length.
#pragma once

#include <cstdint>
#include <random>

#include "ptx/memory.h"
#include "ptx/program.h"

namespace ckv::ptx {

struct Launch {
    uint32_t grid[3];
    int threads;
    size_t shared_bytes;
    char const* parameters;
};

// Throws Fault, which names kernel and block.
void run(Program const& program, Launch const& launch, GlobalMemory& global, std::mt19937& random);

}  // namespace ckv::ptx
