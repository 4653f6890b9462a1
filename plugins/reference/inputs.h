// Random inputs with everything in them that the operators must survive, and how close is right.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "ckv/types.h"
#include "reference.h"

namespace ckv::reference {

struct Shape {
    int32_t batch, queries, events, heads, width, pool_width, pool_rows;
};

// Indices come from [-1, M], so both kinds of bad ones occur. Histories are left-padded by half,
// those of the first user masked whole. Floats hold values of the dtype.
struct Inputs {
    Inputs(Shape const& shape, Dtype dtype, uint32_t seed);

    Side side(int which) const;
    // Writes to `out`, which is poisoned here.
    Attention attention(std::vector<double>& out) const;

    Shape shape;
    double scale;
    std::vector<float> query, bias, count, pool[2], user[2];
    std::vector<int32_t> index[2], mask, visible;

private:
    std::vector<float> floats(Dtype dtype, int64_t count);
    std::vector<int32_t> integers(int64_t count, int32_t low, int32_t high);
    std::mt19937 random_;
};

// Largest error allowed beside a sum of unit size: rounding of the output and, where weights meet
// values in 16 bits, of the weights. Sums are fp32 throughout.
double tolerance(Dtype dtype);

// The first element of `got` that is too far from `want` (NaN always is), or -1. Rounded weights
// err in proportion to what is summed, for which the root mean square of `want` stands.
int64_t first_wrong(
    std::vector<double> const& got, std::vector<double> const& want, double tolerance);

}  // namespace ckv::reference
