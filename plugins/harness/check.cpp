// GPU against the plain C++ reference, on fresh random inputs and poisoned outputs.
#include <cstdio>

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

void check_gather(Inputs const& in, Dtype dtype, int32_t padding, Tally& tally) {
    Call call(in, dtype, padding);
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
    tally.add(right, "gather", in.shape, dtype, padding);
}

void check_attention(Inputs const& in, Dtype dtype, Tactic tactic, Tally& tally) {
    Call call(in, dtype, static_cast<int>(tactic) % 2 ? 2 : 0);
    int const variant = static_cast<int>(tactic);
    std::vector<double> want;
    reference::Attention const truth = in.attention(want);
    double const allowed = reference::tolerance(dtype);

    int64_t bad = reference::pooled_attention(truth, in.mask.data());
    must(pooled_attention(call.softmax, tactic, call.workspace, nullptr), "pooled_attention");
    bool right = counted(call, bad);
    right = reference::first_wrong(call.out.numbers(dtype, want.size()), want, allowed) < 0 &&
            right;
    tally.add(right, "softmax", in.shape, dtype, variant);

    bad = reference::pooled_pointwise_attention(
        truth, in.bias.data(), in.visible.data(), in.count.data());
    call.out.poison();
    must(pooled_pointwise_attention(call.pointwise, tactic, call.workspace, nullptr),
        "pooled_pointwise_attention");
    right = counted(call, bad);
    right = reference::first_wrong(call.out.numbers(dtype, want.size()), want, allowed) < 0 &&
            right;
    tally.add(right, "pointwise", in.shape, dtype, variant);
}

}  // namespace

int check_all(uint32_t seed) {
    Tally tally;
    for (Shape const& shape : kShapes) {
        for (Dtype dtype : kDtypes) {
            Inputs const in(shape, dtype, ++seed);
            for (int32_t padding : {0, 1, 2, 6}) {
                check_gather(in, dtype, padding, tally);
            }
            for (Tactic tactic : kTactics) {
                check_attention(in, dtype, tactic, tally);
            }
        }
    }
    std::printf("%d passed, %d failed\n", tally.passed, tally.failed);
    return tally.failed;
}

}  // namespace ckv::harness
