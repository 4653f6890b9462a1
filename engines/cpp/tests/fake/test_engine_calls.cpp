// What ckv::Engine asks of TensorRT and CUDA:  test_engine_calls SCRATCH-FOLDER
#include <ckv/engine.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <random>
#include <thread>

#include "../../src/sha256.h"
#include "../check.h"
#include "../sample.h"
#include "fake.h"

namespace fs = std::filesystem;
using ckv::ErrorCode;

namespace {

// Writes a file of the bundle, and its hash into the manifest.
void add_file(ckv::Bundle& bundle, std::string const& name, std::string const& text) {
    std::ofstream(bundle.file(name)) << text;
    ckv::detail::Sha256 digest;
    digest.update(text.data(), text.size());
    bundle.manifest.files[name] = {digest.finish(), text.size()};
}

ckv::Bundle make_bundle(fs::path const& folder, std::string const& plan) {
    fs::create_directories(folder);
    ckv::Bundle bundle{folder, ckv::parse_manifest(fake::manifest(), "sample")};
    add_file(bundle, "decode.onnx", plan);  // the sample's engine for TensorRT 11.1.0
    return bundle;
}

ckv::EngineOptions with_contexts(int count) {
    ckv::EngineOptions options;
    options.contexts = count;
    return options;
}

// Sizes, memory and the right answer of a call.
class Request {
public:
    Request(ckv::GraphSpec const& graph, std::int64_t users, std::int64_t candidates,
            std::int64_t events)
        : sizes{{"B", users}, {"S", events}, {"K", std::min<std::int64_t>(events, 3)}, {"T", 0},
                {"C", candidates}} {
        for (auto const* tensors : {&graph.inputs, &graph.outputs}) {
            for (ckv::TensorSpec const& tensor : *tensors) {
                auto& bytes = memory_[tensor.name];
                bytes.assign((tensor.bytes(sizes) + 3) / 4, 0);
                buffers[tensor.name] = tensor.bytes(sizes) == 0 ? nullptr : bytes.data();
            }
        }
    }

    void draw(std::mt19937& random) {
        for (auto const* name : {"history_item_id", "candidate_item_id"}) {
            for (std::int32_t& id : memory_.at(name)) {
                id = static_cast<std::int32_t>(random() % 9);
            }
        }
        for (std::int32_t& number : memory_.at("cache_k_user")) {
            float const value = static_cast<float>(random() % 100) / 4;
            std::memcpy(&number, &value, 4);
        }
        for (std::int32_t& number : memory_.at("score")) {
            number = 0;
        }
    }

    bool is_right() const {
        std::int64_t const users = sizes.at("B"), count = sizes.at("C");
        std::int64_t const events = sizes.at("S"), cached = sizes.at("K");
        for (std::int64_t b = 0; b < users; ++b) {
            float sum = 0;
            for (std::int64_t e = 0; e < events; ++e) {
                sum += static_cast<float>(at("history_item_id", b * events + e));
            }
            for (std::int64_t e = 0; e < cached; ++e) {
                sum += number("cache_k_user", 2 * (b * cached + e));
            }
            for (std::int64_t c = b * count; c < (b + 1) * count; ++c) {
                float const wanted = sum + static_cast<float>(at("candidate_item_id", c));
                if (number("score", c) != wanted) {
                    return false;
                }
            }
        }
        return true;
    }

    ckv::Sizes sizes;
    ckv::Buffers buffers;

private:
    std::int32_t at(char const* name, std::int64_t i) const {
        return memory_.at(name)[static_cast<std::size_t>(i)];
    }
    float number(char const* name, std::int64_t i) const {
        std::int32_t const bits = at(name, i);
        float value = 0;
        std::memcpy(&value, &bits, 4);
        return value;
    }

