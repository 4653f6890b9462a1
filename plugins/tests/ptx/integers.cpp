// Integers, bits and predicates.
#include <functional>
#include <type_traits>

#include "ptx/lanewise.h"

namespace ckv::ptx {
namespace {

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
    template <typename T>
    T operator()(T a) const { return Subtract<T>{}(T{0}, a); }
};
struct NotPredicate {
    uint32_t operator()(uint32_t a) const { return a == 0; }
};
struct Truth {
    uint32_t operator()(uint32_t a) const { return a != 0; }
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

// The low bits of a register that is wider than `From`.
template <typename From, typename To>
void convert(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        uint64_t const bits = i.wide[1] ? w.get<uint64_t>(i.rows[1], l)
                                        : uint64_t{w.get<uint32_t>(i.rows[1], l)};
        w.put(i.rows[0], l, static_cast<To>(static_cast<From>(bits)));
    });
}

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

// ---- what the types have in common

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

}  // namespace

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
    t["neg.s64"] = {unary<int64_t, Negate>, "8"};
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

}  // namespace ckv::ptx
