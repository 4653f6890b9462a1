#include <ckv/buckets.h>
#include <ckv/engine.h>
#include <ckv/error.h>

#include <algorithm>

#include "bind.h"
#include "choose.h"
#include "pool.h"
#include "tensorrt_runtime.h"

namespace ckv {
namespace {

using nvinfer1::OptProfileSelector;

constexpr std::size_t kNothingBytes = 256;

[[noreturn]] void refuse(std::string const& what) {
    throw Error(ErrorCode::kEngine, what + detail::take_logged_error());
}

nvinfer1::DataType data_type(ElementType type) {
    switch (type) {
        case ElementType::kBool: return nvinfer1::DataType::kBOOL;
        case ElementType::kInt32: return nvinfer1::DataType::kINT32;
        case ElementType::kFloat16: return nvinfer1::DataType::kHALF;
        case ElementType::kFloat32: break;
    }
    return nvinfer1::DataType::kFLOAT;
}

nvinfer1::Dims dims_of(std::vector<std::int64_t> const& shape) {
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<std::int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), dims.d);
    return dims;
}

// A context, and the end of the last work that was put on a stream with it.
struct Slot {
    std::unique_ptr<nvinfer1::IExecutionContext> context;
    cudaEvent_t done = nullptr;
    int profile = 0;  // what a new context has

    Slot() = default;
    Slot(Slot const&) = delete;
    Slot& operator=(Slot const&) = delete;
    ~Slot() {
        // A context must not go while its work is under way.
        if (done != nullptr) {
            cudaEventSynchronize(done);
            cudaEventDestroy(done);
        }
    }
};

}  // namespace

struct EngineState {
    EngineState(Bundle const& bundle, GraphSpec spec, EngineOptions const& options);

    // Order `stream` behind the slot's last work and give the context its profile, shapes and
    // addresses. Throws kShape before the stream is touched.
    void prepare(Slot& slot, Sizes const& sizes, Buffers const& buffers, cudaStream_t stream);

    void run(Slot& slot, cudaStream_t stream);

    // Throws kCuda where this thread's GPU is another than the engine's.
    void check_thread() const;

    // A context, for a call or for good, for a thread with the engine's GPU.
    detail::Pool<Slot>::Lease take();
    detail::Pool<Slot>::Lease hold();

    GraphSpec graph;
    detail::Log log;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
    std::vector<Profile> profiles;
    int gpu = 0;
    std::unique_ptr<void, decltype(&cudaFree)> nothing{nullptr, &cudaFree};

private:
    void deserialize(std::filesystem::path const& path, std::vector<char> const& plan);
    void check_tensors() const;
    void read_profiles();
    std::unique_ptr<Slot> make_slot();

    // Last, so that contexts go before their engine.
    detail::Pool<Slot> pool;
};

EngineState::EngineState(Bundle const& bundle, GraphSpec spec, EngineOptions const& options)
    : graph(std::move(spec)),
      log(options.log),
      pool(static_cast<std::size_t>(std::max(options.contexts, 1)),
           [this] { return make_slot(); }) {
    auto const capability = detail::present_gpu();
    gpu = detail::current_gpu();
    EngineEntry const& entry = detail::choose_engine(bundle, graph.name, options,
                                                     detail::linked_library(), capability);
    detail::take_logged_error();
    runtime = log.make_runtime();
    if (runtime == nullptr) {
        refuse(tensorrt_version() + " can't make a runtime");
    }
    if (options.allow_host_code) {
        runtime->setEngineHostCodeAllowed(true);
    } else if (entry.version_compatible) {
        refuse("the engine " + entry.file + " is version-compatible, it carries code that would "
               "run in this process: set EngineOptions::allow_host_code");
    }
    if (!options.plugin_library.empty()) {
        detail::load_plugins(options.plugin_library);
    } else if (!entry.plugin_file.empty()) {
        bundle.read(entry.plugin_file);
        detail::load_plugins(bundle.file(entry.plugin_file));
    }
    deserialize(bundle.file(entry.file), bundle.read(entry.file));
    check_tensors();
    read_profiles();
    void* memory = nullptr;
    detail::check_cuda(cudaMalloc(&memory, kNothingBytes), "allocating device memory");
    nothing.reset(memory);
}

