// How ckv::Engine loads an engine, and what it says of one that can't be:
// test_engine_loading SCRATCH-FOLDER
#include <thread>

#include "requests.h"

namespace {

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
    refused(ErrorCode::kEngine, "no engine of decode that runs with TensorRT 11.1.0 on this GPU (sm86)",
            good, [](fake::Settings& now) { now.compute_capability = 86; });
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
        bool const with_runtime = std::strstr(words, "GPU") == nullptr;
        CHECK(said == (with_runtime ? "createInferRuntime" : ""));
        CHECK(fake::contexts == 0 && fake::objects == 0);
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

// Only the engine for the GPU that is present is one that TensorRT takes; no other is read.
void chosen_engines(fs::path const& folder) {
    ckv::Bundle bundle = make_bundle(folder / "chosen", "plan");
    ckv::EngineEntry other = bundle.manifest.engines[1];
    other.file = "other.engine";
    other.targets = {"sm86"};
    bundle.manifest.engines.insert(bundle.manifest.engines.begin(), other);
    ckv::Engine(bundle, "decode");
    fake::settings.compute_capability = 86;
    refuses(ErrorCode::kBundle, "other.engine is not among the files",
            [&] { ckv::Engine(bundle, "decode"); });
    add_file(bundle, other.file, "plan");
    fs::remove(bundle.file("decode.onnx"));
    ckv::Engine(bundle, "decode");
    ckv::EngineOptions options;
    options.file = "decode.onnx";
    refuses(ErrorCode::kEngine, "no engine decode.onnx of decode that runs with TensorRT 11.1.0",
            [&] { ckv::Engine(bundle, "decode", options); });
    fake::settings = {};
}

void plugins(fs::path const& folder) {
    ckv::Bundle const bundle = make_bundle(folder / "good", "plan");
    ckv::EngineOptions options;
    options.plugin_library = folder / "plugin.so";
    refuses(ErrorCode::kEngine, "plugin.so: run ckv-export plugin build --out DIR",
            [&] { ckv::Engine(bundle, "decode", options); });
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
    CHECK(fake::violations == 0 && fake::objects == 0 && fake::contexts == 0);
}
