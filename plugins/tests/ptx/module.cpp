#include "ptx/module.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>

namespace ckv::ptx {
namespace {

bool of_name(char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' ||
           c == '.';
}

// A place in the text that knows its line.
class Cursor {
public:
    Cursor(std::string_view text, size_t at) : text_(text), at_(at) {
        line_ = 1 + static_cast<int>(std::count(text.begin(), text.begin() + at, '\n'));
    }

    int line() const { return line_; }
    bool ended() const { return at_ >= text_.size(); }
    char peek() const { return ended() ? '\0' : text_[at_]; }

    char take() {
        line_ += text_[at_] == '\n';
        return text_[at_++];
    }
    void skip_space() {
        while (!ended()) {
            if (std::isspace(static_cast<unsigned char>(peek()))) {
                take();
            } else if (text_.compare(at_, 2, "//") == 0) {
                until('\n');
            } else {
                return;
            }
        }
    }
    bool accept(char c) {
        skip_space();
        if (peek() != c) {
            return false;
        }
        take();
        return true;
    }
    void expect(char c) {
        if (!accept(c)) {
            throw Fault("PTX line " + std::to_string(line_) + ": '" + c + "' is missing");
        }
    }
    std::string name() {
        skip_space();
        std::string found;
        while (of_name(peek())) {
            found += take();
        }
        return found;
    }
    void until(char c) {
        while (!ended() && take() != c) {
        }
    }

private:
    std::string_view text_;
    size_t at_;
    int line_;
};

int64_t number(std::string const& text) {
    if (text.compare(0, 2, "0f") == 0) {
        return static_cast<int64_t>(std::stoull(text.substr(2), nullptr, 16));
    }
    if (text[0] == '-') {
        return std::stoll(text);
    }
    return static_cast<int64_t>(std::stoull(text, nullptr, 0));
}

int bytes_of(std::string const& type) {
    static std::map<std::string, int> const kBytes = {{".b8", 1}, {".u8", 1}, {".s8", 1},
        {".b16", 2}, {".u16", 2}, {".s16", 2}, {".b32", 4}, {".u32", 4}, {".s32", 4},
        {".f32", 4}, {".pred", 4}, {".b64", 8}, {".u64", 8}, {".s64", 8}};
    auto const found = kBytes.find(type);
    if (found == kBytes.end()) {
        throw Fault("PTX type " + type + " is not known here");
    }
    return found->second;
}

class Parser {
public:
    Parser(std::string_view text, size_t at) : in_(text, at) {}

    Kernel kernel() {
        kernel_.name = in_.name();
        in_.expect('(');
        while (!in_.accept(')')) {
            parameter();
            in_.accept(',');
        }
        while (!in_.accept('{')) {
            bound();
        }
        for (int depth = 1; depth > 0;) {
            depth += in_.accept('{') ? 1 : in_.accept('}') ? -1 : (statement(), 0);
        }
        return std::move(kernel_);
    }

private:
    // .param .align 8 .b8 NAME[152], or .param .u64 .ptr .align 1 NAME
    void parameter() {
        int align = 1;
        int bytes = 0;
        std::string word = in_.name();
        for (; word[0] == '.'; word = in_.name()) {
            if (word == ".align") {
                align = std::stoi(in_.name());
            } else if (word != ".param" && word != ".ptr" && word != ".global") {
                bytes = bytes_of(word);
            }
        }
        if (in_.accept('[')) {
            bytes = std::stoi(in_.name());
            in_.expect(']');
        } else {
            align = bytes;
        }
        int const offset = (kernel_.parameter_bytes() + align - 1) / align * align;
        kernel_.parameters.push_back({offset, bytes});
        kernel_.symbols[word] = {offset, 8};
    }

    // .maxntid 128, 1, 1 or .minnctapersm 4
    void bound() {
        std::string const word = in_.name();
        int const first = std::stoi(in_.name());
        while (in_.accept(',')) {
            in_.name();
        }
        if (word == ".maxntid") {
            kernel_.most_threads = first;
        }
    }

