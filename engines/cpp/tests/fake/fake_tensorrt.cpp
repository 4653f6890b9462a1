// TensorRT's side: a runtime, an engine with two profiles, contexts. `stubs.h` is written by
// tests/cpp from the headers at hand; its classes end the process at every function not given here.
#include <NvInferRuntime.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <thread>
#include <vector>

#include "../../src/choose.h"
#include "fake.h"
#include "stubs.h"

using namespace nvinfer1;

namespace {

ckv::GraphSpec const& graph() {
    static auto const manifest = ckv::parse_manifest(fake::manifest(), "sample");
    return manifest.graph("decode");
}

ckv::TensorSpec const* find(std::string const& name) {
    for (auto const* tensors : {&graph().inputs, &graph().outputs}) {
        for (ckv::TensorSpec const& tensor : *tensors) {
            if (tensor.name == name && name != fake::settings.missing_tensor) {
                return &tensor;
            }
        }
    }
    return nullptr;
}

// Profile 0: up to 4 candidates; profile 1: 5 to 9. What else there is, in both. One input alone
// takes no user, and more events than the others.
std::int64_t limit(std::string const& axis, bool wide, int profile, OptProfileSelector which) {
    bool const least = which == OptProfileSelector::kMIN;
    if (axis == "C") {
        return profile == 0 ? (least ? 1 : 4) : (least ? 5 : 9);
    }
    return axis == "B" ? (least ? !wide : 8) : (least ? 0 : wide ? 20 : 16);
}

Dims profile_shape(ckv::TensorSpec const& tensor, int profile, OptProfileSelector which) {
    Dims dims{};
    for (ckv::Axis const& axis : tensor.axes) {
        dims.d[dims.nbDims++] =
            axis.name.empty()
                ? axis.size
                : limit(axis.name, tensor.name == "history_mask", profile, which);
    }
    return dims;
}

// The first logger of those that runtimes have, for what belongs to none of them.
ILogger* process_logger = nullptr;
std::atomic<int> runtimes{0};

bool fails(std::string const& function, ILogger* logger = process_logger) {
    if (fake::settings.remarks) {
        logger->log(ILogger::Severity::kERROR, function.c_str());
    }
    return fake::settings.fails == function;
}

struct Call {
    std::map<std::string, void*> addresses;
    std::map<std::string, Dims> shapes;

    template <typename T>
    T const* input(char const* name) const {
        return static_cast<T const*>(addresses.at(name));
    }

    void run() const {
        Dims const candidates = shapes.at("candidate_item_id");
        std::int64_t const users = candidates.d[0], count = candidates.d[1];
        std::int64_t const events = shapes.at("history_item_id").d[1];
        std::int64_t const cached = shapes.at("cache_k_user").d[2];
        auto* const score = static_cast<float*>(addresses.at("score"));
        for (std::int64_t b = 0; b < users; ++b) {
            float sum = 0;
            for (std::int64_t e = 0; e < events; ++e) {
                sum += static_cast<float>(input<int>("history_item_id")[b * events + e]);
            }
            for (std::int64_t e = 0; e < cached; ++e) {
                sum += input<float>("cache_k_user")[2 * (b * cached + e)];
            }
            for (std::int64_t c = 0; c < count; ++c) {
                std::int64_t const at = b * count + c;
                score[at] = sum + static_cast<float>(input<int>("candidate_item_id")[at]);
            }
        }
    }
};

class Context : public IExecutionContext, public ExecutionContextStubs {
public:
    Context() {
        mImpl = this;
        ++fake::contexts;
    }
    ~Context() noexcept override {
        fake::violations += busy_;
        --fake::contexts;
    }
    IExecutionContext* getPImpl() noexcept override { return this; }

