// What is checked of a call and of an engine before TensorRT sees them.
#pragma once

#include <ckv/engine.h>
#include <ckv/manifest.h>
#include <ckv/tensor.h>

#include <string>
#include <utility>
#include <vector>

namespace ckv::detail {

// One tensor of a call: its shape, and an address that is never null.
struct Bound {
    TensorSpec const* tensor = nullptr;
    bool input = false;
    std::vector<std::int64_t> shape;
    void* address = nullptr;
};

// Every tensor of the graph once. Throws kShape for a buffer that is missing, unknown, or null
// although it has elements. `nothing` stands for the address of a tensor without any: TensorRT
// takes no null.
std::vector<Bound> bind_all(GraphSpec const& graph, Sizes const& sizes, Buffers const& buffers,
                            void* nothing);

// The library that this program is linked to, by the number that getInferLibVersion() gives.
struct Library {
    int version = 0;

    bool is_rtx() const;
    std::string backend() const;  // "tensorrt" or "tensorrt_rtx"
    std::string label() const;    // "TensorRT 11.1.0"
    std::string dotted() const;   // "11.1.0"
};

// The engine of `graph` to load with `library` on a GPU of this compute capability (major, minor):
// as EngineOptions::file says. Throws kEngine where none runs, with those that there are and the
// command that builds one.
EngineEntry const& choose_engine(Bundle const& bundle, std::string const& graph,
                                 EngineOptions const& options, Library library,
                                 std::pair<int, int> gpu);

}  // namespace ckv::detail
