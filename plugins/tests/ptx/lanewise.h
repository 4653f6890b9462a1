// Operations of one lane: F takes values of type T.
#pragma once

#include "ptx/instructions.h"

namespace ckv::ptx {

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

template <typename T, typename F>
void compare(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        bool const yes = F{}(w.get<T>(i.rows[1], l), w.get<T>(i.rows[2], l));
        w.put<uint32_t>(i.rows[0], l, yes);
    });
}
template <typename T>
void select(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        bool const first = w.get<uint32_t>(i.rows[3], l) != 0;
        w.put(i.rows[0], l, w.get<T>(i.rows[first ? 1 : 2], l));
    });
}

struct Same {
    template <typename T>
    T operator()(T a) const { return a; }
};

}  // namespace ckv::ptx
