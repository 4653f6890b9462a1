// Graphs run by ONNX Runtime on the CPU, with the caller's memory.
#pragma once

#include <ckv/manifest.h>
#include <ckv/tensor.h>

#include <memory>
#include <string>

namespace ckv {

struct SessionOptions {
    // Threads within one operator; with 1 a call runs in its caller's thread alone.
    int threads = 1;
};

// One graph of a bundle. Every member function may be called from any thread.
class Session {
public:
    // Load the graph's ONNX file, which needs no library of ours. Throws kSession where ONNX Runtime
    // can't: older than 1.23, say, or products of bf16 numbers, which it doesn't have on a CPU.
    Session(Bundle const& bundle, std::string const& graph, SessionOptions const& options = {});
    ~Session();
    Session(Session const&) = delete;
    Session& operator=(Session const&) = delete;

    GraphSpec const& graph() const;

    // Run one call; the outputs are written when this returns. Buffers are in host memory. Throws
    // kShape before anything runs, and kSession for what ONNX Runtime refuses, such as an id outside
    // its table.
    //
    // While it runs, this thread takes numbers below 1.2e-38 for zero: a softmax gives masked events
    // such numbers, with which Intel's processors are slow.
    void run(Sizes const& sizes, Buffers const& buffers) const;

private:
    struct State;
    std::unique_ptr<State const> state_;
};

// "1.23.2": the ONNX Runtime that this program is linked to.
std::string onnxruntime_version();

}  // namespace ckv