void EngineState::deserialize(std::filesystem::path const& path, std::vector<char> const& plan) {
    detail::take_logged_error();
    engine.reset(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    if (engine == nullptr) {
        refuse(tensorrt_version() + " can't load the engine " + path.string());
    }
}

void EngineState::check_tensors() const {
    std::size_t const wanted = graph.inputs.size() + graph.outputs.size();
    if (static_cast<std::size_t>(engine->getNbIOTensors()) != wanted) {
        refuse("the engine has " + std::to_string(engine->getNbIOTensors()) +
               " tensors, the graph " + graph.name + " has " + std::to_string(wanted));
    }
    for (auto const* tensors : {&graph.inputs, &graph.outputs}) {
        auto const mode = tensors == &graph.inputs ? nvinfer1::TensorIOMode::kINPUT
                                                   : nvinfer1::TensorIOMode::kOUTPUT;
        for (TensorSpec const& tensor : *tensors) {
            char const* const name = tensor.name.c_str();
            if (engine->getTensorIOMode(name) != mode ||
                engine->getTensorDataType(name) != data_type(tensor.type) ||
                engine->getTensorShape(name).nbDims !=
                    static_cast<std::int32_t>(tensor.axes.size())) {
                refuse("the engine's tensor '" + tensor.name + "' is not that of the graph " +
                       graph.name);
            }
        }
    }
}

void EngineState::read_profiles() {
    for (int p = 0; p < engine->getNbOptimizationProfiles(); ++p) {
        Profile profile;
        for (TensorSpec const& input : graph.inputs) {
            char const* const name = input.name.c_str();
            auto const least = engine->getProfileShape(name, p, OptProfileSelector::kMIN);
            auto const usual = engine->getProfileShape(name, p, OptProfileSelector::kOPT);
            auto const most = engine->getProfileShape(name, p, OptProfileSelector::kMAX);
            for (std::size_t i = 0; i < input.axes.size(); ++i) {
                if (input.axes[i].name.empty() || least.nbDims <= static_cast<std::int32_t>(i)) {
                    continue;
                }
                auto const [at, fresh] = profile.try_emplace(
                    input.axes[i].name, Range{least.d[i], usual.d[i], most.d[i]});
                if (!fresh) {
                    at->second.min = std::max(at->second.min, least.d[i]);
                    at->second.max = std::min(at->second.max, most.d[i]);
                }
            }
        }
        profiles.push_back(std::move(profile));
    }
}

std::unique_ptr<Slot> EngineState::make_slot() {
    auto slot = std::make_unique<Slot>();
    detail::take_logged_error();
    slot->context.reset(engine->createExecutionContext());
    if (slot->context == nullptr) {
        refuse(tensorrt_version() + " can't make a context of " + graph.name);
    }
    detail::check_cuda(cudaEventCreateWithFlags(&slot->done, cudaEventDisableTiming),
                       "making an event");
    return slot;
}

void EngineState::prepare(Slot& slot, Sizes const& sizes, Buffers const& buffers,
                          cudaStream_t stream) {
    auto const bound = detail::bind_all(graph, sizes, buffers, nothing.get());
    auto const profile = static_cast<int>(choose_profile(graph, profiles, sizes));
    detail::take_logged_error();
    // Never recorded, an event is done. The context's memory is in use until then.
    detail::check_cuda(cudaStreamWaitEvent(stream, slot.done, 0), "waiting for a context");
    if (slot.profile != profile) {
        bool const set = slot.context->setOptimizationProfileAsync(profile, stream);
        // This call may end here, and the context serve another one.
        detail::check_cuda(cudaEventRecord(slot.done, stream), "recording an event");
        if (!set) {
            refuse("TensorRT refuses profile " + std::to_string(profile) + " of " + graph.name);
        }
        slot.profile = profile;
    }
    for (detail::Bound const& each : bound) {
        char const* const name = each.tensor->name.c_str();
        if (each.input && !slot.context->setInputShape(name, dims_of(each.shape))) {
            refuse("TensorRT refuses the shape of '" + each.tensor->name + "'");
        }
        if (!slot.context->setTensorAddress(name, each.address)) {
            refuse("TensorRT refuses the address of '" + each.tensor->name + "'");
        }
    }
}

void EngineState::run(Slot& slot, cudaStream_t stream) {
    bool const enqueued = slot.context->enqueueV3(stream);
    // Also behind a call that failed: its first kernels may be on the stream.
    cudaError_t const recorded = cudaEventRecord(slot.done, stream);
    if (!enqueued) {
        refuse(tensorrt_version() + " can't run " + graph.name);
    }
    detail::check_cuda(recorded, "recording an event");
}

void EngineState::check_thread() const {
    int const current = detail::current_gpu();
    if (current != gpu) {
        throw Error(ErrorCode::kCuda, "the engine is on GPU " + std::to_string(gpu) +
                                          ", this thread's is " + std::to_string(current) +
                                          ": call cudaSetDevice first");
    }
}

detail::Pool<Slot>::Lease EngineState::take() {
    check_thread();
    return pool.take();
}

detail::Pool<Slot>::Lease EngineState::hold() {
    check_thread();
    return pool.hold();
}

Engine::Engine(Bundle const& bundle, std::string const& graph, EngineOptions const& options)
    : state_(std::make_shared<EngineState>(bundle, bundle.manifest.graph(graph), options)) {}

Engine::~Engine() = default;

GraphSpec const& Engine::graph() const { return state_->graph; }

void Engine::enqueue(Sizes const& sizes, Buffers const& buffers, CUstream_st* stream) {
    auto const slot = state_->take();
    state_->prepare(*slot, sizes, buffers, stream);
    state_->run(*slot, stream);
}

struct CapturedCall::State {
    explicit State(std::shared_ptr<EngineState> owner)
        : engine(std::move(owner)), slot(engine->hold()) {}
    ~State() {
        if (executable != nullptr) {
            cudaEventSynchronize(slot->done);
            cudaGraphExecDestroy(executable);
        }
    }

    void capture(cudaStream_t stream);

    std::shared_ptr<EngineState> engine;
    detail::Pool<Slot>::Lease slot;
    cudaGraphExec_t executable = nullptr;
};

void CapturedCall::State::capture(cudaStream_t stream) {
    detail::check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                       "capturing a call (on the default stream nothing can be)");
    bool const enqueued = slot->context->enqueueV3(stream);
    cudaGraph_t graph = nullptr;
    cudaError_t const ended = cudaStreamEndCapture(stream, &graph);
    if (!enqueued) {
        cudaGraphDestroy(graph);
        refuse(tensorrt_version() + " can't capture " + engine->graph.name);
    }
    detail::check_cuda(ended, "capturing a call");
    cudaError_t const made = cudaGraphInstantiateWithFlags(&executable, graph, 0);
    cudaGraphDestroy(graph);
    detail::check_cuda(made, "preparing a captured call");
}

CapturedCall::CapturedCall(Engine& engine, Sizes const& sizes, Buffers const& buffers,
                           CUstream_st* stream)
    : state_(std::make_unique<State>(engine.state_)) {
    state_->engine->prepare(*state_->slot, sizes, buffers, stream);
    // The first run after new shapes does work that a graph can't hold.
    state_->engine->run(*state_->slot, stream);
    detail::check_cuda(cudaStreamSynchronize(stream), "running a call before its capture");
    state_->capture(stream);
}

CapturedCall::~CapturedCall() = default;

void CapturedCall::launch(CUstream_st* stream) {
    state_->engine->check_thread();
    Slot& slot = *state_->slot;
    detail::check_cuda(cudaStreamWaitEvent(stream, slot.done, 0), "waiting for a context");
    detail::check_cuda(cudaGraphLaunch(state_->executable, stream), "launching a captured call");
    detail::check_cuda(cudaEventRecord(slot.done, stream), "recording an event");
}

}  // namespace ckv
