// What each opcode does, for the lanes that take it. Those that our kernels don't use are missing.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <type_traits>
#include <unordered_map>

#include "ptx/warp.h"

namespace ckv::ptx {
namespace {

template <typename F>
void each(uint32_t lanes, F const& f) {
    if (lanes == kAllLanes) {
        for (int lane = 0; lane < kLanes; ++lane) {
            f(lane);
        }
        return;
    }
    for (int lane = 0; lane < kLanes; ++lane) {
        if (lanes >> lane & 1U) {
            f(lane);
        }
    }
}

// ---- arithmetic: F takes values of type T

template <typename T, typename F>
void unary(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) { w.put(i.rows[0], l, F{}(w.get<T>(i.rows[1], l))); });
}

template <typename T, typename F>
void binary(Warp& w, Instruction const& i, uint32_t lanes) {
    int const d = i.rows[0];
    int const a = i.rows[1];
    int const b = i.rows[2];
    each(lanes, [&w, d, a, b](int l) { w.put(d, l, F{}(w.get<T>(a, l), w.get<T>(b, l))); });
}

template <typename T, typename F>
void ternary(Warp& w, Instruction const& i, uint32_t lanes) {
    int const d = i.rows[0];
    int const a = i.rows[1];
    int const b = i.rows[2];
    int const c = i.rows[3];
    each(lanes, [&w, d, a, b, c](int l) {
        w.put(d, l, F{}(w.get<T>(a, l), w.get<T>(b, l), w.get<T>(c, l)));
    });
}

// Integers wrap: they are computed without a sign.
template <typename T>
struct Add {
    T operator()(T a, T b) const {
        using U = std::make_unsigned_t<T>;
        return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
    }
};
template <typename T>
struct Subtract {
    T operator()(T a, T b) const {
        using U = std::make_unsigned_t<T>;
        return static_cast<T>(static_cast<U>(a) - static_cast<U>(b));
    }
};
template <typename T>
struct Multiply {
    T operator()(T a, T b) const {
        using U = std::make_unsigned_t<T>;
        return static_cast<T>(static_cast<U>(a) * static_cast<U>(b));
    }
};
template <typename T>
struct MultiplyAdd {
    T operator()(T a, T b, T c) const { return Add<T>{}(Multiply<T>{}(a, b), c); }
};
// By zero a GPU gives no promise, and raises nothing.
template <typename T>
struct Divide {
    T operator()(T a, T b) const {
        if (b == 0) {
            return static_cast<T>(-1);
        }
        if constexpr (std::is_signed_v<T>) {
            return b == -1 ? Subtract<T>{}(0, a) : static_cast<T>(a / b);
        }
        return a / b;
    }
};
template <typename T>
struct Remainder {
    T operator()(T a, T b) const {
        return Subtract<T>{}(a, Multiply<T>{}(Divide<T>{}(a, b), b));
    }
};

struct Min {
    template <typename T>
    T operator()(T a, T b) const { return b < a ? b : a; }
};
struct Max {
    template <typename T>
    T operator()(T a, T b) const { return a < b ? b : a; }
};
// Of a number and a NaN, the number.
struct MaxFloat {
    float operator()(float a, float b) const { return std::fmax(a, b); }
};
struct And {
    template <typename T>
    T operator()(T a, T b) const { return a & b; }
};
struct Or {
    template <typename T>
    T operator()(T a, T b) const { return a | b; }
};
struct Xor {
    template <typename T>
    T operator()(T a, T b) const { return a ^ b; }
};
struct Not {
    template <typename T>
    T operator()(T a) const { return ~a; }
};
struct Negate {
    int32_t operator()(int32_t a) const { return Subtract<int32_t>{}(0, a); }
};
struct NotPredicate {
    uint32_t operator()(uint32_t a) const { return a == 0; }
};
struct Same {
    template <typename T>
    T operator()(T a) const { return a; }
};
struct Truth {
    uint32_t operator()(uint32_t a) const { return a != 0; }
};

