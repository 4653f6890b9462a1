// TensorRT's runtime: its log, its version, plugin libraries, and CUDA's errors as ours.
#pragma once

#include <NvInferRuntime.h>
#include <ckv/engine.h>
#include <cuda_runtime_api.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "choose.h"

namespace ckv::detail {

class Log : public nvinfer1::ILogger {
public:
    explicit Log(std::function<void(LogLevel, std::string const&)> sink) : sink_(std::move(sink)) {}

    void log(Severity severity, char const* message) noexcept override;

    // A runtime that logs here; null where TensorRT makes none.
    //
    // Loading plugins logs to the first logger that TensorRT was given, for as long as the process
    // has a runtime. So the first call gives it one that never goes.
    std::unique_ptr<nvinfer1::IRuntime> make_runtime();

private:
    std::function<void(LogLevel, std::string const&)> sink_;
    bool starting_ = false;
};

// The first error that this thread has logged since the last call, as ": <message>"; empty where
// there was none.
std::string take_logged_error();

Library linked_library();

// Throws kCuda naming what was tried.
void check_cuda(cudaError_t status, char const* what);

// Number of this thread's GPU.
int current_gpu();

// Compute capability of this thread's GPU, major and minor. Throws kCuda where there is none.
std::pair<int, int> present_gpu();

// Loads creators into the process's registry, once per path. Throws kEngine.
void load_plugins(std::filesystem::path const& library);

}  // namespace ckv::detail
