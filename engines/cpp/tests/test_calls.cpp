// What is checked before TensorRT sees anything: sizes, buckets, buffers, engines; and the pool.
#include <ckv/buckets.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "../src/call.h"
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
    Sizes large = good;
    large["C"] = 10;
    refuses(ErrorCode::kShape,
            "input 'candidate_item_id' of decode has C = 10, the engine takes 1 to 9",
            [&] { ckv::check_sizes(graph, manifest().profile, large); });
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
    refuses(ErrorCode::kShape, "B = 9", [&] { some.choose(graph, bucket(9, 1, 0)); });
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

void engines() {
    using ckv::detail::choose_engine;
    using ckv::detail::Library;
    ckv::Bundle bundle{"b", manifest()};
    bundle.manifest.files["engines/d.rtx"] = {"00", 1};
    Library const rtx{10701}, full{110100}, newer{110200};
    CHECK(rtx.label() == "TensorRT for RTX 1.7.1" && full.label() == "TensorRT 11.1.0");
    bundle.manifest.engines.push_back(bundle.manifest.engines[0]);
    bundle.manifest.engines[2].file = "engines/later.rtx";
    bundle.manifest.files["engines/later.rtx"] = {"00", 1};
    CHECK(choose_engine(bundle, "decode", "", rtx, false).file == "engines/d.rtx");
    CHECK(choose_engine(bundle, "decode", "engines/later.rtx", rtx, false).file ==
          "engines/later.rtx");
    bundle.manifest.engines.pop_back();
    CHECK(choose_engine(bundle, "decode", "", full, false).file == "decode.onnx");
    CHECK(choose_engine(bundle, "decode", "engines/d.rtx", rtx, false).file == "engines/d.rtx");
    refuses(ErrorCode::kEngine,
            "was built by tensorrt 11.1.0, this program runs TensorRT 11.2.0: run ckv-export build b "
            "--backend tensorrt",
            [&] { choose_engine(bundle, "decode", "", newer, false); });
    CHECK(choose_engine(bundle, "decode", "", newer, true).file == "decode.onnx");
    bundle.manifest.engines[1].version_compatible = true;
    CHECK(choose_engine(bundle, "decode", "", newer, false).file == "decode.onnx");
    refuses(ErrorCode::kEngine, "was built by tensorrt_rtx 1.7.1.116, this program runs TensorRT for "
            "RTX 1.7.11", [&] { choose_engine(bundle, "decode", "", Library{10711}, false); });
    bundle.manifest.engines[0].backend_version = "1.7.11.0";
    refuses(ErrorCode::kEngine, "was built by tensorrt_rtx 1.7.11.0, this program runs TensorRT for "
            "RTX 1.7.1:", [&] { choose_engine(bundle, "decode", "", rtx, false); });
    bundle.manifest.engines[0] = manifest().engines[0];
    refuses(ErrorCode::kEngine, "was built by tensorrt_rtx 1.7.1.116, this program runs TensorRT 11",
            [&] { choose_engine(bundle, "decode", "engines/d.rtx", full, true); });
    refuses(ErrorCode::kEngine, "no engine of prefill for TensorRT for RTX 1.7.1",
            [&] { choose_engine(bundle, "prefill", "", rtx, false); });
    refuses(ErrorCode::kEngine, "has no engine nope of decode",
            [&] { choose_engine(bundle, "decode", "nope", rtx, false); });
    refuses(ErrorCode::kBundle, "not 'dekode'",
            [&] { choose_engine(bundle, "dekode", "", rtx, false); });
    bundle.manifest.engines[0].plugin_file = "p.so";
    refuses(ErrorCode::kEngine, "p.so is not among the files",
            [&] { choose_engine(bundle, "decode", "", rtx, false); });
    bundle.manifest.engines[0].plugin_file.clear();
    bundle.manifest.files.erase("engines/d.rtx");
    refuses(ErrorCode::kEngine, "not among the files",
            [&] { choose_engine(bundle, "decode", "", rtx, false); });
}

void targets() {
    using ckv::detail::Library;
    using ckv::detail::require_target;
    ckv::Bundle const bundle{"b", manifest()};
    Library const rtx{10701}, full{110100};
    ckv::EngineEntry entry = bundle.manifest.engines[0];
    entry.targets = {"sm86", "sm120"};
    require_target(bundle, entry, rtx, 8, 6);
    require_target(bundle, entry, rtx, 12, 0);
    refuses(ErrorCode::kEngine,
            "engines/d.rtx was built for sm86, sm120, the GPU here is sm89: run ckv-export build b "
            "--backend tensorrt_rtx --target sm89",
            [&] { require_target(bundle, entry, rtx, 8, 9); });
    entry = bundle.manifest.engines[1];
    require_target(bundle, entry, full, 9, 0);
    refuses(ErrorCode::kEngine, "run ckv-export build b --backend tensorrt --target current",
            [&] { require_target(bundle, entry, full, 8, 6); });
    entry.hardware_compatible = true;
    entry.targets = {"sm80"};
    require_target(bundle, entry, full, 8, 6);
    require_target(bundle, entry, full, 12, 1);
    refuses(ErrorCode::kEngine, "the GPU here is sm75",
            [&] { require_target(bundle, entry, full, 7, 5); });
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
    engines();
    targets();
    pool();
    held_slots();
    waiting_for_what_never_comes();
}
