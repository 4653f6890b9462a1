// The kernels, run thread by thread in the emulator, against the plain C++ reference.
#include <sys/mman.h>

#include <cmath>
#include <cstdio>
#include <vector>

#include "check.h"
#include "ckv/pool_gather_concat.h"
#include "ckv/pooled_attention.h"
#include "elements.h"
#include "emulator/launch.h"
#include "emulator/run.h"
#include "inputs.h"

namespace {

using namespace ckv;
using namespace ckv::emulator;
using namespace ckv::reference;

void compare(std::vector<double> const& got, std::vector<double> const& want, int dtype,
    char const* what, Shape const& s) {
    int64_t const i = first_wrong(got, want, tolerance(static_cast<Dtype>(dtype)));
    if (i >= 0) {
        std::fprintf(stderr,
            "%s dtype %d B %d C %d N %d H %d d %d d_g %d: element %d is %g, not %g\n", what, dtype,
            s.batch, s.queries, s.events, s.heads, s.width, s.pool_width, static_cast<int>(i),
            got[i], want[i]);
        std::exit(1);
    }
}

void check_attention(Shape const& s, Options const& options) {
    Inputs const data(s, static_cast<Dtype>(options.dtype), options.seed);
    std::vector<double> got;
    std::vector<double> want;
    uint32_t bad = 0;
    Attention a = data.attention(got);
    Attention truth = data.attention(want);
    CHECK(ckv_emulated_pooled_attention(&options, &a, data.mask.data(), &bad) == 0);
    int64_t expected = ckv_reference_pooled_attention(&truth, data.mask.data());
    CHECK(s.queries == 0 || expected == bad);
    compare(got, want, options.dtype, "softmax", s);
    bad = 0;
    a = data.attention(got);
    truth = data.attention(want);
    CHECK(ckv_emulated_pooled_pointwise_attention(&options, &a, data.bias.data(),
              data.visible.data(), data.count.data(), &bad) == 0);
    expected = ckv_reference_pooled_pointwise_attention(
        &truth, data.bias.data(), data.visible.data(), data.count.data());
    CHECK(s.queries == 0 || expected == bad);
    compare(got, want, options.dtype, "pointwise", s);
}

void check_gather(Shape const& s, Options const& options) {
    Inputs const data(s, static_cast<Dtype>(options.dtype), options.seed);
    int64_t const rows = int64_t{s.batch} * s.events;
    std::vector<float> got(rows * s.width, NAN);
    std::vector<float> want(rows * s.width, NAN);
    Side const side = data.side(0);
    uint32_t bad = 0;
    CHECK(ckv_emulated_pool_gather_concat(&options, &side, rows, got.data(), &bad) == 0);
    CHECK(ckv_reference_pool_gather_concat(&side, rows, want.data()) == bad);
    // Data movement: not one bit may differ.
    CHECK(got == want);
}

// A pool of more than 2^31 elements, of which the last row alone takes memory.
void check_a_row_far_away() {
    constexpr int32_t kRow = 5;
    constexpr int32_t kWidth = 8;
    PooledSide side;
    side.pool_rows = kRow + 1;
    side.pool_stride = (int64_t{1} << 29) - 8;
    side.pool_width = 6;
    side.user_width = side.user_stride = kWidth - side.pool_width;
    size_t const bytes = static_cast<size_t>(2 * side.pool_rows * side.pool_stride);
    void* const pool = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(pool != MAP_FAILED);
    float const want[kWidth] = {1, 2, 3, 4, 5, 6, 7, 8};
    char user[4];
    char out[2 * kWidth];
    auto const expect = [&](cudaError_t status) {
        CHECK(status == cudaSuccess);
        for (int i = 0; i < kWidth; ++i) {
            CHECK(get(Dtype::kFloat16, out + 2 * i) == want[i]);
        }
        std::memset(out, 0xFF, sizeof out);
    };
    char* const row = static_cast<char*>(pool) + 2 * kRow * side.pool_stride;
    put_rows(Dtype::kFloat16, row, 0, want, 1, side.pool_width);
    put_rows(Dtype::kFloat16, user, 0, want + side.pool_width, 1, side.user_width);
    side.pool = pool;
    side.index = &kRow;
    side.user = user;
    PoolGatherConcatArgs gather;
    gather.dtype = Dtype::kFloat16;
    gather.rows = 1;
    gather.side = side;
    gather.out = out;
    gather.out_stride = kWidth;
    expect(pool_gather_concat(gather, nullptr));

    // One event alone has all the weight.
    SoftmaxArgs attention;
    int32_t const mask = 1;
    char const query[2 * kWidth] = {};
    attention.dtype = Dtype::kFloat16;
    attention.batch = attention.queries = attention.events = 1;
    attention.width = kWidth;
    attention.query = query;
    attention.key = attention.value = side;
    attention.out = out;
    attention.mask = &mask;
    for (Tactic tactic : {Tactic::kWhole, Tactic::kCoresWhole}) {
        expect(pooled_attention(attention, tactic, nullptr, nullptr));
    }
    munmap(pool, bytes);
}

// A split call is two launches, and a failure of either is the call's.
void check_that_failures_are_told() {
    constexpr int32_t kSpans = 3;
    constexpr int32_t kEvents = 64 * kSpans;
    float const element = 1;
    float query = 1;
    float out = 0;
    std::vector<int32_t> const index(kEvents, 0);
    SoftmaxArgs args;
    args.batch = args.queries = args.width = 1;
    args.events = kEvents;
    args.query = &query;
    args.key.pool = &element;
    args.key.index = index.data();
    args.key.user = &element;
    args.key.pool_rows = args.key.pool_width = 1;
    args.key.pool_stride = 1;
    args.value = args.key;
    args.out = &out;
    args.mask = index.data();
    for (Tactic tactic : {Tactic::kSplit, Tactic::kCoresSplit}) {
        std::vector<char> workspace(attention_workspace(args, tactic));
        for (int launch : {1, 2}) {
            failing_launch = launch;
            CHECK(pooled_attention(args, tactic, workspace.data(), nullptr) ==
                  cudaErrorLaunchFailure);
            CHECK(failing_launch == 0);
        }
        CHECK(pooled_attention(args, tactic, workspace.data(), nullptr) == cudaSuccess);
        CHECK(out == 1);
        out = 0;
    }
}

}  // namespace

