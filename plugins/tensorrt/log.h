// Where a plugin's errors go: TensorRT's own logger where one was handed to us, else stderr.
#pragma once

#include <NvInferRuntime.h>

#include <exception>

namespace ckv::tensorrt {

// The dynamic flavour gets a finder from the registry (setLoggerFinder).
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// `where` is a plugin's or creator's name.
void report(char const* where, char const* what) noexcept;

// Runs `body`; an exception becomes a logged error and `failed`. Nothing may be thrown across the
// boundary: the caller is another binary, perhaps of another C++ runtime.
template <typename Result, typename Body>
Result shielded(char const* where, Result failed, Body const& body) noexcept {
    try {
        return body();
    } catch (std::exception const& error) {
        report(where, error.what());
    } catch (...) {
        report(where, "unknown exception");
    }
    return failed;
}

}  // namespace ckv::tensorrt
