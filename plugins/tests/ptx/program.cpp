#include "ptx/program.h"

#include <map>
#include <utility>

#include "ptx/warp.h"

namespace ckv::ptx {
namespace {

class Decoder {
public:
    explicit Decoder(Program& program) : program_(program) {
        for (auto const& [name, bytes] : program.kernel.registers) {
            rows_[name] = {row(bytes), bytes};
        }
    }

    Instruction decode(Statement const& s) {
        Instruction i;
        i.statement = &s;
        if (!s.guard.empty()) {
            i.guard = rows_.at(s.guard).first;
            i.unless = s.unless;
        }
        if (s.opcode == "bra" || s.opcode == "bra.uni") {
            i.flow = Flow::kBranch;
            i.target = program_.kernel.labels.at(s.operands.at(0).name);
        } else if (s.opcode == "bar.sync") {
            i.flow = Flow::kBarrier;
        } else if (s.opcode == "ret" || s.opcode == "exit") {
            i.flow = Flow::kExit;
        } else {
            Operation const& op = operation(name_of(s));
            i.run = op.run;
            i.together = op.together;
            char const* widths = op.widths;
            for (Operand const& x : s.operands) {
                add(i, x, widths);
            }
        }
        return i;
    }

private:
    // A mov to or from halves, mov.b32 {a, b}, is another operation than one of whole registers.
    static std::string name_of(Statement const& s) {
        auto const is_list = [](Operand const& x) { return x.kind == Operand::Kind::kList; };
        if (s.opcode.compare(0, 4, "mov.") != 0) {
            return s.opcode;
        }
        return is_list(s.operands.at(0))   ? "unpack" + s.opcode.substr(3)
               : is_list(s.operands.at(1)) ? "pack" + s.opcode.substr(3)
                                           : s.opcode;
    }

    int row(int bytes) {
        program_.file_bytes += kLanes * bytes;
        return program_.file_bytes - kLanes * bytes;
    }

    void add(Instruction& i, Operand const& x, char const*& widths) {
        if (x.kind == Operand::Kind::kList) {
            for (Operand const& part : x.parts) {
                add(i, part, widths);
            }
            return;
        }
        int const wanted = *widths == '*' || *widths == '\0' ? 0 : *widths - '0';
        widths += *widths != '\0' && widths[1] != '\0';  // the last one holds for all that follow
        if (x.kind == Operand::Kind::kAddress) {
            i.offset = x.number;
        }
        auto const [at, bytes] = row_of(x, wanted);
        if (wanted != 0 && bytes != wanted) {
            throw Fault("PTX line " + std::to_string(i.statement->line) + ": " +
                        i.statement->opcode + " with an operand of " + std::to_string(bytes) +
                        " bytes");
        }
        i.rows.push_back(at);
        i.wide.push_back(bytes == 8);
    }

    std::pair<int, int> row_of(Operand const& x, int wanted) {
        if (x.kind == Operand::Kind::kNumber) {
            return constant(x.number, wanted == 8);
        }
        auto const found = rows_.find(x.name);
        if (found != rows_.end()) {
            return found->second;
        }
        if (x.name[0] == '%') {
            return special(x.name);
        }
        if (x.name == "_") {  // a result that nobody wants
            return {row(8), wanted == 8 ? 8 : 4};
        }
        auto const symbol = program_.kernel.symbols.find(x.name);
        if (symbol != program_.kernel.symbols.end()) {
            return constant(symbol->second.address, symbol->second.bytes == 8);
        }
        throw Fault("the name " + x.name + " is not declared");
    }

    std::pair<int, int> constant(int64_t bits, bool wide) {
        auto const [at, fresh] = constants_.try_emplace({bits, wide}, 0);
        if (fresh) {
            at->second = row(wide ? 8 : 4);
            program_.constants.push_back({at->second, wide, static_cast<uint64_t>(bits)});
        }
        return {at->second, wide ? 8 : 4};
    }

    std::pair<int, int> special(std::string const& name) {
        Specials& known = program_.specials;
        int* const at = name == "%tid.x"     ? &known.thread
                        : name == "%ctaid.x" ? &known.block[0]
                        : name == "%ctaid.y" ? &known.block[1]
                        : name == "%ctaid.z" ? &known.block[2]
                                             : nullptr;
        if (at == nullptr) {
            throw Fault("the special register " + name + " is not known here");
        }
        if (*at < 0) {
            *at = row(4);
        }
        return {*at, 4};
    }

    Program& program_;
    std::map<std::string, std::pair<int, int>> rows_;  // and the bytes of a slot
    std::map<std::pair<int64_t, bool>, int> constants_;
};

}  // namespace

Program::Program(Kernel source) : kernel(std::move(source)) {
    Decoder decoder(*this);
    instructions.reserve(kernel.statements.size());
    for (Statement const& s : kernel.statements) {
        instructions.push_back(decoder.decode(s));
    }
}

}  // namespace ckv::ptx
