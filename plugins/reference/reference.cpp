#include "reference.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace ckv::reference {
namespace {

constexpr double kMasked = -1e9;

bool good_event(Attention const& a, int64_t row) {
    return good_index(a.key, row) && good_index(a.value, row);
}

int64_t bad_events(Attention const& a) {
    int64_t bad = 0;
    for (int64_t row = 0; row < int64_t{a.batch} * a.events; ++row) {
        bad += good_event(a, row) ? 0 : 1;
    }
    return bad;
}

// One query of one head: where it starts in `query` and `out`, and its first event's row.
struct Place {
    int64_t vector, query_row, first_event;
    int32_t first_column, head_width;
};

double dot(Attention const& a, Place const& at, int32_t event) {
    double sum = 0;
    for (int32_t i = 0; i < at.head_width; ++i) {
        double const q = a.query[at.vector + i];
        sum += q * element(a.key, at.first_event + event, at.first_column + i);
    }
    return sum * a.scale;
}

void weighted_sum(Attention const& a, Place const& at, std::vector<double> const& weights) {
    for (int32_t i = 0; i < at.head_width; ++i) {
        double sum = 0;
        for (int32_t e = 0; e < a.events; ++e) {
            sum += weights[e] * element(a.value, at.first_event + e, at.first_column + i);
        }
        a.out[at.vector + i] = sum;
    }
}

template <typename Visit>
void each_query(Attention const& a, Visit visit) {
    int32_t const head_width = a.width / a.heads;
    for (int64_t b = 0; b < a.batch; ++b) {
        for (int64_t c = 0; c < a.queries; ++c) {
            for (int32_t h = 0; h < a.heads; ++h) {
                int64_t const query_row = b * a.queries + c;
                int32_t const column = h * head_width;
                visit(Place{query_row * a.width + column, query_row, b * a.events, column,
                    head_width});
            }
        }
    }
}

void softmax(std::vector<double>& logits) {
    if (logits.empty()) {
        return;
    }
    double const peak = *std::max_element(logits.begin(), logits.end());
    double total = 0;
    for (double& x : logits) {
        x = std::exp(x - peak);
        total += x;
    }
    for (double& x : logits) {
        x /= total;
    }
}

double silu(double x) { return x / (1 + std::exp(-x)); }

}  // namespace

bool good_index(Side const& side, int64_t row) {
    return side.index[row] >= 0 && side.index[row] < side.pool_rows;
}

float element(Side const& side, int64_t row, int32_t column) {
    if (column >= side.pool_width) {
        return side.user[row * side.user_width + column - side.pool_width];
    }
    return good_index(side, row) ? side.pool[int64_t{side.index[row]} * side.pool_width + column]
                                 : 0.0F;
}

int64_t pool_gather_concat(Side const& side, int64_t rows, float* out) {
    int64_t bad = 0;
    int32_t const width = side.pool_width + side.user_width;
    for (int64_t row = 0; row < rows; ++row) {
        bad += good_index(side, row) ? 0 : 1;
        for (int32_t column = 0; column < width; ++column) {
            out[row * width + column] = element(side, row, column);
        }
    }
    return bad;
}

int64_t pooled_attention(Attention const& a, int32_t const* mask) {
    std::vector<double> weights(a.events);
    each_query(a, [&](Place const& at) {
        for (int32_t e = 0; e < a.events; ++e) {
            int64_t const row = at.first_event + e;
            weights[e] = mask[row] != 0 && good_event(a, row) ? dot(a, at, e) : kMasked;
        }
        softmax(weights);
        weighted_sum(a, at, weights);
    });
    return bad_events(a);
}

int64_t pooled_pointwise_attention(
    Attention const& a, float const* bias, int32_t const* visible, float const* count) {
    std::vector<double> weights(a.events);
    each_query(a, [&](Place const& at) {
        for (int32_t e = 0; e < a.events; ++e) {
            int64_t const link = at.query_row * a.events + e;
            bool const seen = visible[link] != 0 && good_event(a, at.first_event + e);
            weights[e] = seen ? silu(dot(a, at, e) + bias[link]) / count[at.query_row] : 0.0;
        }
        weighted_sum(a, at, weights);
    });
    return bad_events(a);
}

}  // namespace ckv::reference