struct AddFloat {
    float operator()(float a, float b) const { return a + b; }
};
struct SubtractFloat {
    float operator()(float a, float b) const { return a - b; }
};
struct MultiplyFloat {
    float operator()(float a, float b) const { return a * b; }
};
struct Fma {
    float operator()(float a, float b, float c) const { return std::fma(a, b, c); }
};
struct Reciprocal {
    float operator()(float a) const { return 1.0F / a; }
};
// PTX ISA, div.approx: 0 for divisors beyond 2^126.
struct DivideApproximately {
    float operator()(float a, float b) const {
        return std::fabs(b) > 0x1p126F && std::isfinite(b) ? std::copysign(0.0F, a * b) : a / b;
    }
};
// PTX ISA, ex2.approx.ftz: denormal results are zero.
struct Exp2 {
    float operator()(float a) const {
        float const y = std::exp2(a);
        return y < std::numeric_limits<float>::min() ? 0.0F : y;
    }
};

template <typename T>
void shift_left(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        uint32_t const by = w.get<uint32_t>(i.rows[2], l);
        T const x = w.get<T>(i.rows[1], l);
        w.put(i.rows[0], l, by >= 8 * sizeof(T) ? T{0} : static_cast<T>(x << by));
    });
}

template <typename T>
void shift_right(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        uint32_t const by = w.get<uint32_t>(i.rows[2], l);
        T const x = w.get<T>(i.rows[1], l);
        T const all = static_cast<T>(std::is_signed_v<T> && x < 0 ? -1 : 0);
        w.put(i.rows[0], l, by >= 8 * sizeof(T) ? all : static_cast<T>(x >> by));
    });
}

template <typename Narrow, typename Wide>
void multiply_wide(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        w.put(i.rows[0], l,
            static_cast<Wide>(w.get<Narrow>(i.rows[1], l)) *
                static_cast<Wide>(w.get<Narrow>(i.rows[2], l)));
    });
}

// bfi d, a, b, position, length: the low bits of a into b.
template <typename T>
void insert_bits(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        uint32_t const at = w.get<uint32_t>(i.rows[3], l) & 0xFF;
        uint32_t const count = w.get<uint32_t>(i.rows[4], l) & 0xFF;
        T const ones = count >= 8 * sizeof(T) ? ~T{0} : static_cast<T>((T{1} << count) - 1);
        T const mask = at >= 8 * sizeof(T) ? T{0} : static_cast<T>(ones << at);
        T const moved = at >= 8 * sizeof(T) ? T{0} : static_cast<T>(w.get<T>(i.rows[1], l) << at);
        w.put(i.rows[0], l, static_cast<T>((w.get<T>(i.rows[2], l) & ~mask) | (moved & mask)));
    });
}

template <typename T, typename F>
void compare(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        bool const yes = F{}(w.get<T>(i.rows[1], l), w.get<T>(i.rows[2], l));
        w.put<uint32_t>(i.rows[0], l, yes);
    });
}
struct LessOrUnordered {
    bool operator()(float a, float b) const { return !(a >= b); }
};

template <typename T>
void select(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        bool const first = w.get<uint32_t>(i.rows[3], l) != 0;
        w.put(i.rows[0], l, w.get<T>(i.rows[first ? 1 : 2], l));
    });
}

// The low bits of a register that is wider than `From`.
template <typename From, typename To>
void convert(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        uint64_t const bits = i.wide[1] ? w.get<uint64_t>(i.rows[1], l)
                                        : uint64_t{w.get<uint32_t>(i.rows[1], l)};
        w.put(i.rows[0], l, static_cast<To>(static_cast<From>(bits)));
    });
}

// ---- 16-bit floating point

template <typename Half>
float widen(uint16_t bits) {
    Half x;
    std::memcpy(static_cast<void*>(&x), &bits, sizeof x);
    return static_cast<float>(x);
}

