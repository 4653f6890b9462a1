#include "call.h"

#include <ckv/error.h>

#include <algorithm>

namespace ckv::detail {
namespace {

// RTX counts from 1, TensorRT with these interfaces from 10.
constexpr int kFirstTensorRt = 100000;

[[noreturn]] void refuse(std::string const& what) { throw Error(ErrorCode::kEngine, what); }

std::string build_command(Bundle const& bundle, Library library) {
    return "run ckv-export build " + bundle.folder.string() + " --backend " + library.backend();
}

bool same_release(std::string const& version, std::string const& dotted) {
    return version == dotted || version.compare(0, dotted.size() + 1, dotted + ".") == 0;
}

}  // namespace

std::vector<Bound> bind_all(GraphSpec const& graph, Sizes const& sizes, Buffers const& buffers,
                            void* nothing) {
    std::vector<Bound> bound;
    for (auto const* tensors : {&graph.inputs, &graph.outputs}) {
        for (TensorSpec const& tensor : *tensors) {
            auto const found = buffers.find(tensor.name);
            if (found == buffers.end()) {
                throw Error(ErrorCode::kShape, "a call of " + graph.name + " needs a buffer for '" +
                                                   tensor.name + "'");
            }
            void* address = found->second;
            if (address == nullptr) {
                if (tensor.bytes(sizes) > 0) {
                    throw Error(ErrorCode::kShape,
                                "the buffer of '" + tensor.name + "' is null, it must have " +
                                    std::to_string(tensor.bytes(sizes)) + " bytes");
                }
                address = nothing;
            }
            bound.push_back({&tensor, tensors == &graph.inputs, tensor.shape(sizes), address});
        }
    }
    if (bound.size() != buffers.size()) {
        for (auto const& each : buffers) {
            graph.tensor(each.first);
        }
    }
    return bound;
}

bool Library::is_rtx() const { return version < kFirstTensorRt; }

std::string Library::backend() const { return is_rtx() ? "tensorrt_rtx" : "tensorrt"; }

std::string Library::dotted() const {
    return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
           std::to_string(version % 100);
}

std::string Library::label() const {
    return (is_rtx() ? "TensorRT for RTX " : "TensorRT ") + dotted();
}

EngineEntry const& choose_engine(Bundle const& bundle, std::string const& graph,
                                 std::string const& file, Library library, bool any_version) {
    bundle.manifest.graph(graph);
    EngineEntry const* chosen = nullptr;
    for (EngineEntry const& engine : bundle.manifest.engines) {
        bool const wanted =
            file.empty() ? engine.backend == library.backend() : engine.file == file;
        if (engine.graph == graph && wanted && chosen == nullptr) {
            chosen = &engine;
        }
    }
    if (chosen == nullptr) {
        refuse("the bundle " + bundle.folder.string() + " has no " +
               (file.empty() ? "engine of " + graph + " for " + library.label()
                             : "engine " + file + " of " + graph) +
               ": " + build_command(bundle, library));
    }
    for (std::string const& needed : {chosen->file, chosen->plugin_file}) {
        if (!needed.empty() && bundle.manifest.files.count(needed) == 0) {
            refuse(needed + " is not among the files of its bundle");
        }
    }
    // Whether a version-compatible engine runs here is TensorRT's to say.
    bool const runs = any_version || chosen->version_compatible ||
                      same_release(chosen->backend_version, library.dotted());
    if (chosen->backend != library.backend() || !runs) {
        refuse("the engine " + chosen->file + " was built by " + chosen->backend + " " +
               chosen->backend_version + ", this program runs " + library.label() + ": " +
               build_command(bundle, library));
    }
    return *chosen;
}

void require_target(Bundle const& bundle, EngineEntry const& engine, Library library, int major,
                    int minor) {
    std::string const gpu = "sm" + std::to_string(major) + std::to_string(minor);
    auto const& targets = engine.targets;
    bool const from_ampere_on = engine.hardware_compatible && major >= 8;
    if (from_ampere_on || std::find(targets.begin(), targets.end(), gpu) != targets.end()) {
        return;
    }
    std::string built_for;
    for (std::string const& target : targets) {
        built_for += (built_for.empty() ? "" : ", ") + target;
    }
    refuse("the engine " + engine.file + " was built for " + built_for + ", the GPU here is " +
           gpu + ": " + build_command(bundle, library) + " --target " +
           (library.is_rtx() ? gpu : "current"));
}

}  // namespace ckv::detail
