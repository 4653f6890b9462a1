// GPU against the plain C++ reference, on fresh random inputs and poisoned outputs.
#include <algorithm>
#include <cstdio>
#include <iterator>
#include <random>

#include "call.h"

namespace ckv::harness {
namespace {

using reference::Inputs;
using reference::Shape;

constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16};
constexpr Tactic kTactics[] = {
    Tactic::kAuto, Tactic::kWhole, Tactic::kSplit, Tactic::kCoresWhole, Tactic::kCoresSplit};

// Edges first, then shapes of the published models.
constexpr Shape kShapes[] = {
    {1, 1, 0, 1, 4, 3, 5}, {1, 1, 1, 1, 1, 0, 1}, {2, 3, 5, 1, 4, 4, 3}, {2, 1, 70, 2, 20, 17, 9},
    {3, 17, 65, 2, 64, 62, 11}, {2, 40, 130, 1, 40, 38, 20}, {1, 130, 70, 2, 64, 60, 20},
    {2, 20, 40, 1, 300, 297, 8}, {1, 1, 1000, 8, 256, 254, 1000}, {2, 50, 333, 1, 256, 253, 1000},
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

constexpr Layout kLayouts[] = {{0, 0}, {1, 0}, {2, 0}, {6, 0}, {0, 1}, {2, 1}};

// A number for the text of a failure.
int variant_of(Layout const& layout) {
    return layout.padding + 10 * static_cast<int>(layout.shift);
}

void check_gather(Inputs const& in, Dtype dtype, Layout const& layout, Tally& tally) {
    Call call(in, dtype, layout);
    int64_t const rows = int64_t{in.shape.batch} * in.shape.events;
    std::vector<float> want(static_cast<size_t>(rows * in.shape.width));
    int64_t const bad = reference::pool_gather_concat(in.side(0), rows, want.data());
    Buffer out(want.size() * dtype_bytes(dtype));
    must(pool_gather_concat(call.gather(out.data()), nullptr), "pool_gather_concat");
    bool right = counted(call, bad);
    std::vector<double> const got = out.numbers(dtype, want.size());
    for (size_t i = 0; i < want.size(); ++i) {
        right = right && got[i] == want[i];
    }
    tally.add(right, "gather", in.shape, dtype, variant_of(layout));
}

// What the attention forms must give and count. Computed once for all tactics: on a CPU this takes
// longer than all that a GPU is given to do.
struct Truth {
    explicit Truth(Inputs const& in)
        : softmax_bad(reference::pooled_attention(in.attention(softmax), in.mask.data())),
          pointwise_bad(reference::pooled_pointwise_attention(in.attention(pointwise),
              in.bias.data(), in.visible.data(), in.count.data())) {}

    std::vector<double> softmax, pointwise;
    int64_t softmax_bad, pointwise_bad;
};

void check_attention(Inputs const& in, Truth const& truth, Dtype dtype, Tactic tactic,
    size_t shift, Tally& tally) {
    Layout const layout{static_cast<int>(tactic) % 2 ? 2 : 0, shift};
    Call call(in, dtype, layout);
    int const variant = 100 * static_cast<int>(tactic) + variant_of(layout);
    auto const tell = [&](char const* what, std::vector<double> const& want, int64_t bad) {
        bool right = counted(call, bad);
        right = reference::first_wrong(call.out.numbers(dtype, want.size()), want,
                    reference::tolerance(dtype)) < 0 &&
                right;
        tally.add(right, what, in.shape, dtype, variant);
    };
    must(pooled_attention(call.softmax, tactic, call.workspace, nullptr), "pooled_attention");
    tell("softmax", truth.softmax, truth.softmax_bad);
    call.out.poison();
    must(pooled_pointwise_attention(call.pointwise, tactic, call.workspace, nullptr),
        "pooled_pointwise_attention");
    tell("pointwise", truth.pointwise, truth.pointwise_bad);
}

int64_t products(Shape const& s) {
    return int64_t{s.batch} * s.queries * s.events * s.width;
}

void check_shape(Shape const& shape, uint32_t seed, Tally& tally) {
    for (Dtype dtype : kDtypes) {
        Inputs const in(shape, dtype, ++seed);
        for (Layout const& layout : kLayouts) {
            check_gather(in, dtype, layout, tally);
        }
        Truth const truth(in);
        for (Tactic tactic : kTactics) {
            for (size_t shift : {0, 1}) {
                check_attention(in, truth, dtype, tactic, shift, tally);
            }
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
