#include <ckv/error.h>
#include <ckv/session.h>
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <vector>

#include "bind.h"
#include "denormals.h"

namespace ckv {
namespace {

// The C API's number is the minor version that it came with; older ones can't run the graphs.
constexpr std::uint32_t kOldest = 23;

// The C API, not the C++ one: that keeps its table of functions where a program that uses it too
// would share it.
OrtApi const& api() {
    constexpr std::uint32_t kNeeded = std::max<std::uint32_t>(ORT_API_VERSION, kOldest);
    static OrtApi const* const table = OrtGetApiBase()->GetApi(kNeeded);
    if (table == nullptr) {
        throw Error(ErrorCode::kSession, "this program needs ONNX Runtime 1." +
                                             std::to_string(kNeeded) + " or newer, it runs with " +
                                             onnxruntime_version());
    }
    return *table;
}

template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

void check(OrtStatus* status, std::string const& what) {
    if (status == nullptr) {
        return;
    }
    Owned<OrtStatus> const owned{status, api().ReleaseStatus};
    std::string message = api().GetErrorMessage(status);
    if (api().GetErrorCode(status) == ORT_NOT_IMPLEMENTED) {
        message += " (it has no products of bf16 numbers on a CPU: export with --precision fp16 or "
                   "fp32 what is to run there)";
    }
    throw Error(ErrorCode::kSession, "ONNX Runtime " + onnxruntime_version() + " can't " + what +
                                         ": " + message);
}

// What a function of the C API puts at the address that it is given.
template <typename T, typename Make>
Owned<T> made(void (*release)(T*), std::string const& what, Make const& make) {
    T* object = nullptr;
    check(make(&object), what);
    return {object, release};
}

ONNXTensorElementDataType data_type(ElementType type) {
    switch (type) {
        case ElementType::kBool: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
        case ElementType::kInt32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
        case ElementType::kFloat16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
        case ElementType::kFloat32: break;
    }
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

Owned<OrtEnv> make_environment() {
    return made<OrtEnv>(api().ReleaseEnv, "start", [](OrtEnv** to) {
        return api().CreateEnv(ORT_LOGGING_LEVEL_ERROR, "ckv", to);
    });
}

Owned<OrtMemoryInfo> describe_host() {
    return made<OrtMemoryInfo>(api().ReleaseMemoryInfo, "use host memory", [](OrtMemoryInfo** to) {
        return api().CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, to);
    });
}

Owned<OrtSession> load(OrtEnv const* environment, std::filesystem::path const& path, int threads) {
    std::string const loading = "load " + path.string();
    auto const options = made<OrtSessionOptions>(
        api().ReleaseSessionOptions, loading,
        [](OrtSessionOptions** to) { return api().CreateSessionOptions(to); });
    check(api().SetIntraOpNumThreads(options.get(), std::max(threads, 1)), loading);
    for (auto const& [key, value] : {std::pair("session.intra_op.allow_spinning", "0"),
                                     {"session.set_denormal_as_zero", "1"}}) {
        check(api().AddSessionConfigEntry(options.get(), key, value), loading);
    }
    // The option of denormals changes the thread that makes a process's first session, for good.
    detail::DenormalsAreZero const restored_after;
    return made<OrtSession>(api().ReleaseSession, loading, [&](OrtSession** to) {
        return api().CreateSession(environment, path.c_str(), options.get(), to);
    });
}

}  // namespace

struct Session::State {
    GraphSpec graph;
    Owned<OrtEnv> environment;
    Owned<OrtMemoryInfo> host;
    Owned<OrtSession> session;
};

Session::Session(Bundle const& bundle, std::string const& graph, SessionOptions const& options) {
    GraphSpec spec = bundle.manifest.graph(graph);
    auto environment = make_environment();
    auto session = load(environment.get(), bundle.file(graph + ".onnx"), options.threads);
    state_.reset(new State{std::move(spec), std::move(environment), describe_host(),
                           std::move(session)});
}

Session::~Session() = default;

GraphSpec const& Session::graph() const { return state_->graph; }

void Session::run(Sizes const& sizes, Buffers const& buffers) const {
    std::string const running = "run " + graph().name;
    std::uint64_t nothing = 0;
    std::vector<Owned<OrtValue>> values;
    std::vector<char const*> names;
    for (detail::Bound const& each : detail::bind_all(graph(), sizes, buffers, &nothing)) {
        names.push_back(each.tensor->name.c_str());
        values.push_back(made<OrtValue>(api().ReleaseValue, running, [&](OrtValue** to) {
            return api().CreateTensorWithDataAsOrtValue(
                state_->host.get(), each.address, each.tensor->bytes(sizes), each.shape.data(),
                each.shape.size(), data_type(each.tensor->type), to);
        }));
    }
    std::vector<OrtValue*> tensors;
    for (auto const& value : values) {
        tensors.push_back(value.get());
    }
    std::size_t const inputs = graph().inputs.size();
    detail::DenormalsAreZero const fast;
    check(api().Run(state_->session.get(), nullptr, names.data(), tensors.data(), inputs,
                    names.data() + inputs, graph().outputs.size(), tensors.data() + inputs),
          running);
}

std::string onnxruntime_version() { return OrtGetApiBase()->GetVersionString(); }

}  // namespace ckv
