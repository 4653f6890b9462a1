// Which of a bundle's engines is loaded.
#pragma once

#include <ckv/engine.h>
#include <ckv/manifest.h>

#include <string>
#include <utility>

namespace ckv::detail {

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
