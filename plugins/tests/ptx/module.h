// PTX text as nvcc writes it, taken apart: kernels, their parameters, registers and statements.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace ckv::ptx {

// What the text, or a kernel that runs, does wrong.
struct Fault : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Operand {
    enum class Kind { kName, kNumber, kAddress, kList };
    Kind kind = Kind::kName;
    std::string name;            // a register or symbol; of an address, its base
    int64_t number = 0;          // a number's bits; of an address, what is added to its base
    std::vector<Operand> parts;  // of {a, b} and a|b
};

struct Statement {
    std::string opcode;  // with all modifiers: "add.s32"
    std::vector<Operand> operands;
    std::string guard;   // a predicate's name, or empty
    bool unless = false; // @!guard
    int line = 0;
};

struct Parameter {
    int offset;
    int bytes;
};

// The address of a parameter, or of the launch's shared memory, and the bytes of an address there.
struct Symbol {
    int address;
    int bytes;
};

struct Kernel {
    std::string name;
    std::vector<Parameter> parameters;
    std::map<std::string, Symbol> symbols;
    std::map<std::string, int> registers;  // bytes of a lane's slot, 4 or 8
    std::map<std::string, int> labels;     // the statement that follows
    std::vector<Statement> statements;
    int most_threads = 1024;  // of a block, .maxntid

    int parameter_bytes() const;
};

// Kernels are found at once and parsed when asked for: a module may have a million statements.
class Module {
public:
    explicit Module(std::string text);

    int target() const { return target_; }  // 90 of sm_90
    bool has(std::string const& kernel) const { return entries_.count(kernel) > 0; }
    Kernel parse(std::string const& kernel) const;

private:
    std::string text_;
    int target_ = 0;
    std::string shared_;                     // the array of a launch's size, or empty
    std::map<std::string, size_t> entries_;  // where the name stands
};

}  // namespace ckv::ptx
