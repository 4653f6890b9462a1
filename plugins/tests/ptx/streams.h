// Streams and CUDA graphs. Work is done when it is queued, or kept while its stream is captured.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace ckv::ptx {

using Work = std::function<cudaError_t()>;
using Graph = std::vector<Work>;

// One stream is captured at a time, in the global mode: what is queued elsewhere, waits or
// allocates meanwhile is refused and spoils the capture.
class Streams {
public:
    cudaStream_t make() {
        made_.push_back(std::make_unique<char>());
        return reinterpret_cast<cudaStream_t>(made_.back().get());
    }

    cudaError_t queue(cudaStream_t stream, Work work) {
        if (captured_ == nullptr) {
            return work();
        }
        if (stream != captured_) {
            return spoiled(cudaErrorStreamCaptureImplicit);
        }
        graph_.push_back(std::move(work));
        return cudaSuccess;
    }

    // Of calls that no capture allows.
    cudaError_t unless_captured(Work const& work) {
        return captured_ == nullptr ? work() : spoiled(cudaErrorStreamCaptureUnsupported);
    }

    cudaError_t begin(cudaStream_t stream) {
        if (captured_ != nullptr || stream == nullptr) {
            return spoiled(cudaErrorStreamCaptureUnsupported);
        }
        captured_ = stream;
        sound_ = true;
        graph_.clear();
        return cudaSuccess;
    }

    cudaError_t end(cudaStream_t stream, Graph& graph) {
        if (captured_ == nullptr || stream != captured_) {
            return cudaErrorStreamCaptureUnmatched;
        }
        captured_ = nullptr;
        graph = std::exchange(graph_, {});
        return sound_ ? cudaSuccess : cudaErrorStreamCaptureInvalidated;
    }

private:
    cudaError_t spoiled(cudaError_t status) {
        sound_ = false;
        return status;
    }

    std::vector<std::unique_ptr<char>> made_;  // each one's address is a stream
    cudaStream_t captured_ = nullptr;
    bool sound_ = true;
    Graph graph_;
};

inline cudaError_t replay(Graph const& graph) {
    for (Work const& work : graph) {
        if (cudaError_t const status = work(); status != cudaSuccess) {
            return status;
        }
    }
    return cudaSuccess;
}

}  // namespace ckv::ptx