template <typename Half>
struct Narrow {
    uint16_t operator()(float x) const {
        Half const half(x);
        uint16_t bits;
        std::memcpy(&bits, &half, sizeof bits);
        return bits;
    }
};
template <typename Half>
struct Widen {
    float operator()(uint16_t bits) const { return widen<Half>(bits); }
};

// ---- halves put together and taken apart

template <typename Half, typename Whole>
void pack(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        Whole const low = w.get<Half>(i.rows[1], l);
        Whole const high = w.get<Half>(i.rows[2], l);
        w.put(i.rows[0], l, static_cast<Whole>(low | high << 8 * sizeof(Half)));
    });
}

template <typename Half, typename Whole>
void unpack(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        Whole const x = w.get<Whole>(i.rows[2], l);
        w.put(i.rows[0], l, static_cast<Half>(x));
        w.put(i.rows[1], l, static_cast<Half>(x >> 8 * sizeof(Half)));
    });
}

// ---- memory

enum class Space { kParameter, kShared, kGlobal };

template <Space kSpace>
char const* place(Warp& w, Instruction const& i, int row, int lane, int bytes, Access access) {
    BlockState& block = w.block();
    if constexpr (kSpace == Space::kShared) {
        uint32_t const at = w.get<uint32_t>(row, lane) + static_cast<uint32_t>(i.offset);
        return block.shared.at(at, bytes, access, w.thread(lane));
    } else {
        uint64_t const at = w.get<uint64_t>(row, lane) + static_cast<uint64_t>(i.offset);
        if constexpr (kSpace == Space::kGlobal) {
            uint32_t const thread = block.first_thread + static_cast<uint32_t>(w.thread(lane));
            return block.global.at(at, bytes, access, thread);
        }
        if (at + static_cast<uint64_t>(bytes) > block.parameter_bytes || at % bytes != 0) {
            throw Fault("access beyond the kernel's parameters, or misaligned");
        }
        return block.parameters + at;
    }
}

template <Space kSpace, typename T, int kCount>
void load(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        char const* from =
            place<kSpace>(w, i, i.rows[kCount], l, kCount * sizeof(T), Access::kRead);
        for (int e = 0; e < kCount; ++e) {
            T x;
            std::memcpy(&x, from + e * sizeof(T), sizeof x);
            if constexpr (std::is_integral_v<T>) {  // a wider register: the sign goes on
                if (i.wide[e]) {
                    w.put(i.rows[e], l, static_cast<int64_t>(x));
                } else {
                    w.put(i.rows[e], l, static_cast<int32_t>(x));
                }
            } else {
                w.put(i.rows[e], l, x);
            }
        }
    });
}

template <Space kSpace, typename T, int kCount>
void store(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        char* to = const_cast<char*>(
            place<kSpace>(w, i, i.rows[0], l, kCount * sizeof(T), Access::kWrite));
        for (int e = 0; e < kCount; ++e) {
            T const x = w.get<T>(i.rows[1 + e], l);
            std::memcpy(to + e * sizeof(T), &x, sizeof x);
        }
    });
}

template <Space kSpace, typename T, typename F>
void atomic(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        char* at = const_cast<char*>(
            place<kSpace>(w, i, i.rows[1], l, sizeof(T), Access::kAtomic));
        T before;
        std::memcpy(&before, at, sizeof before);
        T const after = F{}(before, w.get<T>(i.rows[2], l));
        std::memcpy(at, &after, sizeof after);
        w.put(i.rows[0], l, before);
    });
}

// cp.async [to], [from], bytes, unless: the shared bytes change when they are waited for.
void copy_async(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        int const bytes = w.get<int32_t>(i.rows[2], l);
        bool const zeros = w.get<uint32_t>(i.rows[3], l) != 0;
        Copy const copy{w.get<uint32_t>(i.rows[0], l),
            zeros ? 0 : w.get<uint64_t>(i.rows[1], l), bytes};
        BlockState& block = w.block();
        if (!zeros) {
            uint32_t const thread = block.first_thread + static_cast<uint32_t>(w.thread(l));
            block.global.at(copy.from, bytes, Access::kRead, thread);
        }
        block.shared.begin_copy(copy.to, bytes, w.thread(l));
        w.copies(l).open.push_back(copy);
    });
}

