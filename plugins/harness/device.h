// Device memory and CUDA errors of the harness. Errors end the program: there is nothing to save.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "ckv/types.h"
#include "elements.h"

namespace ckv::harness {

inline void must(cudaError_t status, char const* what) {
    if (status != cudaSuccess) {
        std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
        std::exit(1);
    }
}

// A device allocation. `poison` fills it with NaNs, so that what nobody wrote is seen.
class Buffer {
public:
    explicit Buffer(size_t bytes) : bytes_(bytes) {
        must(cudaMalloc(&data_, bytes ? bytes : 1), "cudaMalloc");
        poison();
    }
    Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)),
        bytes_(other.bytes_) {}
    Buffer(Buffer const&) = delete;
    Buffer& operator=(Buffer const&) = delete;
    ~Buffer() { cudaFree(data_); }

    static Buffer of(void const* host, size_t bytes) {
        Buffer buffer(bytes);
        must(cudaMemcpy(buffer.data_, host, bytes, cudaMemcpyHostToDevice), "copy to the GPU");
        return buffer;
    }
    template <typename T>
    static Buffer of(std::vector<T> const& values) {
        return of(values.data(), values.size() * sizeof(T));
    }
    // Rows of `width` floats as rows of `stride` elements of the dtype; poison between them.
    static Buffer of_rows(Dtype dtype, std::vector<float> const& values, int64_t width,
        int64_t stride) {
        int64_t const rows = width ? static_cast<int64_t>(values.size()) / width : 0;
        std::vector<char> bytes(
            static_cast<size_t>(rows * stride * dtype_bytes(dtype)), static_cast<char>(0xFF));
        reference::put_rows(dtype, bytes.data(), stride, values.data(), rows, width);
        return of(bytes);
    }

    void poison() { must(cudaMemset(data_, 0xFF, bytes_), "cudaMemset"); }
    void clear() { must(cudaMemset(data_, 0, bytes_), "cudaMemset"); }
    void* data() const { return data_; }
    template <typename T>
    T* as() const {
        return static_cast<T*>(data_);
    }
    size_t bytes() const { return bytes_; }
    std::vector<char> host() const {
        std::vector<char> bytes(bytes_);
        must(cudaMemcpy(bytes.data(), data_, bytes_, cudaMemcpyDeviceToHost), "copy to the host");
        return bytes;
    }
    std::vector<double> numbers(Dtype dtype, size_t count) const {
        std::vector<char> const bytes = host();
        std::vector<double> x(count);
        for (size_t i = 0; i < count; ++i) {
            x[i] = reference::get(dtype, bytes.data() + i * dtype_bytes(dtype));
        }
        return x;
    }

private:
    void* data_ = nullptr;
    size_t bytes_;
};

}  // namespace ckv::harness
