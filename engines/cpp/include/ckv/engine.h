// Engines run by TensorRT or TensorRT for RTX, with the caller's device memory and stream.
#pragma once

#include <ckv/manifest.h>
#include <ckv/tensor.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

struct CUstream_st;  // cudaStream_t is a pointer to it

namespace ckv {

enum class LogLevel { kError, kWarning, kInfo };

struct EngineOptions {
    // Path of the engine in the bundle; empty: of those of the graph that run with the linked library
    // on this GPU, the first, but one that is version- or hardware-compatible, or of another
    // version, only where there is no other.
    std::string file;
    // The plugin library of the dynamic flavour (plugins/README.md), for engines that need it;
    // empty: the one in the bundle, if the engine's entry names one.
    std::filesystem::path plugin_library;
    // Let a version-compatible engine run the code that it carries in this process: a runtime, and
    // perhaps a plugin library.
    bool allow_host_code = false;
    // Most execution contexts, that is, most calls running at once; at least one.
    int contexts = 1;
    // Leave it to TensorRT whether it runs an engine that another version built.
    bool allow_other_version = false;
    // Called from any thread, at any time until the engine is gone.
    std::function<void(LogLevel, std::string const&)> log;
};

struct EngineState;

// One graph, on the GPU that was the thread's when it was made. Every member function may be called
// from any thread with that GPU; throws kCuda on another.
class Engine {
public:
    // Choose an engine for the linked library and this GPU, load its plugin and it, check its
    // tensors. Throws kEngine or kCuda, saying what to do, and kBundle for a file whose hash isn't
    // that of the manifest (any more).
    Engine(Bundle const& bundle, std::string const& graph, EngineOptions const& options = {});
    ~Engine();
    Engine(Engine const&) = delete;
    Engine& operator=(Engine const&) = delete;

    GraphSpec const& graph() const;

    // Put one call on `stream`, and return at once; waits for a free context. Buffers, in device
    // memory, must stay until the stream has got there, also where TensorRT refuses (kEngine) what
    // it has begun. Throws kShape before anything is enqueued.
    void enqueue(Sizes const& sizes, Buffers const& buffers, CUstream_st* stream);

private:
    friend class CapturedCall;
    std::shared_ptr<EngineState> state_;
};

// A call of fixed sizes and buffers as a CUDA graph: one per worker and shape bucket. Holds a
// context of the engine as long as it lives. Use it from one thread, with the engine's GPU (throws
// kCuda on another), on one stream at a time.
class CapturedCall {
public:
    // Runs the call once on `stream`, which must not be the default one, before capturing it; the
    // buffers must hold valid inputs (zeros will do).
    CapturedCall(Engine& engine, Sizes const& sizes, Buffers const& buffers, CUstream_st* stream);
    ~CapturedCall();
    CapturedCall(CapturedCall const&) = delete;
    CapturedCall& operator=(CapturedCall const&) = delete;

    void launch(CUstream_st* stream);

private:
    struct State;
    std::unique_ptr<State> state_;
};

// "TensorRT 11.1.0" or "TensorRT for RTX 1.7.1": the library that this program is linked to.
std::string tensorrt_version();

}  // namespace ckv
