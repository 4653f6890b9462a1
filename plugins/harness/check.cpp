// GPU against the plain C++ reference, on fresh random inputs and poisoned outputs.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <random>

#include "call.h"
#include "exponentials.h"

namespace ckv::harness {
namespace {

using reference::Inputs;
using reference::Shape;

constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16};
constexpr Tactic kTactics[] = {
    Tactic::kAuto, Tactic::kWhole, Tactic::kSplit, Tactic::kCoresWhole, Tactic::kCoresSplit};

// Edges first, then shapes of the published models.
constexpr Shape kShapes[] = {
    {1, 1, 0, 1, 4, 3, 5}, {1, 1, 1, 1, 1, 0, 1}, {2, 0, 9, 1, 8, 6, 4}, {2, 3, 5, 1, 4, 4, 3},
    {2, 1, 70, 2, 20, 17, 9}, {3, 17, 65, 2, 64, 62, 11}, {2, 40, 130, 1, 40, 38, 20},
    {1, 130, 70, 2, 64, 60, 20}, {2, 20, 40, 1, 300, 297, 8}, {2, 3, 9, 2, 32, 10, 7},
    {1, 1, 1000, 8, 256, 254, 1000}, {2, 50, 333, 1, 256, 253, 1000},
    {2, 128, 500, 8, 256, 254, 1000}, {1, 9, 777, 1, 512, 508, 300}, {2, 33, 129, 1, 128, 127, 99}};

// Products of a query and a key that `quick` takes.
constexpr int64_t kQuick = 1'200'000;

struct Tally {
    int passed = 0, failed = 0;

    void add(bool right, char const* what, Shape const& s, Dtype dtype, int variant) {
        (right ? passed : failed) += 1;
        if (!right) {
            std::printf("FAILED %s %s variant %d: B %d C %d N %d H %d d %d d_g %d M %d\n", what,
                name_of(dtype), variant, s.batch, s.queries, s.events, s.heads, s.width,
                s.pool_width, s.pool_rows);
        }
    }
};

bool counted(Call& call, int64_t expected) {
    must(cudaDeviceSynchronize(), "kernel");
    unsigned int bad = 0;
    std::memcpy(&bad, call.bad.host().data(), sizeof bad);
    call.bad.clear();
    return bad == expected;
}

// Each stride and address that a vector's width may rest on is the only odd one somewhere.
constexpr Layout kLayouts[] = {{0, 0}, {1, 0}, {0, 1}, {0, 0, 1}, {2, 6, 2}, {6, 0},
    {0, 0, 0, 1, 0, 0}, {0, 0, 0, 0, 1, 0}, {0, 0, 0, 0, 0, 1}};

// A number for the text of a failure.
int variant_of(Layout const& layout) {
    size_t const odd = layout.pools + 2 * layout.users + 4 * layout.others;
    return layout.pool_padding + 10 * layout.user_padding + 100 * static_cast<int>(odd) +
           1000 * layout.out_padding;
}

void check_gather(Inputs const& in, Dtype dtype, Layout const& layout, Tally& tally) {
    Call call(in, dtype, layout);
    int64_t const rows = int64_t{in.shape.batch} * in.shape.events;
    std::vector<float> want(static_cast<size_t>(rows * in.shape.width));
    int64_t const bad = reference::pool_gather_concat(in.side(0), rows, want.data());
    size_t const width = static_cast<size_t>(in.shape.width);
    size_t const stride = width + static_cast<size_t>(layout.out_padding);
    size_t const elements = static_cast<size_t>(rows) * stride;
    Buffer out(elements * dtype_bytes(dtype), layout.others * dtype_bytes(dtype));
    must(pool_gather_concat(call.gather(out.data()), nullptr), "pool_gather_concat");
    bool right = counted(call, bad);
    std::vector<double> const got = out.numbers(dtype, elements);
    for (size_t i = 0; i < elements; ++i) {
        size_t const column = i % stride;
        // What lies between the rows is somebody else's, and still poison.
        right = right && (column < width ? got[i] == want[i / stride * width + column]
                                         : std::isnan(got[i]));
    }
    tally.add(right, "gather", in.shape, dtype, variant_of(layout));
}

// Each number its own: few rounds leave them apart, and one more or less moves them.
void check_exponentials(int32_t count, int32_t rounds, Tally& tally) {
    std::vector<float> x(static_cast<size_t>(count));
    for (int32_t i = 0; i < count; ++i) {
        x[i] = static_cast<float>(i) / static_cast<float>(count);
    }
    Buffer const in = Buffer::of(x, 0);
    Buffer const out(in.bytes());
    must(exponentials(in.as<float>(), out.as<float>(), count, rounds, nullptr), "exponentials");
    std::vector<double> const got = out.numbers(Dtype::kFloat32, x.size());
    bool right = true;
    for (size_t i = 0; i < x.size(); ++i) {
        double want = x[i];
        for (int32_t round = 0; round < rounds; ++round) {
            want = std::exp2(-want);
        }
        right = right && std::abs(got[i] - want) <= reference::tolerance(Dtype::kFloat32);
    }
    tally.add(right, "exponentials", {1, 1, count, 1, 1, 0, 0}, Dtype::kFloat32, rounds);
}

// What both forms make of the inputs.
struct Expected {
    explicit Expected(Inputs const& in)
        : bad(reference::pooled_attention(in.attention(softmax), in.mask.data())) {
        reference::pooled_pointwise_attention(
            in.attention(pointwise), in.bias.data(), in.visible.data(), in.count.data());
        if (in.shape.queries == 0) {
            bad = 0;  // no kernel runs
        }
    }

