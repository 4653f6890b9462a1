#include "choose.h"

#include <ckv/error.h>

#include <algorithm>
#include <array>
#include <charconv>

namespace ckv::detail {
namespace {

// RTX counts from 1, TensorRT with these interfaces from 10.
constexpr int kFirstTensorRt = 100000;

// Major, minor and patch: an engine is for exactly one of these.
std::array<int, 3> release(std::string const& version) {
    std::array<int, 3> numbers{};
    char const* at = version.data();
    char const* const end = at + version.size();
    for (int& number : numbers) {
        at = std::from_chars(at, end, number).ptr;
        at += at != end;  // the dot
    }
    return numbers;
}

std::string name_of(std::pair<int, int> gpu) {
    return "sm" + std::to_string(gpu.first) + std::to_string(gpu.second);
}

bool has_release(EngineEntry const& engine, Library library) {
    return release(engine.backend_version) == release(library.dotted());
}

bool runs(EngineEntry const& engine, Library library, std::pair<int, int> gpu, bool any_version) {
    bool const compatible = engine.version_compatible &&
                            release(engine.backend_version) < release(library.dotted());
    auto const& targets = engine.targets;
    bool const built_for =
        std::find(targets.begin(), targets.end(), name_of(gpu)) != targets.end() ||
        (engine.hardware_compatible && gpu.first >= 8);
    return engine.backend == library.backend() && built_for &&
           (any_version || compatible || has_release(engine, library));
}

// How far an engine that runs is from one that was built for this library and GPU alone: TensorRT
// may refuse it, it needs leave to run code, it is slower.
int distance(EngineEntry const& engine, Library library) {
    return 4 * !has_release(engine, library) + 2 * engine.version_compatible +
           engine.hardware_compatible;
}

// "decode.engine (tensorrt_rtx 1.7.1.116 for sm86 sm120)"
std::string described(EngineEntry const& engine) {
    std::string text = engine.file + " (" + engine.backend + " " + engine.backend_version + " for";
    for (std::string const& target : engine.targets) {
        text += " " + target;
    }
    return text + ")";
}

[[noreturn]] void refuse_all(Bundle const& bundle, std::string const& graph,
                             std::string const& file, Library library, std::pair<int, int> gpu) {
    std::string present;
    for (EngineEntry const& engine : bundle.manifest.engines) {
        if (engine.graph == graph) {
            present += (present.empty() ? "" : ", ") + described(engine);
        }
    }
    std::string const folder = bundle.folder.string();
    std::string const target = library.is_rtx() ? name_of(gpu) : "current";
    throw Error(ErrorCode::kEngine,
                "the bundle " + folder + " has no engine " + (file.empty() ? "" : file + " ") +
                    "of " + graph + " that runs with " + library.label() + " on this GPU (" +
                    name_of(gpu) + "), it has " + (present.empty() ? "none" : present) +
                    ": run ckv-export build " + folder + " --backend " + library.backend() +
                    " --target " + target);
}

}  // namespace

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
                                 EngineOptions const& options, Library library,
                                 std::pair<int, int> gpu) {
    EngineEntry const* chosen = nullptr;
    for (EngineEntry const& engine : bundle.manifest.engines) {
        bool const wanted =
            engine.graph == graph && (options.file.empty() || engine.file == options.file);
        if (wanted && runs(engine, library, gpu, options.allow_other_version) &&
            (chosen == nullptr || distance(engine, library) < distance(*chosen, library))) {
            chosen = &engine;
        }
    }
    if (chosen == nullptr) {
        refuse_all(bundle, graph, options.file, library, gpu);
    }
    return *chosen;
}

}  // namespace ckv::detail
