// The one exception of the library.
#pragma once

#include <stdexcept>
#include <string>

namespace ckv {

enum class ErrorCode {
    kBundle,  // a bundle is missing, damaged or of another version
    kRecord,  // a user's record is damaged or another model's, or can't hold what it is given
    kShape,   // sizes or buffers don't fit the graph or any of its profiles
    kEngine,  // TensorRT refused an engine or a call
    kCuda,    // CUDA failed, or there is no GPU
    kSession, // ONNX Runtime refused a graph or a call
};

// what() is one sentence: what is wrong, what was got, what is allowed, what to do.
class Error : public std::runtime_error {
public:
    Error(ErrorCode code, std::string const& what) : std::runtime_error(what), code_(code) {}

    ErrorCode code() const noexcept { return code_; }

private:
    ErrorCode code_;
};

}  // namespace ckv
