// What all lanes of a warp do at once.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "ptx/instructions.h"

namespace ckv::ptx {
namespace {

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
        uint32_t const at = w.get<uint32_t>(i.rows[4], l) + static_cast<uint32_t>(i.offset);
        char const* from = w.block().shared.at(at, 16, Access::kRead, w.thread(l));
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

// mma.m16n8k8 of TF32: a register holds one element, of which the upper 19 bits count. Lane 4 g + t
// has of a, in a0 and a2 row g, in a1 and a3 row g + 8, column t (+ 4 in a2 and a3); of b, row t
// (+ 4 in b1) of column g; of c what it has of that of m16n8k16. Four products are summed at a time.
void multiply_tf32(Warp& w, Instruction const& i, uint32_t lanes) {
    float a[16][8];
    float b[8][8];
    each(lanes, [&](int l) {
        auto const element = [&](int operand) {
            uint32_t const bits = w.get<uint32_t>(i.rows[static_cast<size_t>(operand)], l);
            uint32_t const kept = bits & 0xFFFFE000U;
            float x;
            std::memcpy(&x, &kept, sizeof x);
            return x;
        };
        for (int r = 0; r < 4; ++r) {
            a[l / 4 + 8 * (r % 2)][l % 4 + 4 * (r / 2)] = element(4 + r);
        }
        for (int r = 0; r < 2; ++r) {
            b[l / 4][l % 4 + 4 * r] = element(8 + r);
        }
    });
    each(lanes, [&](int l) {
        for (int e = 0; e < 4; ++e) {
            float const* const x = a[l / 4 + 8 * (e / 2)];
            float const* const y = b[2 * (l % 4) + e % 2];
            float sum = w.get<float>(i.rows[static_cast<size_t>(10 + e)], l);
            for (int half = 0; half < 8; half += 4) {
                float addends[5];
                for (int k = 0; k < 4; ++k) {
                    addends[k] = x[half + k] * y[half + k];
                }
                addends[4] = sum;
                sum = truncated_sum(addends, 5);
            }
            w.put(i.rows[static_cast<size_t>(e)], l, sum);
        }
    });
}

}  // namespace

void add_warp_wide(Table& t) {
    t["shfl.sync.bfly.b32"] = {shuffle_xor, "4", true};
    t["vote.sync.all.pred"] = {vote_all, "4", true};
    std::string const matrices = "ldmatrix.sync.aligned.m8n8.x4.";
    t[matrices + "shared.b16"] = {load_matrices<false>, "4", true};
    t[matrices + "trans.shared.b16"] = {load_matrices<true>, "4", true};
    std::string const multiply = "mma.sync.aligned.m16n8k16.row.col.f32.";
    t["mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"] = {multiply_tf32, "4", true};
    t[multiply + "f16.f16.f32"] = {multiply_matrices<__half>, "4", true};
    t[multiply + "bf16.bf16.f32"] = {multiply_matrices<__nv_bfloat16>, "4", true};
}

}  // namespace ckv::ptx