void commit_copies(Warp& w, Instruction const& /*i*/, uint32_t lanes) {
    each(lanes, [&](int l) {
        Warp::Pending& copies = w.copies(l);
        copies.committed.push_back(std::move(copies.open));
        copies.open.clear();
    });
}

// cp.async.wait_group n: all groups but the latest n.
void wait_copies(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        auto& groups = w.copies(l).committed;
        size_t const may_stay = w.get<uint32_t>(i.rows[0], l);
        while (groups.size() > may_stay) {
            for (Copy const& copy : groups.front()) {
                char* const to = w.block().shared.end_copy(copy.to, copy.bytes, w.thread(l));
                if (copy.from == 0) {
                    std::memset(to, 0, static_cast<size_t>(copy.bytes));
                } else {
                    std::memcpy(to, reinterpret_cast<void const*>(copy.from),
                        static_cast<size_t>(copy.bytes));
                }
            }
            groups.erase(groups.begin());
        }
    });
}

// ---- all lanes of a warp at once

// shfl.sync.bfly d|p, a, distance, 31, all
void shuffle_xor(Warp& w, Instruction const& i, uint32_t lanes) {
    std::array<uint32_t, kLanes> from{};
    each(lanes, [&](int l) { from[static_cast<size_t>(l)] = w.get<uint32_t>(i.rows[2], l); });
    each(lanes, [&](int l) {
        uint32_t const distance = w.get<uint32_t>(i.rows[3], l);
        if (w.get<uint32_t>(i.rows[4], l) != 31 || w.get<uint32_t>(i.rows[5], l) != kAllLanes ||
            distance > 31) {
            throw Fault("a shuffle of less than a warp");
        }
        w.put(i.rows[0], l, from[static_cast<size_t>(l) ^ distance]);
        w.put<uint32_t>(i.rows[1], l, 1);
    });
}

void vote_all(Warp& w, Instruction const& i, uint32_t lanes) {
    bool every = true;
    each(lanes, [&](int l) { every = every && w.get<uint32_t>(i.rows[1], l) != 0; });
    each(lanes, [&](int l) { w.put<uint32_t>(i.rows[0], l, every); });
}

// ldmatrix {d0..d3}, [row]: lane 8 m + r points to row r of matrix m.
template <bool kTransposed>
void load_matrices(Warp& w, Instruction const& i, uint32_t lanes) {
    uint16_t element[4][8][8];
    each(lanes, [&](int l) {
        char const* from = place<Space::kShared>(w, i, i.rows[4], l, 16, Access::kRead);
        std::memcpy(element[l / 8][l % 8], from, 16);
    });
    each(lanes, [&](int l) {
        int const row = l / 4;
        int const column = 2 * (l % 4);
        for (int m = 0; m < 4; ++m) {
            uint32_t const low = kTransposed ? element[m][column][row] : element[m][row][column];
            uint32_t const high =
                kTransposed ? element[m][column + 1][row] : element[m][row][column + 1];
            w.put(i.rows[static_cast<size_t>(m)], l, low | high << 16);
        }
    });
}

// A sum as tensor cores make it: addends cut off at the place of the largest one's last bit, none
// rounded. Measured for several generations by Fasi, Higham, Mikaitis and Pranesh (2021),
// "Numerical behavior of NVIDIA tensor cores"; this is the oldest, which keeps no bit more.
float truncated_sum(float const* addends, int count) {
    float largest = 0.0F;
    bool finite = true;
    for (int k = 0; k < count; ++k) {
        largest = std::max(largest, std::fabs(addends[k]));
        finite = finite && std::isfinite(addends[k]);
    }
    if (!finite || largest == 0.0F) {
        float sum = 0.0F;
        for (int k = 0; k < count; ++k) {
            sum += addends[k];
        }
        return sum;
    }
    int const last = std::max(std::ilogb(largest) - 23, -149);
    double const up = std::ldexp(1.0, -last);
    int64_t sum = 0;
    for (int k = 0; k < count; ++k) {
        sum += static_cast<int64_t>(addends[k] * up);
    }
    double const exact = std::ldexp(static_cast<double>(sum), last);
    float const rounded = static_cast<float>(exact);
    return std::fabs(rounded) > std::fabs(exact) ? std::nextafter(rounded, 0.0F) : rounded;
}