    std::map<std::string, std::vector<std::int32_t>> memory_;
};

void bad_engines(fs::path const& folder) {
    ckv::Bundle const good = make_bundle(folder / "good", "plan");
    ckv::Bundle const bad = make_bundle(folder / "bad", "junk");
    auto const refused = [](ErrorCode code, std::string const& words, ckv::Bundle const& bundle,
                            auto const& change) {
        change(fake::settings);
        refuses(code, words, [&] { ckv::Engine(bundle, "decode"); });
        fake::settings = {};
    };
    auto const nothing = [](fake::Settings&) {};
    using Line = std::pair<ckv::LogLevel, std::string>;
    std::vector<Line> logged;
    ckv::EngineOptions options;
    options.log = [&](ckv::LogLevel level, std::string const& message) {
        logged.emplace_back(level, message);
    };
    refuses(ErrorCode::kEngine, "TensorRT 11.1.0 can't load the engine",
            [&] { ckv::Engine(bad, "decode", options); });
    CHECK((logged == std::vector<Line>{{ckv::LogLevel::kInfo, "looking"},
                                       {ckv::LogLevel::kInfo, "at it"},
                                       {ckv::LogLevel::kWarning, "strange"},
                                       {ckv::LogLevel::kError, "magic tag differs"},
                                       {ckv::LogLevel::kError, "and more"}}));
    refused(ErrorCode::kEngine, "decode.onnx: magic tag differs", bad, nothing);
    refused(ErrorCode::kEngine, "the engine has 10 tensors, the graph decode has 9", good,
            [](fake::Settings& now) { now.more_tensors = 1; });
    refused(ErrorCode::kEngine, "tensor 'cache_v_index' is not that of the graph decode", good,
            [](fake::Settings& now) { now.missing_tensor = "cache_v_index"; });
    for (char const* name : {"history_mask", "history_image"}) {
        refused(ErrorCode::kEngine,
                "tensor '" + std::string(name) + "' is not that of the graph decode", good,
                [&](fake::Settings& now) { now.other_type = name; });
    }
    refused(ErrorCode::kEngine, "tensor 'score' is not that of the graph decode", good,
            [](fake::Settings& now) { now.other_rank = "score"; });
    refused(ErrorCode::kEngine, "decode.onnx was built for sm90, the GPU here is sm86: run", good,
            [](fake::Settings& now) { now.compute_capability = 86; });
    fs::remove(folder / "bad" / "decode.onnx");
    refused(ErrorCode::kBundle, "can't read", bad, nothing);
    fs::create_directory(folder / "bad" / "decode.onnx");
    refused(ErrorCode::kBundle, "can't read", bad, nothing);
}

// Whatever fails, the message names it, with TensorRT's own words for it where there are any and none
// for what went before; and nothing is left.
void every_function_that_fails(fs::path const& folder) {
    ckv::Bundle bundle = make_bundle(folder / "failing", "plan");
    bundle.manifest.engines[1].plugin_file = "own.so";
    add_file(bundle, "own.so", "x");
    std::string said;
    ckv::EngineOptions options;
    options.log = [&](ckv::LogLevel, std::string const& message) { said = message; };
    cudaStream_t const stream = fake::make_stream();
    for (auto const& [function, code, words] :
         {std::tuple("loadLibrary", ErrorCode::kEngine, "own.so: loadLibrary"),  // once: it is kept
          {"cudaGetDeviceCount", ErrorCode::kCuda, "needs an NVIDIA GPU: no CUDA-capable device"},
          {"cudaGetDevice", ErrorCode::kCuda, "asking for this thread's GPU: some error"},
          {"cudaDeviceGetAttribute", ErrorCode::kCuda, "asking for the GPU's compute capability"},
          {"cudaMalloc", ErrorCode::kCuda, "allocating device memory"},
          {"cudaEventCreateWithFlags", ErrorCode::kCuda, "making an event"},
          {"cudaStreamWaitEvent", ErrorCode::kCuda, "waiting for a context"},
          {"cudaEventRecord", ErrorCode::kCuda, "recording an event"},
          {"cudaStreamSynchronize", ErrorCode::kCuda, "running a call before its capture"},
          {"cudaStreamEndCapture", ErrorCode::kCuda, "capturing a call: some error"},
          {"cudaGraphInstantiateWithFlags", ErrorCode::kCuda, "preparing a captured call"},
          {"cudaGraphLaunch", ErrorCode::kCuda, "launching a captured call"},
          {"createInferRuntime", ErrorCode::kEngine,
           "TensorRT 11.1.0 can't make a runtime: createInferRuntime"},
          {"deserializeCudaEngine", ErrorCode::kEngine, "decode.onnx: deserializeCudaEngine"},
          {"createExecutionContext", ErrorCode::kEngine,
           "can't make a context of decode: createExecutionContext"},
          {"setOptimizationProfileAsync", ErrorCode::kEngine,
           "refuses profile 1 of decode: setOptimizationProfileAsync"},
          {"setInputShape history_mask", ErrorCode::kEngine, "refuses the shape of 'history_mask'"},
          {"setTensorAddress score", ErrorCode::kEngine, "refuses the address of 'score'"},
          {"enqueueV3", ErrorCode::kEngine, "TensorRT 11.1.0 can't run decode"},
          {"enqueueV3 in a capture", ErrorCode::kEngine, "TensorRT 11.1.0 can't capture decode"}}) {
        Request narrow(bundle.manifest.graph("decode"), 1, 1, 1);
        Request wide(bundle.manifest.graph("decode"), 1, 9, 1);
        std::unique_ptr<ckv::Engine> engine;
        std::unique_ptr<ckv::CapturedCall> captured;
        said.clear();
        fake::settings.remarks = true;
        fake::settings.fails = function;
        refuses(code, words, [&] {
            engine = std::make_unique<ckv::Engine>(bundle, "decode", options);
            engine->enqueue(narrow.sizes, narrow.buffers, stream);
            captured = std::make_unique<ckv::CapturedCall>(*engine, wide.sizes, wide.buffers, stream);
            captured->launch(stream);
        });
        fake::settings = {};
        cudaStreamSynchronize(stream);
        captured.reset();
        engine.reset();
        CHECK(said == "createInferRuntime" && fake::contexts == 0 && fake::objects == 0);
    }
    fake::destroy_stream(stream);
}

// What is loaded has the manifest's hash, whatever has happened since the bundle was opened.
void files_that_were_replaced(fs::path const& folder) {
    ckv::Bundle bundle = make_bundle(folder / "replaced", "plan");
    bundle.manifest.engines[1].plugin_file = "own.so";
    add_file(bundle, "own.so", "x");
    int const before = fake::plugin_loads;
    for (std::string const name : {"own.so", "decode.onnx"}) {
        ckv::Bundle opened = bundle;
        add_file(bundle, name, "plan with code");
        refuses(ErrorCode::kBundle, name + " is not the file that was exported, its hash differs",
                [&] { ckv::Engine(opened, "decode"); });
        CHECK(fake::plugin_loads == before + (name == "decode.onnx"));
    }
}

void chosen_engines(fs::path const& folder) {
    ckv::Bundle bundle = make_bundle(folder / "good", "plan");
    ckv::EngineOptions options;
    options.file = "engines/d.rtx";
    bundle.manifest.files[options.file] = {"00", 1};
    refuses(ErrorCode::kEngine, "engines/d.rtx was built by tensorrt_rtx 1.7.1.116",
            [&] { ckv::Engine(bundle, "decode", options); });
    options.file.clear();
    bundle.manifest.engines[1].backend_version = "11.0.0";
    refuses(ErrorCode::kEngine, "was built by tensorrt 11.0.0",
            [&] { ckv::Engine(bundle, "decode", options); });
    options.allow_other_version = true;
    ckv::Engine const engine(bundle, "decode", options);
}

void plugins(fs::path const& folder) {
    ckv::Bundle const bundle = make_bundle(folder / "good", "plan");
    ckv::EngineOptions options;
    options.plugin_library = folder / "plugin.so";
    std::ofstream(options.plugin_library) << "x";
    int logged = 0;
    options.log = [&](ckv::LogLevel, std::string const&) { ++logged; };
    int const before = fake::plugin_loads;
    auto one = std::make_unique<ckv::Engine>(bundle, "decode", options);
    options.plugin_library = folder / "good" / ".." / "plugin.so";
    ckv::Engine const two(bundle, "decode", options);
    CHECK(logged == 0);
    CHECK(fake::plugin_loads == before + 1);
    ckv::Bundle with_library = bundle;
    with_library.manifest.engines[1].plugin_file = "own.so";
    add_file(with_library, "own.so", "x");
    ckv::Engine const three(with_library, "decode");
    CHECK(fake::plugin_loads == before + 2);
    one.reset();  // its logger must not be the one that is told what follows
    options.plugin_library = folder / "other.so";
    std::ofstream(options.plugin_library) << "x";
    fake::settings.fails = "loadLibrary";
    fake::settings.remarks = true;
    refuses(ErrorCode::kEngine, "other.so: loadLibrary",
            [&] { ckv::Engine(bundle, "decode", options); });
    fake::settings = {};
    // What couldn't be loaded is tried again; many at once load it once.
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([&] { ckv::Engine(bundle, "decode", options); });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    CHECK(fake::plugin_loads == before + 4);
}

void code_inside_an_engine(fs::path const& folder) {
    ckv::Bundle const bundle = make_bundle(folder / "code", "plan with code");
    refuses(ErrorCode::kEngine, "can't load the engine", [&] { ckv::Engine(bundle, "decode"); });
    ckv::Bundle said = bundle;
    said.manifest.engines[1].version_compatible = true;
    refuses(ErrorCode::kEngine, "set EngineOptions::allow_host_code",
            [&] { ckv::Engine(said, "decode"); });
    ckv::EngineOptions options;
    options.allow_host_code = true;
    ckv::Engine const engine(said, "decode", options);
}

void sizes_outside_every_profile(ckv::Bundle const& bundle) {
    ckv::Engine engine(bundle, "decode", with_contexts(0));  // one all the same
    int const before = fake::calls;
    for (auto const& [axis, words] : std::map<std::string, std::string>{
             {"C", "candidate_item_id' of decode has C = 17, the engine takes 5 to 9"},
             {"S", "history_mask' of decode has S = 17, the engine takes 0 to 16"},
             {"B", "cache_k_index' of decode has B = 0, the engine takes 1 to 8"}}) {
        Request request(engine.graph(), 1, 1, 1);
        request.sizes[axis] = axis == "B" ? 0 : 17;
        refuses(ErrorCode::kShape, words,
                [&] { engine.enqueue(request.sizes, request.buffers, nullptr); });
    }
    cudaStreamSynchronize(nullptr);
    CHECK(fake::calls == before);
    Request request(engine.graph(), 1, 1, 0);  // tensors without elements are null
    std::mt19937 random(1);
    request.draw(random);
    engine.enqueue(request.sizes, request.buffers, nullptr);
    cudaStreamSynchronize(nullptr);
    CHECK(request.is_right() && fake::calls == before + 1);
}

// More workers than contexts, each with its stream, sizes of both profiles in turn; a worker has two
// calls under way at a time.
void many_workers(ckv::Bundle const& bundle) {
    ckv::Engine engine(bundle, "decode", with_contexts(3));
    std::vector<std::thread> workers;
    for (unsigned worker = 0; worker < 6; ++worker) {
        workers.emplace_back([&engine, worker] {
            std::mt19937 random(worker);
            cudaStream_t const streams[] = {fake::make_stream(), fake::make_stream()};
            for (int i = 0; i < 60; ++i) {
                auto const draw = [&](std::int64_t least, std::int64_t most) {
                    return least + static_cast<std::int64_t>(random()) % (most - least + 1);
                };
                Request first(engine.graph(), draw(1, 8), draw(1, 9), draw(0, 16));
                Request second(engine.graph(), draw(1, 8), draw(1, 9), draw(0, 16));
                first.draw(random);
                second.draw(random);
                engine.enqueue(first.sizes, first.buffers, streams[0]);
                engine.enqueue(second.sizes, second.buffers, streams[1]);
                cudaStreamSynchronize(streams[0]);
                cudaStreamSynchronize(streams[1]);
                CHECK(first.is_right() && second.is_right());
            }
            fake::destroy_stream(streams[0]);
            fake::destroy_stream(streams[1]);
        });
    }
    for (std::thread& worker : workers) {
        worker.join();
    }
    CHECK(fake::contexts >= 1 && fake::contexts <= 3);
}

void captured_calls(ckv::Bundle const& bundle) {
    std::mt19937 random(5);
    cudaStream_t const stream = fake::make_stream(), other = fake::make_stream();
    {
        ckv::Engine engine(bundle, "decode", with_contexts(2));
        Request small(engine.graph(), 1, 2, 4), large(engine.graph(), 8, 9, 16);
        ckv::CapturedCall captured(engine, large.sizes, large.buffers, stream);
        for (int i = 0; i < 30; ++i) {
            large.draw(random);
            small.draw(random);
            captured.launch(i % 2 == 0 ? stream : other);
            engine.enqueue(small.sizes, small.buffers, i % 3 == 0 ? stream : other);
            cudaStreamSynchronize(stream);
            cudaStreamSynchronize(other);
            CHECK(large.is_right() && small.is_right());
        }
        // On two streams, without waiting in between: one context, so one after the other.
        large.draw(random);
        for (int i = 0; i < 20; ++i) {
            captured.launch(i % 2 == 0 ? stream : other);
        }
        refuses(ErrorCode::kCuda, "on the default stream nothing can be", [&] {
            ckv::CapturedCall(engine, small.sizes, small.buffers, nullptr);
        });
        Request wide(engine.graph(), 1, 1, 1);
        wide.sizes["B"] = 9;
        refuses(ErrorCode::kShape, "has B = 9",
                [&] { ckv::CapturedCall(engine, wide.sizes, wide.buffers, stream); });
        {
            ckv::CapturedCall second(engine, small.sizes, small.buffers, stream);
            refuses(ErrorCode::kEngine, "all 2 contexts are held",
                    [&] { engine.enqueue(small.sizes, small.buffers, stream); });
            second.launch(other);
        }
        small.draw(random);
        engine.enqueue(small.sizes, small.buffers, stream);
        cudaStreamSynchronize(stream);
        CHECK(small.is_right());
        captured.launch(other);  // under way when all of it goes
    }
    CHECK(fake::contexts == 0);
    fake::destroy_stream(stream);
    fake::destroy_stream(other);
}

// A context whose call failed is used again behind what that call had put on its stream: its
// kernels, or the change to its profile alone.
void a_call_that_fails(ckv::Bundle const& bundle, std::string const& function) {
    std::mt19937 random(8);
    cudaStream_t const stream = fake::make_stream(), other = fake::make_stream();
    {
        ckv::Engine engine(bundle, "decode");
        Request first(engine.graph(), 8, 9, 16), second(engine.graph(), 8, 9, 16);
        second.draw(random);
        std::atomic<bool> free{false};
        fake::put(stream, [&] {
            while (!free) {
                std::this_thread::yield();
            }
        });
        int const before = fake::calls;
        fake::settings.fails = function;
        refuses(ErrorCode::kEngine, "",
                [&] { engine.enqueue(first.sizes, first.buffers, stream); });
        fake::settings = {};
        engine.enqueue(second.sizes, second.buffers, other);
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        CHECK(fake::calls == before);
        free = true;
        cudaStreamSynchronize(other);
        CHECK(second.is_right());
    }
    fake::destroy_stream(stream);
    fake::destroy_stream(other);
}

void a_thread_with_another_gpu(ckv::Bundle const& bundle) {
    ckv::Engine engine(bundle, "decode");
    Request request(engine.graph(), 1, 1, 1);
    cudaStream_t const stream = fake::make_stream();
    auto captured =
        std::make_unique<ckv::CapturedCall>(engine, request.sizes, request.buffers, stream);
    int const before = fake::calls;
    std::thread([&] {
        fake::gpu = 0;
        refuses(ErrorCode::kCuda, "the engine is on GPU 3", [&] { captured->launch(stream); });
        refuses(ErrorCode::kCuda, "the engine is on GPU 3, this thread's is 0: call cudaSetDevice",
                [&] { engine.enqueue(request.sizes, request.buffers, nullptr); });
        refuses(ErrorCode::kCuda, "the engine is on GPU 3",
                [&] { ckv::CapturedCall(engine, request.sizes, request.buffers, nullptr); });
    }).join();
    captured.reset();
    fake::destroy_stream(stream);
    CHECK(fake::calls == before && fake::contexts == 1);
}

// What was enqueued is finished before the contexts go.
void an_engine_waits_for_its_calls(ckv::Bundle const& bundle) {
    std::mt19937 random(7);
    cudaStream_t const stream = fake::make_stream();
    std::vector<std::unique_ptr<Request>> requests;
    {
        ckv::Engine engine(bundle, "decode", with_contexts(2));
        for (int i = 0; i < 10; ++i) {
            requests.push_back(std::make_unique<Request>(engine.graph(), 8, 9, 16));
            requests.back()->draw(random);
            engine.enqueue(requests.back()->sizes, requests.back()->buffers, stream);
        }
    }
    for (auto const& request : requests) {
        CHECK(request->is_right());
    }
    fake::destroy_stream(stream);
}

// A captured call keeps its engine's parts alive.
void the_engine_goes_first(ckv::Bundle const& bundle) {
    std::mt19937 random(6);
    cudaStream_t const stream = fake::make_stream();
    auto engine = std::make_unique<ckv::Engine>(bundle, "decode");
    Request request(engine->graph(), 2, 3, 4);
    {
        ckv::CapturedCall captured(*engine, request.sizes, request.buffers, stream);
        engine.reset();
        request.draw(random);
        captured.launch(stream);
        cudaStreamSynchronize(stream);
        CHECK(request.is_right());
    }
    CHECK(fake::contexts == 0);
    fake::destroy_stream(stream);
}

}  // namespace

int main(int argc, char** argv) {
    CHECK(argc == 2);
    fs::path const folder = argv[1];
    bad_engines(folder);
    every_function_that_fails(folder);
    chosen_engines(folder);
    plugins(folder);
    files_that_were_replaced(folder);
    code_inside_an_engine(folder);
    ckv::Bundle const bundle = make_bundle(folder / "good", "plan");
    sizes_outside_every_profile(bundle);
    a_call_that_fails(bundle, "enqueueV3");
    a_call_that_fails(bundle, "setTensorAddress score");
    a_thread_with_another_gpu(bundle);
    many_workers(bundle);
    CHECK(fake::contexts == 0);
    captured_calls(bundle);
    the_engine_goes_first(bundle);
    an_engine_waits_for_its_calls(bundle);
    CHECK(fake::violations == 0 && fake::objects == 0);
    CHECK(fake::calls > 700);
}