int main() {
    // Edges: no events, one of everything, borders inside a head, more than one tile of each kind,
    // heads a column wider than a tile, user parts less aligned than padded pool rows.
    std::vector<Shape> const shapes = {
        {1, 1, 0, 1, 4, 3, 5}, {1, 1, 1, 1, 1, 0, 1}, {2, 3, 5, 1, 4, 4, 3},
        {2, 1, 70, 2, 20, 17, 9}, {2, 5, 33, 4, 32, 30, 50}, {3, 17, 65, 2, 64, 62, 11},
        {2, 40, 130, 1, 40, 38, 20}, {1, 130, 70, 2, 64, 60, 20}, {2, 3, 200, 1, 128, 126, 30},
        {2, 20, 40, 1, 256, 254, 30}, {1, 2, 300, 1, 96, 95, 7}, {2, 2, 20, 1, 300, 297, 8},
        {2, 3, 150, 4, 64, 56, 20}, {1, 2, 20, 1, 65, 63, 5}, {1, 2, 20, 1, 129, 127, 5},
        {1, 2, 600, 1, 32, 30, 64}, {2, 0, 3, 1, 8, 6, 4}, {2, 3, 9, 2, 32, 10, 7}};
    check_a_row_far_away();
    check_that_failures_are_told();
    int cases = 2;
    for (Shape const& s : shapes) {
        for (int dtype = 0; dtype < 3; ++dtype) {
            for (int variant = 0; variant < 4; ++variant) {
                bool const padded = variant == 2 || (variant == 1 && dtype == 2);
                Options const options{dtype, variant == 3 ? 0 : 1 + variant,
                    variant % 2 ? 16 : 1, padded ? 2 : 0, variant == 3 ? 75 : 90,
                    static_cast<uint32_t>(100 * variant + dtype)};
                check_attention(s, options);
                check_gather(s, options);
                cases += 3;
            }
        }
    }
    std::printf("%d passed, 0 failed\n", cases);
    return 0;
}
