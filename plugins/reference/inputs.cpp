#include "inputs.h"

#include <algorithm>

#include "elements.h"

namespace ckv::reference {

Inputs::Inputs(Shape const& s, Dtype dtype, uint32_t seed)
    : shape(s), scale(1 / std::sqrt(static_cast<double>(s.width) / s.heads)), random_(seed) {
    int64_t const events = int64_t{s.batch} * s.events;
    int64_t const queries = int64_t{s.batch} * s.queries;
    query = floats(dtype, queries * s.width);
    bias = floats(dtype, queries * s.events);
    visible = integers(queries * s.events, 0, 1);
    mask = integers(events, 0, 1);
    for (int which = 0; which < 2; ++which) {
        pool[which] = floats(dtype, int64_t{s.pool_rows} * s.pool_width);
        user[which] = floats(dtype, events * (s.width - s.pool_width));
        index[which] = integers(events, -1, s.pool_rows);
    }
    for (int64_t e = 0; e < events; ++e) {
        if (e < s.events || e % s.events < s.events / 2) {
            mask[static_cast<size_t>(e)] = 0;
        }
    }
    for (int64_t i = 0; i < queries; ++i) {
        count.push_back(static_cast<float>(1 + i % 7));
    }
}

std::vector<float> Inputs::floats(Dtype dtype, int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> x(static_cast<size_t>(count));
    std::generate(x.begin(), x.end(), [&] { return normal(random_); });
    round(dtype, x.data(), count);
    return x;
}

std::vector<int32_t> Inputs::integers(int64_t count, int32_t low, int32_t high) {
    std::uniform_int_distribution<int32_t> any(low, high);
    std::vector<int32_t> x(static_cast<size_t>(count));
    std::generate(x.begin(), x.end(), [&] { return any(random_); });
    return x;
}

Side Inputs::side(int which) const {
    return {pool[which].data(), index[which].data(), user[which].data(), shape.pool_rows,
        shape.pool_width, shape.width - shape.pool_width};
}

Attention Inputs::attention(std::vector<double>& out) const {
    out.assign(query.size(), NAN);
    return {shape.batch, shape.queries, shape.events, shape.heads, shape.width, scale,
        query.data(), side(0), side(1), out.data()};
}

double tolerance(Dtype dtype) {
    switch (dtype) {
        case Dtype::kFloat32: return 2e-5;
        case Dtype::kFloat16: return 4e-3;
        case Dtype::kBFloat16: return 3e-2;
    }
    return 0;
}

int64_t first_wrong(
    std::vector<double> const& got, std::vector<double> const& want, double tolerance) {
    double squares = 0;
    for (double x : want) {
        squares += x * x;
    }
    double const size = std::sqrt(squares / std::max<size_t>(want.size(), 1));
    for (size_t i = 0; i < want.size(); ++i) {
        if (!(std::abs(got[i] - want[i]) <= tolerance * (size + std::abs(want[i])))) {
            return static_cast<int64_t>(i);
        }
    }
    return -1;
}

}  // namespace ckv::reference