// mma.m16n8k16 {d0..d3}, {a0..a3}, {b0, b1}, {c0..c3}. PTX ISA, matrix fragments: lane 4 g + t has
// of a, in a0 and a2 row g, in a1 and a3 row g + 8, columns 2 t (+ 8 in a2 and a3) and the next;
// of b, rows 2 t (+ 8 in b1) and the next of column g;
// of c, in c0 and c1 row g, in c2 and c3 row g + 8, columns 2 t and the next.
template <typename Half>
void multiply_matrices(Warp& w, Instruction const& i, uint32_t lanes) {
    float a[16][16];
    float b[8][16];
    each(lanes, [&](int l) {
        int const g = l / 4;
        int const t = l % 4;
        for (int r = 0; r < 4; ++r) {
            uint32_t const pair = w.get<uint32_t>(i.rows[static_cast<size_t>(4 + r)], l);
            float* const at = &a[g + 8 * (r % 2)][2 * t + 8 * (r / 2)];
            at[0] = widen<Half>(static_cast<uint16_t>(pair));
            at[1] = widen<Half>(static_cast<uint16_t>(pair >> 16));
        }
        for (int r = 0; r < 2; ++r) {
            uint32_t const pair = w.get<uint32_t>(i.rows[static_cast<size_t>(8 + r)], l);
            b[g][2 * t + 8 * r] = widen<Half>(static_cast<uint16_t>(pair));
            b[g][2 * t + 8 * r + 1] = widen<Half>(static_cast<uint16_t>(pair >> 16));
        }
    });
    each(lanes, [&](int l) {
        for (int e = 0; e < 4; ++e) {
            float const* const x = a[l / 4 + 8 * (e / 2)];
            float const* const y = b[2 * (l % 4) + e % 2];
            float sum = w.get<float>(i.rows[static_cast<size_t>(10 + e)], l);
            for (int half = 0; half < 16; half += 8) {
                float addends[9];
                for (int k = 0; k < 8; ++k) {
                    addends[k] = x[half + k] * y[half + k];
                }
                addends[8] = sum;
                sum = truncated_sum(addends, 9);
            }
            w.put(i.rows[static_cast<size_t>(e)], l, sum);
        }
    });
}

// ---- the table

using Table = std::unordered_map<std::string, Operation>;

template <typename T>
void add_integer_type(Table& t, std::string const& type) {
    char const* const all = sizeof(T) == 8 ? "8" : "4";
    t["add." + type] = {binary<T, Add<T>>, all};
    t["sub." + type] = {binary<T, Subtract<T>>, all};
    t["mul.lo." + type] = {binary<T, Multiply<T>>, all};
    t["mad.lo." + type] = {ternary<T, MultiplyAdd<T>>, all};
    t["div." + type] = {binary<T, Divide<T>>, all};
    t["rem." + type] = {binary<T, Remainder<T>>, all};
    t["min." + type] = {binary<T, Min>, all};
    t["max." + type] = {binary<T, Max>, all};
    t["shr." + type] = {shift_right<T>, sizeof(T) == 8 ? "884" : "4"};
    t["selp." + type] = {select<T>, sizeof(T) == 8 ? "8884" : "4"};
    t["mov." + type] = {unary<T, Same>, all};
}

