// What the files of instructions share.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <unordered_map>

#include "ptx/warp.h"

namespace ckv::ptx {

using Table = std::unordered_map<std::string, Operation>;

// Each adds the opcodes of its file.
void add_integers(Table& t);
void add_floats(Table& t);
void add_memory(Table& t);
void add_warp_wide(Table& t);

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

struct Min {
    template <typename T>
    T operator()(T a, T b) const { return b < a ? b : a; }
};
struct Max {
    template <typename T>
    T operator()(T a, T b) const { return a < b ? b : a; }
};

template <typename Half>
float widen(uint16_t bits) {
    Half x;
    std::memcpy(static_cast<void*>(&x), &bits, sizeof x);
    return static_cast<float>(x);
}

}  // namespace ckv::ptx