    void statement() {
        Statement s;
        in_.skip_space();
        s.line = in_.line();
        if (in_.accept('@')) {
            s.unless = in_.accept('!');
            s.guard = in_.name();
        }
        s.opcode = in_.name();
        if (s.opcode.empty()) {
            throw Fault("PTX line " + std::to_string(s.line) + " is not understood");
        }
        if (in_.accept(':')) {
            kernel_.labels[s.opcode] = static_cast<int>(kernel_.statements.size());
        } else if (s.opcode == ".reg") {
            registers();
        } else if (s.opcode == ".pragma") {
            in_.until(';');
        } else {
            while (!in_.accept(';')) {
                s.operands.push_back(operand());
                in_.accept(',');
            }
            kernel_.statements.push_back(std::move(s));
        }
    }

    // .reg .b32 %r<120>; or .reg .pred ignored;
    void registers() {
        int const slot = std::max(4, bytes_of(in_.name()));
        do {
            std::string const name = in_.name();
            if (in_.accept('<')) {
                int const count = std::stoi(in_.name());
                in_.expect('>');
                for (int i = 0; i < count; ++i) {
                    kernel_.registers[name + std::to_string(i)] = slot;
                }
            } else {
                kernel_.registers[name] = slot;
            }
        } while (in_.accept(','));
        in_.expect(';');
    }

    Operand operand() {
        Operand x;
        if (in_.accept('{')) {
            x.kind = Operand::Kind::kList;
            while (!in_.accept('}')) {
                x.parts.push_back(operand());
                in_.accept(',');
            }
        } else if (in_.accept('[')) {
            x = operand();
            x.kind = Operand::Kind::kAddress;
            if (in_.accept('+')) {
                x.number = number(signed_word());
            }
            in_.expect(']');
        } else {
            std::string const word = signed_word();
            if (of_number(word)) {
                x.kind = Operand::Kind::kNumber;
                x.number = number(word);
            } else {
                x.name = word;
            }
        }
        if (in_.accept('|')) {
            Operand pair;
            pair.kind = Operand::Kind::kList;
            pair.parts = {x, operand()};
            return pair;
        }
        return x;
    }

    static bool of_number(std::string const& word) {
        return std::isdigit(static_cast<unsigned char>(word[0])) || word[0] == '-';
    }

    std::string signed_word() {
        bool const negative = in_.accept('-');
        std::string word = in_.name();
        if (word.empty()) {
            throw Fault("PTX line " + std::to_string(in_.line()) + ": an operand is missing");
        }
        return negative ? "-" + word : word;
    }

    Cursor in_;
    Kernel kernel_;
};

}  // namespace

int Kernel::parameter_bytes() const {
    return parameters.empty() ? 0 : parameters.back().offset + parameters.back().bytes;
}

Module::Module(std::string text) : text_(std::move(text)) {
    size_t const target = text_.find(".target sm_");
    target_ = target == std::string::npos ? 0 : std::atoi(text_.c_str() + target + 11);
    // .extern .shared .align 16 .b8 NAME[];
    size_t const shared = text_.find(".extern .shared ");
    if (shared != std::string::npos) {
        size_t const end = text_.find('[', shared);
        size_t const begin = text_.rfind(' ', end) + 1;
        shared_ = text_.substr(begin, end - begin);
    }
    for (size_t at = 0; (at = text_.find(".entry ", at)) != std::string::npos;) {
        at += 7;
        entries_[text_.substr(at, text_.find('(', at) - at)] = at;
    }
}

Kernel Module::parse(std::string const& kernel) const {
    Kernel parsed = Parser(text_, entries_.at(kernel)).kernel();
    if (!shared_.empty()) {
        parsed.symbols[shared_] = {0, 4};
    }
    return parsed;
}

}  // namespace ckv::ptx
