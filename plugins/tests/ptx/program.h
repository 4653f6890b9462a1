// A kernel ready to run: every operand a row of the register file, every opcode a function.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ptx/module.h"

namespace ckv::ptx {

class Warp;
struct Instruction;
using Run = void (*)(Warp& warp, Instruction const& i, uint32_t lanes);

enum class Flow { kNext, kBranch, kBarrier, kExit };

struct Instruction {
    Run run = nullptr;
    Flow flow = Flow::kNext;
    bool together = false;   // all lanes of the warp must take it at once
    int guard = -1;          // row of the predicate, or -1
    bool unless = false;     // @!guard
    int target = 0;          // of a branch
    std::vector<int> rows;   // of the operands, results first, as they stand in the text
    std::vector<bool> wide;  // rows of 8 bytes a lane
    int64_t offset = 0;      // of an address
    Statement const* statement = nullptr;
};

// Rows that a block fills anew.
struct Specials {
    int thread = -1, block[3] = {-1, -1, -1};
};

struct Constant {
    int row;
    bool wide;
    uint64_t bits;
};

struct Program {
    explicit Program(Kernel source);
    Program(Program const&) = delete;

    Kernel kernel;
    std::vector<Instruction> instructions;
    std::vector<Constant> constants;
    Specials specials;
    int file_bytes = 0;
};

// The function of an opcode, and the widths in bytes that it reads and writes its operands in;
// throws Fault where there is none.
struct Operation {
    Run run;
    char const* widths;  // a digit for each operand: 4 or 8; '*' what the register has
    bool together = false;
};
Operation const& operation(std::string const& opcode);

}  // namespace ckv::ptx
