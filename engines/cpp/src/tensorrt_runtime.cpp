#include "tensorrt_runtime.h"

#include <ckv/error.h>

#include <mutex>
#include <set>

// Declared in a header of the builder.
extern "C" std::int32_t getInferLibVersion() noexcept;

namespace ckv {
namespace detail {
namespace {

thread_local std::string logged_error;

LogLevel level_of(nvinfer1::ILogger::Severity severity) {
    switch (severity) {
        case nvinfer1::ILogger::Severity::kINTERNAL_ERROR:
        case nvinfer1::ILogger::Severity::kERROR: return LogLevel::kError;
        case nvinfer1::ILogger::Severity::kWARNING: return LogLevel::kWarning;
        default: return LogLevel::kInfo;
    }
}

}  // namespace

void Log::log(Severity severity, char const* message) noexcept {
    // Nothing may be thrown into TensorRT: a message that finds no memory is lost.
    try {
        LogLevel const level = level_of(severity);
        if (level == LogLevel::kError && logged_error.empty()) {
            logged_error = message;
        }
        if (sink_ && (level == LogLevel::kError || !starting_)) {
            sink_(level, message);
        }
    } catch (...) {
    }
}

std::unique_ptr<nvinfer1::IRuntime> Log::make_runtime() {
    [[maybe_unused]] static auto* const first = nvinfer1::createInferRuntime(*new Log({}));
    starting_ = true;  // TensorRT remarks that this logger is another one
    std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(*this));
    starting_ = false;
    return runtime;
}

std::string take_logged_error() {
    std::string const error = std::exchange(logged_error, {});
    return error.empty() ? error : ": " + error;
}

Library linked_library() { return {getInferLibVersion()}; }

void check_cuda(cudaError_t status, char const* what) {
    if (status != cudaSuccess) {
        throw Error(ErrorCode::kCuda, std::string(what) + ": " + cudaGetErrorString(status));
    }
}

int current_gpu() {
    int device = 0;
    check_cuda(cudaGetDevice(&device), "asking for this thread's GPU");
    return device;
}

std::pair<int, int> present_gpu() {
    int devices = 0;
    check_cuda(cudaGetDeviceCount(&devices), "running an engine needs an NVIDIA GPU");
    int major = 0, minor = 0;
    for (auto const& [value, attribute] : {std::pair(&major, cudaDevAttrComputeCapabilityMajor),
                                           std::pair(&minor, cudaDevAttrComputeCapabilityMinor)}) {
        check_cuda(cudaDeviceGetAttribute(value, attribute, current_gpu()),
                   "asking for the GPU's compute capability");
    }
    return {major, minor};
}

void load_plugins(std::filesystem::path const& library) {
    static std::mutex mutex;
    static std::set<std::filesystem::path> loaded;
    std::error_code error;
    std::filesystem::path const path = std::filesystem::canonical(library, error);
    if (error) {
        throw Error(ErrorCode::kEngine,
                    "there is no plugin library " + library.string() +
                        ": run ckv-export plugin build --out DIR");
    }
    std::lock_guard const lock(mutex);
    // The registry refuses a library that it has.
    if (loaded.count(path) > 0) {
        return;
    }
    take_logged_error();
    if (getPluginRegistry()->loadLibrary(path.c_str()) == nullptr) {
        throw Error(ErrorCode::kEngine, "TensorRT can't load the plugin library " + path.string() +
                                            take_logged_error());
    }
    loaded.insert(path);
}

}  // namespace detail

std::string tensorrt_version() { return detail::linked_library().label(); }

}  // namespace ckv
