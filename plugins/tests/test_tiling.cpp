// Index arithmetic that decides which block reads what: nothing missed, nothing twice, all in
// bounds, and a workspace that fits whatever shape comes.
#include "attention_args.h"

#include <climits>
#include <cstdio>
#include <random>

#include "check.h"
#include "tiling.h"

using namespace ckv;

namespace {

int passed = 0;

void spans_cover_the_events_once(int64_t warps, int32_t events) {
    Split const split = split_events(warps, events);
    CHECK(split.count >= 1 && split.count <= kMostSplits);
    int32_t next = 0;
    for (int32_t i = 0; i < split.count; ++i) {
        Span const span = split.span(i, events);
        CHECK(span.begin == next && span.end > span.begin && span.end <= events);
        next = span.end;
    }
    CHECK(next == events);
    ++passed;
}

void full_gpus_do_not_split() {
    CHECK(split_events(kTargetWarps, 100000).count == 1);
    CHECK(split_events(kTargetWarps / 2, 100000).count == 2);
    CHECK(split_events(kTargetWarps - 1, 100000).count == 2);
    CHECK(split_events(1, kShortestSpan).count == 1);
    CHECK(split_events(1, kShortestSpan + 1).count == 2);
    CHECK(split_events(1, INT32_MAX).count == kMostSplits);
    CHECK(split_events(0, 0).count == 1);
    ++passed;
}

void blocks_and_places_match(int32_t batch, int32_t heads, int32_t tiles, int32_t tile) {
    uint32_t block = 0;
    for (int32_t b = 0; b < batch; ++b) {
        for (int32_t h = 0; h < heads; ++h) {
            for (int32_t t = 0; t < tiles; ++t, ++block) {
                BlockPlace const at = block_place(block, tiles, tile, heads);
                CHECK(at.batch == b && at.head == h && at.first_query == t * tile);
            }
        }
    }
    ++passed;
}

void indices_are_judged() {
    CHECK(inside(0, 1) && !inside(1, 1) && !inside(-1, 1) && !inside(0, 0));
    CHECK(!inside(INT32_MIN, INT64_MAX) && inside(INT32_MAX, int64_t{INT32_MAX} + 1));
    ++passed;
}

void divisors_are_powers_of_two() {
    CHECK(power_of_two_divisor(0, 16) == 16 && power_of_two_divisor(508, 16) == 4);
    CHECK(power_of_two_divisor(510, 16) == 2 && power_of_two_divisor(511, 16) == 1);
    CHECK(power_of_two_divisor(512, 8) == 8);
    ++passed;
}

AttentionArgs sizes(int32_t batch, int32_t queries, int32_t events, int32_t heads, int32_t width) {
    AttentionArgs a;
    a.batch = batch;
    a.queries = queries;
    a.events = events;
    a.heads = heads;
    a.width = width;
    return a;
}

void plans_count_every_warp() {
    AttentionArgs const a = sizes(2, 33, 100000, 4, 512);
    Split const split = plan_split(a, Tile{16, 5, 7}, true);
    CHECK(split.count == split_events(2 * 4 * 3 * 5 * 7, 100000).count && split.count == 3);
    Split const whole = plan_split(a, Tile{16, 5, 7}, false);
    CHECK(whole.count == 1 && whole.length == 100000);
    ++passed;
}

void only_what_splits_takes_workspace() {
    CHECK(most_split_floats(sizes(3, 5, kShortestSpan, 2, 8)) == 0);
    CHECK(most_split_floats(sizes(3, 5, kShortestSpan + 1, 2, 8)) > 0);
    // What a call leaves is what it is given, where it splits as much as its events allow.
    AttentionArgs const split = sizes(3, 5, 3 * kShortestSpan, 2, 8);
    int64_t const rows = 3 * 3 * 5;
    CHECK(split_floats(split, 3) == rows * (8 + 2 * 2));
    CHECK(most_split_floats(split) == split_floats(split, 3));
    // Nor do calls that fill a GPU take more, the larger they are.
    CHECK(most_split_floats(sizes(1000, 1000, 10000, 2, 8)) ==
          most_split_floats(sizes(2000, 1000, 10000, 2, 8)));
    ++passed;
}

// An engine allocates for the largest shape of its profile; every smaller one must fit.
void workspace_fits_smaller_shapes(std::mt19937& random) {
    auto const up_to = [&](int32_t most) {
        return std::uniform_int_distribution<int32_t>(1, most)(random);
    };
    int32_t const heads = 1 << (up_to(4) - 1);
    int32_t const width = heads * up_to(96);
    AttentionArgs const most = sizes(up_to(200), up_to(300), up_to(20000), heads, width);
    int32_t const warps = 1 << (up_to(4) - 1);
    Tile const tile{up_to(kRowsOfWarp) * warps, warps, up_to(3)};
    for (int i = 0; i < 50; ++i) {
        AttentionArgs const a =
            sizes(up_to(most.batch), up_to(most.queries), up_to(most.events), heads, width);
        Split const split = plan_split(a, tile, true);
        CHECK(split_floats(a, split.count) <= most_split_floats(most));
    }
    ++passed;
}

}  // namespace

int main() {
    full_gpus_do_not_split();
    indices_are_judged();
    divisors_are_powers_of_two();
    for (int64_t warps : {1, 3, 64, 500, 5000}) {
        // Beyond, all splits are in use and spans only grow.
        for (int32_t events = 1; events <= 2 * kMostSplits * kShortestSpan; ++events) {
            spans_cover_the_events_once(warps, events);
        }
        spans_cover_the_events_once(warps, 100000);
    }
    blocks_and_places_match(3, 8, 5, 64);
    blocks_and_places_match(1, 1, 1, 16);
    plans_count_every_warp();
    only_what_splits_takes_workspace();
    std::mt19937 random(1);
    for (int i = 0; i < 300; ++i) {
        workspace_fits_smaller_shapes(random);
    }
    std::printf("%d passed, 0 failed\n", passed);
    return 0;
}