template <typename T>
void add_bits_type(Table& t, std::string const& type) {
    char const* const all = sizeof(T) == 8 ? "8" : "4";
    t["and." + type] = {binary<T, And>, all};
    t["or." + type] = {binary<T, Or>, all};
    t["xor." + type] = {binary<T, Xor>, all};
    t["not." + type] = {unary<T, Not>, all};
    t["mov." + type] = {unary<T, Same>, all};
    t["shl." + type] = {shift_left<T>, sizeof(T) == 8 ? "884" : "4"};
    t["selp." + type] = {select<T>, sizeof(T) == 8 ? "8884" : "4"};
    t["bfi." + type] = {insert_bits<T>, sizeof(T) == 8 ? "88844" : "4"};
}

template <typename T>
void add_equality(Table& t, std::string const& type) {
    char const* const widths = sizeof(T) == 8 ? "48" : "4";
    t["setp.eq." + type] = {compare<T, std::equal_to<>>, widths};
    t["setp.ne." + type] = {compare<T, std::not_equal_to<>>, widths};
}

template <typename T>
void add_comparisons(Table& t, std::string const& type) {
    char const* const widths = sizeof(T) == 8 ? "48" : "4";
    add_equality<T>(t, type);
    t["setp.lt." + type] = {compare<T, std::less<>>, widths};
    t["setp.le." + type] = {compare<T, std::less_equal<>>, widths};
    t["setp.gt." + type] = {compare<T, std::greater<>>, widths};
    t["setp.ge." + type] = {compare<T, std::greater_equal<>>, widths};
}

template <Space kSpace, typename T, int kCount>
void add_access(Table& t, std::string const& space, std::string const& type) {
    std::string const vector = kCount == 1 ? "" : ".v" + std::to_string(kCount);
    t["ld." + space + vector + "." + type] = {load<kSpace, T, kCount>, "*"};
    if constexpr (kSpace != Space::kParameter) {
        t["st." + space + vector + "." + type] = {store<kSpace, T, kCount>, "*"};
    }
}

template <Space kSpace>
void add_space(Table& t, std::string const& space) {
    add_access<kSpace, uint8_t, 1>(t, space, "u8");
    add_access<kSpace, uint16_t, 1>(t, space, "u16");
    add_access<kSpace, uint32_t, 1>(t, space, "u32");
    add_access<kSpace, int32_t, 1>(t, space, "s32");
    add_access<kSpace, uint64_t, 1>(t, space, "u64");
    add_access<kSpace, float, 1>(t, space, "f32");
    add_access<kSpace, uint32_t, 2>(t, space, "u32");
    add_access<kSpace, uint32_t, 4>(t, space, "u32");
    add_access<kSpace, float, 2>(t, space, "f32");
    add_access<kSpace, float, 4>(t, space, "f32");
}

void add_integers(Table& t) {
    add_integer_type<int32_t>(t, "s32");
    add_integer_type<uint32_t>(t, "u32");
    add_integer_type<int64_t>(t, "s64");
    add_integer_type<uint64_t>(t, "u64");
    add_bits_type<uint16_t>(t, "b16");
    add_bits_type<uint32_t>(t, "b32");
    add_bits_type<uint64_t>(t, "b64");
    t["selp.u16"] = {select<uint16_t>, "4"};
    t["add.s16"] = {binary<int16_t, Add<int16_t>>, "4"};
    t["neg.s32"] = {unary<int32_t, Negate>, "4"};
    t["mov.u16"] = {unary<uint16_t, Same>, "4"};
    t["cvt.u16.u32"] = {convert<uint32_t, uint16_t>, "4"};
    t["pack.b32"] = {pack<uint16_t, uint32_t>, "4"};
    t["pack.b64"] = {pack<uint32_t, uint64_t>, "84"};
    t["unpack.b32"] = {unpack<uint16_t, uint32_t>, "4"};
    t["unpack.b64"] = {unpack<uint32_t, uint64_t>, "448"};
    t["mov.pred"] = {unary<uint32_t, Truth>, "4"};
    t["not.pred"] = {unary<uint32_t, NotPredicate>, "4"};
    t["and.pred"] = {binary<uint32_t, And>, "4"};
    t["or.pred"] = {binary<uint32_t, Or>, "4"};
    t["xor.pred"] = {binary<uint32_t, Xor>, "4"};
    t["mul.wide.u16"] = {multiply_wide<uint16_t, uint32_t>, "4"};
    t["mul.wide.s32"] = {multiply_wide<int32_t, int64_t>, "84"};
    t["mul.wide.u32"] = {multiply_wide<uint32_t, uint64_t>, "84"};
    t["cvt.s64.s32"] = {convert<int32_t, int64_t>, "8*"};
    t["cvt.u64.u32"] = {convert<uint32_t, uint64_t>, "8*"};
    t["cvt.u32.u64"] = {convert<uint64_t, uint32_t>, "4*"};
    t["cvta.to.global.u64"] = {unary<uint64_t, Same>, "8"};
    add_equality<uint16_t>(t, "b16");
    add_equality<uint32_t>(t, "b32");
    add_equality<uint64_t>(t, "b64");
    add_comparisons<int16_t>(t, "s16");
    add_comparisons<int32_t>(t, "s32");
    add_comparisons<uint32_t>(t, "u32");
    add_comparisons<int64_t>(t, "s64");
    add_comparisons<uint64_t>(t, "u64");
}