    bool setOptimizationProfileAsync(std::int32_t profile, cudaStream_t) noexcept override {
        profile_ = profile;
        return !fails(__func__);
    }
    bool setInputShape(char const* name, Dims const& dims) noexcept override {
        ckv::TensorSpec const& tensor = *find(name);
        fake::violations += tensor.name == "score";
        Dims const least = profile_shape(tensor, profile_, OptProfileSelector::kMIN);
        Dims const most = profile_shape(tensor, profile_, OptProfileSelector::kMAX);
        for (int i = 0; i < dims.nbDims; ++i) {
            fake::violations += dims.d[i] < least.d[i] || dims.d[i] > most.d[i];
        }
        fresh_ |= call_.shapes.count(name) == 0 ||
                  !std::equal(dims.d, dims.d + dims.nbDims, call_.shapes[name].d);
        call_.shapes[name] = dims;
        return !fails(std::string("setInputShape ") + name);
    }
    bool setTensorAddress(char const* name, void* address) noexcept override {
        fake::violations += address == nullptr;
        call_.addresses[name] = address;
        return !fails(std::string("setTensorAddress ") + name);
    }
    bool enqueueV3(cudaStream_t stream) noexcept override {
        // The first call after other shapes does what no graph can hold.
        bool const capturing = fake::is_capturing(stream);
        fake::violations += fresh_ && capturing;
        fresh_ = false;
        fake::put(stream, [this, call = call_] {
            fake::violations += busy_.exchange(true);
            std::this_thread::sleep_for(std::chrono::microseconds(50));
            call.run();
            ++fake::calls;
            busy_ = false;
        });
        return !fails(capturing ? "enqueueV3 in a capture" : "enqueueV3");
    }

private:
    std::int32_t profile_ = 0;
    Call call_;
    bool fresh_ = false;
    std::atomic<bool> busy_{false};
};

class FakeEngine : public ICudaEngine, public CudaEngineStubs {
public:
    FakeEngine() { mImpl = this; }
    ICudaEngine* getPImpl() noexcept override { return this; }
    std::int32_t getNbIOTensors() const noexcept override {
        return 9 + fake::settings.more_tensors;
    }
    std::int32_t getNbOptimizationProfiles() const noexcept override { return 2; }
    TensorIOMode getTensorIOMode(char const* name) const noexcept override {
        return find(name) == nullptr                  ? TensorIOMode::kNONE
               : std::strcmp(name, "score") == 0 ? TensorIOMode::kOUTPUT
                                                      : TensorIOMode::kINPUT;
    }
    DataType getTensorDataType(char const* name) const noexcept override {
        ckv::ElementType const type = find(name)->type;
        return name == fake::settings.other_type || type == ckv::ElementType::kFloat32
                   ? DataType::kFLOAT
               : type == ckv::ElementType::kInt32   ? DataType::kINT32
               : type == ckv::ElementType::kFloat16 ? DataType::kHALF
                                                    : DataType::kBOOL;
    }
    Dims getTensorShape(char const* name) const noexcept override {
        Dims dims = profile_shape(*find(name), 0, OptProfileSelector::kMAX);
        dims.nbDims += name == fake::settings.other_rank;
        return dims;
    }
    Dims getProfileShape(char const* name, std::int32_t profile,
                         OptProfileSelector which) const noexcept override {
        return profile_shape(*find(name), profile, which);
    }
    IExecutionContext* createExecutionContext(
        ExecutionContextAllocationStrategy) noexcept override {
        return fails(__func__) ? nullptr : new Context;
    }
};

class Runtime : public IRuntime, public RuntimeStubs {
public:
    explicit Runtime(ILogger& logger) : logger_(logger) {
        mImpl = this;
        if (++runtimes == 1) {
            process_logger = &logger;
        } else if (process_logger != &logger) {
            logger.log(ILogger::Severity::kWARNING, "this logger differs from that of the process");
        }
    }
    ~Runtime() noexcept override { --runtimes; }
    IRuntime* getPImpl() noexcept override { return this; }
    void setEngineHostCodeAllowed(bool allowed) noexcept override { allowed_ = allowed; }
    ICudaEngine* deserializeCudaEngine(void const* plan, std::size_t size) noexcept override {
        if (fails(__func__)) {
            return nullptr;
        }
        std::string const text(static_cast<char const*>(plan), size);
        if (text == "plan" || (text == "plan with code" && allowed_)) {
            return new FakeEngine;
        }
        logger_.log(ILogger::Severity::kVERBOSE, "looking");
        logger_.log(ILogger::Severity::kINFO, "at it");
        logger_.log(ILogger::Severity::kWARNING, "strange");
        logger_.log(ILogger::Severity::kERROR, "magic tag differs");
        logger_.log(ILogger::Severity::kINTERNAL_ERROR, "and more");
        return nullptr;
    }

private:
    ILogger& logger_;
    bool allowed_ = false;
};

class Registry : public PluginRegistryStubs {
public:
    PluginLibraryHandle loadLibrary(AsciiChar const* path) noexcept override {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        ++fake::plugin_loads;
        return fails(__func__) ? nullptr : this;
    }
};

}  // namespace

extern "C" {

void* createInferRuntime_INTERNAL(void* logger, std::int32_t) noexcept {
    if (fails("createInferRuntime", static_cast<ILogger*>(logger))) {
        return nullptr;
    }
    return static_cast<IRuntime*>(new Runtime(*static_cast<ILogger*>(logger)));
}

IPluginRegistry* getPluginRegistry() noexcept {
    static Registry registry;
    return &registry;
}

std::int32_t getInferLibVersion() noexcept { return 110100; }

}  // extern "C"
