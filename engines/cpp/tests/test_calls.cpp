// What is checked before TensorRT sees anything: sizes, buckets, buffers, engines; and the pool.
#include <ckv/buckets.h>

#include <atomic>
#include <chrono>
#include <iterator>
#include <thread>
#include <tuple>

#include "../src/bind.h"
#include "../src/choose.h"
#include "../src/pool.h"
#include "check.h"
#include "sample.h"

using ckv::ErrorCode;
using ckv::Sizes;

namespace {

ckv::Manifest const& manifest() {
    static ckv::Manifest const read = ckv::parse_manifest(sample_manifest(), "m");
    return read;
}

void sizes_and_profiles() {
    ckv::GraphSpec const& graph = manifest().graph("decode");
    Sizes const good = {{"B", 8}, {"S", 16}, {"K", 3}, {"T", 0}, {"C", 1}};
    ckv::check_sizes(graph, manifest().profile, good);
    for (auto const& [axis, size, words] :
         {std::tuple("C", 10, "input 'candidate_item_id' of decode has C = 10, the engine takes 1 to "
                              "9: build an engine for that range (ckv-export build)"),
          {"C", 0, "C = 0, the engine takes 1 to 9"},
          {"B", 9, "input 'cache_k_index' of decode has B = 9, the engine takes 1 to 8"}}) {
        Sizes beyond = good;
        beyond[axis] = size;
        refuses(ErrorCode::kShape, words,
                [&] { ckv::check_sizes(graph, manifest().profile, beyond); });
    }
    Sizes large = good;
    large["C"] = 10;
    ckv::Profile wide = manifest().profile;
    wide["C"] = {1, 5, 100};
    CHECK(ckv::choose_profile(graph, {manifest().profile, wide}, good) == 0);
    CHECK(ckv::choose_profile(graph, {manifest().profile, wide}, large) == 1);
    large["C"] = 101;
    refuses(ErrorCode::kShape, "the engine takes 1 to 100",
            [&] { ckv::choose_profile(graph, {manifest().profile, wide}, large); });
    refuses(ErrorCode::kShape, "no profile", [&] { ckv::choose_profile(graph, {}, good); });
}

void buckets() {
    ckv::GraphSpec const& graph = manifest().graph("decode");
    auto const bucket = [](std::int64_t b, std::int64_t c, std::int64_t t) {
        return Sizes{{"B", b}, {"S", 16}, {"K", 3}, {"T", t}, {"C", c}};
    };
    ckv::Buckets const some({bucket(8, 9, 0), bucket(1, 9, 0), bucket(1, 5, 0), bucket(1, 5, 1)});
    CHECK(some.choose(graph, bucket(1, 5, 0)) == 2);
    CHECK(some.choose(graph, bucket(1, 6, 0)) == 1);
    CHECK(some.choose(graph, bucket(2, 1, 0)) == 0);
    CHECK(some.choose(graph, bucket(1, 1, 1)) == 3);
    // A masked appended event would take a place in the window: T is never padded.
    refuses(ErrorCode::kShape, "no bucket holds", [&] { some.choose(graph, bucket(2, 1, 1)); });
    ckv::Buckets const appending({bucket(1, 9, 1)});
    refuses(ErrorCode::kShape, "T = 0", [&] { appending.choose(graph, bucket(1, 9, 0)); });
    refuses(ErrorCode::kShape, "X = 1", [&] { some.choose(graph, {{"B", 1}, {"X", 1}}); });
    // By the bytes of all inputs: an event takes more of them than a candidate.
    Sizes long_history = bucket(1, 1, 0), short_history = bucket(1, 9, 0);
    short_history["S"] = 8;
    CHECK(ckv::Buckets({long_history, short_history}).choose(graph, {{"S", 8}, {"C", 1}}) == 1);
    CHECK(ckv::Buckets({short_history, long_history}).choose(graph, {{"S", 8}, {"C", 1}}) == 0);
    refuses(ErrorCode::kShape, "no bucket holds B = 9, C = 1, K = 3, S = 16, T = 0",
            [&] { some.choose(graph, bucket(9, 1, 0)); });
    refuses(ErrorCode::kShape, "a bucket at least", [] { ckv::Buckets({}); });
    refuses(ErrorCode::kShape, "the same axes", [] { ckv::Buckets({{{"B", 1}}, {{"C", 1}}}); });
    refuses(ErrorCode::kShape, "the same axes", [] { ckv::Buckets({{{"B", 1}}, {{"B", 1}, {"C", 1}}}); });
    refuses(ErrorCode::kShape, "the same axes", [] { ckv::Buckets({{{"B", -1}}}); });
}

void buffers() {
    ckv::GraphSpec const& graph = manifest().graph("decode");
    Sizes const sizes = {{"B", 1}, {"S", 0}, {"K", 0}, {"T", 0}, {"C", 1}};
    char memory = 0, nothing = 0;
    ckv::Buffers all;
    for (auto const* tensors : {&graph.inputs, &graph.outputs}) {
        for (ckv::TensorSpec const& tensor : *tensors) {
            all[tensor.name] = tensor.bytes(sizes) > 0 ? &memory : nullptr;
        }
    }
    auto const bound = ckv::detail::bind_all(graph, sizes, all, &nothing);
    CHECK(bound.size() == 9 && bound[0].input && !bound[8].input);
    for (auto const& each : bound) {
        CHECK(each.address == (each.tensor->bytes(sizes) > 0 ? &memory : &nothing));
    }
    ckv::Buffers more = all;
    more["other"] = &memory;
    refuses(ErrorCode::kShape, "no tensor 'other'",
            [&] { ckv::detail::bind_all(graph, sizes, more, &nothing); });
    more = all;
    more.erase("score");
    refuses(ErrorCode::kShape, "needs a buffer for 'score'",
            [&] { ckv::detail::bind_all(graph, sizes, more, &nothing); });
    more["score"] = nullptr;
    refuses(ErrorCode::kShape, "the buffer of 'score' is null, it must have 4 bytes",
            [&] { ckv::detail::bind_all(graph, sizes, more, &nothing); });
}

using Gpu = std::pair<int, int>;
ckv::detail::Library const kRtx{10701}, kFull{110100};

// The engine's file, or what is said where there is none.
std::string chosen(ckv::Bundle const& bundle, ckv::detail::Library library, Gpu gpu,
                   std::string const& file = "", bool any_version = false) {
    ckv::EngineOptions options;
    options.file = file;
    options.allow_other_version = any_version;
    try {
        return ckv::detail::choose_engine(bundle, "decode", options, library, gpu).file;
    } catch (ckv::Error const& error) {
        CHECK(error.code() == ErrorCode::kEngine);
        return error.what();
    }
}

ckv::EngineEntry engine(std::string const& file, std::string const& version,
                        std::vector<std::string> const& targets) {
    ckv::EngineEntry entry;
    entry.graph = "decode";
    entry.file = file;
    entry.backend = version[0] == '1' && version[1] == '.' ? "tensorrt_rtx" : "tensorrt";
    entry.backend_version = version;
    entry.targets = targets;
    return entry;
}

void engines_by_library_and_gpu() {
    CHECK(kRtx.label() == "TensorRT for RTX 1.7.1" && kFull.label() == "TensorRT 11.1.0");
    CHECK(ckv::detail::Library{20000}.is_rtx() && !ckv::detail::Library{100000}.is_rtx());
    ckv::Bundle bundle{"b", manifest()};
    bundle.manifest.engines = {engine("rtx", "1.7.1.116", {"sm86", "sm120"}),
                               engine("again", "1.7.1.116", {"sm120", "sm89"}),
                               engine("full", "11.1.0.54", {"sm86"}),
                               engine("hopper", "11.1.0.54", {"sm90"})};
    bundle.manifest.engines.insert(bundle.manifest.engines.begin(),
                                   engine("prefill", "1.7.1.116", {"sm86"}));
    bundle.manifest.engines[0].graph = "prefill";
    CHECK(chosen(bundle, kRtx, {8, 6}) == "rtx");
    CHECK(chosen(bundle, kRtx, {8, 9}) == "again");
    CHECK(chosen(bundle, kRtx, {12, 0}) == "rtx");
    CHECK(chosen(bundle, kRtx, {12, 0}, "again") == "again");
    CHECK(chosen(bundle, kFull, {8, 6}) == "full");
    CHECK(chosen(bundle, kFull, {9, 0}) == "hopper");
    std::string const present =
        "on this GPU (sm75), it has rtx (tensorrt_rtx 1.7.1.116 for sm86 sm120), again "
        "(tensorrt_rtx 1.7.1.116 for sm120 sm89), full (tensorrt 11.1.0.54 for sm86), hopper "
        "(tensorrt 11.1.0.54 for sm90): run ckv-export build b --backend ";
    CHECK(chosen(bundle, kFull, {7, 5}) ==
          "the bundle b has no engine of decode that runs with TensorRT 11.1.0 " + present +
              "tensorrt --target current");
    CHECK(chosen(bundle, kRtx, {7, 5}, "rtx") ==
          "the bundle b has no engine rtx of decode that runs with TensorRT for RTX 1.7.1 " +
              present + "tensorrt_rtx --target sm75");
    for (char const* file : {"full", "nope", "prefill"}) {
        CHECK(chosen(bundle, kRtx, {8, 6}, file, true).find("no engine " + std::string(file)) !=
              std::string::npos);
    }
    bundle.manifest.engines.clear();
    CHECK(chosen(bundle, kRtx, {8, 6}).find("(sm86), it has none: run") != std::string::npos);
}

void engines_by_version() {
    auto const one = [](ckv::EngineEntry const& entry) {
        ckv::Bundle bundle{"b", manifest()};
        bundle.manifest.engines = {entry};
        return bundle;
    };
    for (auto const& [version, library, same] :
         {std::tuple("1.7.1", kRtx, true), {"1.7.1.116", kRtx, true}, {"1.7.11.0", kRtx, false},
          {"1.7.1.116", ckv::detail::Library{10711}, false}, {"11.1.0", kFull, true},
          {"11.2.0", kFull, false}, {"10.16.1.11", kFull, false}, {"11.1", kFull, true},
          {"10.16.2", ckv::detail::Library{101602}, true},
          {"10.6.2", ckv::detail::Library{101602}, false}, {"99999999999.1.0", kFull, false},
          {"", kFull, false}}) {
        ckv::EngineEntry entry = engine("e", version, {"sm86"});
        entry.backend = library.backend();
        CHECK((chosen(one(entry), library, {8, 6}) == "e") == same);
        CHECK(chosen(one(entry), library, {8, 6}, "", true) == "e");
    }
    // Of a version-compatible engine, later versions are good as well.
    for (auto const& [version, runs] :
         {std::pair("10.16.1.11", true), {"11.0.5", true}, {"11.1.0", true}, {"11.1.1", false}}) {
        ckv::EngineEntry entry = engine("e", version, {"sm86"});
        entry.version_compatible = true;
        CHECK((chosen(one(entry), kFull, {8, 6}) == "e") == runs);
    }
    ckv::EngineEntry entry = engine("e", "11.1.0", {"sm80"});
    entry.hardware_compatible = true;
    for (auto const& [gpu, runs] :
         {std::pair(Gpu{8, 0}, true), {Gpu{8, 6}, true}, {Gpu{12, 1}, true}, {Gpu{7, 5}, false}}) {
        CHECK((chosen(one(entry), kFull, gpu) == "e") == runs);
    }
}

// Whatever their order, the engine that was built for this library and GPU alone is taken.
void engines_that_suit_best() {
    std::vector<ckv::EngineEntry> entries(4, engine("own", "11.1.0", {"sm86"}));
    entries[1].file = "any GPU";
    entries[1].hardware_compatible = true;
    entries[2].file = "any version";
    entries[2].version_compatible = true;
    entries[3].file = "another version's";
    entries[3].backend_version = "11.0.0";
    ckv::Bundle bundle{"b", manifest()};
    for (auto best = entries.begin(); best != entries.end(); ++best) {
        bundle.manifest.engines = {best, entries.end()};
        CHECK(chosen(bundle, kFull, {8, 6}, "", true) == best->file);
        bundle.manifest.engines = {std::reverse_iterator(entries.end()),
                                   std::reverse_iterator(best)};
        CHECK(chosen(bundle, kFull, {8, 6}, "", true) == best->file);
    }
}

// Many threads, few slots: never two in one, never more than there may be, all come back.
void pool() {
    struct Slot {
        std::atomic<int> users{0};
    };
    std::atomic<int> made{0}, inside{0}, calls{0};
    ckv::detail::Pool<Slot> slots(3, [&] {
        ++made;
        return std::make_unique<Slot>();
    });
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t) {
        threads.emplace_back([&] {
            for (int i = 0; i < 2000; ++i) {
                auto const slot = slots.take();
                CHECK(++slot->users == 1);
                CHECK(++inside <= 3);
                ++calls;
                --inside;
                --slot->users;
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    CHECK(calls == 16000 && made <= 3);
}

void held_slots() {
    int attempts = 0;
    ckv::detail::Pool<int> slots(2, [&] {
        if (++attempts == 1) {
            throw std::runtime_error("no memory");
        }
        return std::make_unique<int>(attempts);
    });
    // A slot that couldn't be made is tried again.
    bool failed = false;
    try {
        slots.take();
    } catch (std::runtime_error const&) {
        failed = true;
    }
    CHECK(failed);
    auto const one = slots.hold();
    {
        auto const two = slots.take();
        CHECK(*one != *two);
    }
    {
        auto const two = slots.hold();
        refuses(ErrorCode::kEngine, "all 2 contexts are held", [&] { slots.take(); });
        refuses(ErrorCode::kEngine, "all 2 contexts are held", [&] { slots.hold(); });
    }
    auto const again = slots.take();
    CHECK(attempts == 3);
}

// Of two threads that wait for the only slot, one gets it for good; the other learns that.
void waiting_for_what_never_comes() {
    ckv::detail::Pool<int> slots(1, [] { return std::make_unique<int>(1); });
    std::atomic<int> held{0}, refused{0};
    auto const wait = [&] {
        try {
            auto const mine = slots.hold();
            ++held;
            for (int i = 0; i < 1000 && refused == 0; ++i) {
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
            }
            CHECK(refused == 1);
        } catch (ckv::Error const&) {
            ++refused;
        }
    };
    std::thread one, two;
    {
        auto const slot = slots.take();
        one = std::thread(wait);
        two = std::thread(wait);
        std::this_thread::sleep_for(std::chrono::milliseconds(20));  // so that both wait
    }
    one.join();
    two.join();
    CHECK(held == 1);
}

}  // namespace

int main() {
    sizes_and_profiles();
    buckets();
    buffers();
    engines_by_library_and_gpu();
    engines_by_version();
    engines_that_suit_best();
    pool();
    held_slots();
    waiting_for_what_never_comes();
}