    std::vector<double> softmax, pointwise;
    int64_t bad;  // events that either form counts
};

void check_attention(Inputs const& in, Expected const& expected, Dtype dtype, Tactic tactic,
    Layout const& layout, Tally& tally) {
    Call call(in, dtype, layout);
    int const variant = 1000 * static_cast<int>(tactic) + variant_of(layout);
    double const allowed = reference::tolerance(dtype);
    auto const close = [&](std::vector<double> const& want) {
        return reference::first_wrong(call.out.numbers(dtype, want.size()), want, allowed) < 0;
    };

    must(pooled_attention(call.softmax, tactic, call.workspace, nullptr), "pooled_attention");
    bool right = counted(call, expected.bad);
    right = close(expected.softmax) && right;
    tally.add(right, "softmax", in.shape, dtype, variant);

    call.out.poison();
    must(pooled_pointwise_attention(call.pointwise, tactic, call.workspace, nullptr),
        "pooled_pointwise_attention");
    right = counted(call, expected.bad);
    right = close(expected.pointwise) && right;
    tally.add(right, "pointwise", in.shape, dtype, variant);
}

int64_t products(Shape const& s) {
    return int64_t{s.batch} * s.queries * s.events * s.width;
}

// One kind of tensor that begins oddly, or user parts that lie oddly: another one for each type and
// tactic.
Layout odd_layout(int32_t padding, Dtype dtype, Tactic tactic) {
    size_t const kind = (static_cast<size_t>(dtype) + static_cast<size_t>(tactic)) % 4;
    return {padding, kind == 3 ? 2 : 0, 0, kind == 0, kind == 1, kind == 2};
}

void check_shape(Shape const& shape, uint32_t seed, Tally& tally) {
    for (Dtype dtype : kDtypes) {
        Inputs const in(shape, dtype, ++seed);
        for (Layout const& layout : kLayouts) {
            check_gather(in, dtype, layout, tally);
        }
        Expected const expected(in);
        for (Tactic tactic : kTactics) {
            int32_t const padding = static_cast<int>(tactic) % 2 ? 2 : 0;
            check_attention(in, expected, dtype, tactic, {padding, 0}, tally);
            check_attention(in, expected, dtype, tactic, odd_layout(padding, dtype, tactic), tally);
        }
    }
}

// Sizes around every tile's edge, heads of any width, either part of a row empty or all of it.
Shape random_shape(std::mt19937& random) {
    auto const up_to = [&](int32_t low, int32_t high) {
        return std::uniform_int_distribution<int32_t>(low, high)(random);
    };
    int32_t const heads = 1 << up_to(0, 3);
    int32_t const width = heads * up_to(1, up_to(0, 3) == 0 ? 300 : 70);
    int32_t const user = up_to(0, 1) == 0 ? up_to(0, width) : std::min(width, 2);
    return {up_to(1, 3), up_to(0, 140), up_to(0, 300), heads, width, width - user, up_to(1, 200)};
}

int told(Tally const& tally) {
    std::printf("%d passed, %d failed\n", tally.passed, tally.failed);
    return tally.failed;
}

}  // namespace

int check_all(uint32_t seed, bool quick) {
    Tally tally;
    // Either side of the loop's unrolling, and of a block's numbers.
    for (int32_t rounds : {0, 1, 3, 18}) {
        check_exponentials(1500, rounds, tally);
    }
    for (Shape const& shape : kShapes) {
        if (!quick || products(shape) <= kQuick) {
            check_shape(shape, seed, tally);
            seed += std::size(kDtypes);
        }
    }
    return told(tally);
}

int check_random(uint32_t seed, int count) {
    Tally tally;
    std::mt19937 random(seed);
    for (int i = 0; i < count; ++i) {
        check_shape(random_shape(random), random(), tally);
    }
    return told(tally);
}

}  // namespace ckv::harness