void add_floats(Table& t) {
    t["add.f32"] = {binary<float, AddFloat>, "4"};
    t["sub.f32"] = {binary<float, SubtractFloat>, "4"};
    t["mul.f32"] = {binary<float, MultiplyFloat>, "4"};
    t["fma.rn.f32"] = {ternary<float, Fma>, "4"};
    t["max.f32"] = {binary<float, MaxFloat>, "4"};
    t["selp.f32"] = {select<float>, "4"};
    t["mov.f32"] = {unary<uint32_t, Same>, "4"};
    t["rcp.rn.f32"] = {unary<float, Reciprocal>, "4"};
    t["div.approx.f32"] = {binary<float, DivideApproximately>, "4"};
    t["ex2.approx.ftz.f32"] = {unary<float, Exp2>, "4"};
    t["setp.ltu.f32"] = {compare<float, LessOrUnordered>, "4"};
    t["cvt.rn.f16.f32"] = {unary<float, Narrow<__half>>, "4"};
    t["cvt.rn.bf16.f32"] = {unary<float, Narrow<__nv_bfloat16>>, "4"};
    t["cvt.f32.f16"] = {unary<uint16_t, Widen<__half>>, "4"};
    t["cvt.f32.bf16"] = {unary<uint16_t, Widen<__nv_bfloat16>>, "4"};
}

void add_memory(Table& t) {
    add_space<Space::kParameter>(t, "param");
    add_space<Space::kShared>(t, "shared");
    add_space<Space::kGlobal>(t, "global");
    t["atom.global.add.u32"] = {atomic<Space::kGlobal, uint32_t, Add<uint32_t>>, "484"};
    t["atom.shared.min.s32"] = {atomic<Space::kShared, int32_t, Min>, "4"};
    t["atom.shared.max.s32"] = {atomic<Space::kShared, int32_t, Max>, "4"};
    t["cp.async.ca.shared.global"] = {copy_async, "484"};
    t["cp.async.commit_group"] = {commit_copies, "4"};
    t["cp.async.wait_group"] = {wait_copies, "4"};
}

void add_warp_wide(Table& t) {
    t["shfl.sync.bfly.b32"] = {shuffle_xor, "4", true};
    t["vote.sync.all.pred"] = {vote_all, "4", true};
    std::string const matrices = "ldmatrix.sync.aligned.m8n8.x4.";
    t[matrices + "shared.b16"] = {load_matrices<false>, "4", true};
    t[matrices + "trans.shared.b16"] = {load_matrices<true>, "4", true};
    std::string const multiply = "mma.sync.aligned.m16n8k16.row.col.f32.";
    t[multiply + "f16.f16.f32"] = {multiply_matrices<__half>, "4", true};
    t[multiply + "bf16.bf16.f32"] = {multiply_matrices<__nv_bfloat16>, "4", true};
}

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
