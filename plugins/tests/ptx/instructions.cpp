// The table of opcodes. Those that our kernels don't use are missing.
#include "ptx/instructions.h"

namespace ckv::ptx {
namespace {

Table table() {
    Table t;
    add_integers(t);
    add_floats(t);
    add_memory(t);
    add_warp_wide(t);
    return t;
}

}  // namespace

Operation const& operation(std::string const& opcode) {
    static Table const kTable = table();
    auto const found = kTable.find(opcode);
    if (found == kTable.end()) {
        throw Fault("the PTX instruction " + opcode + " is not known here");
    }
    return found->second;
}

}  // namespace ckv::ptx
