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

// Device memory that begins `shift` bytes after an allocation does: less aligned than one.
// `poison` fills it with NaNs, so that what nobody wrote is seen.
class Buffer {
public:
    explicit Buffer(size_t bytes, size_t shift = 0) : bytes_(bytes), shift_(shift) {
        must(cudaMalloc(&allocation_, bytes + shift > 0 ? bytes + shift : 1), "cudaMalloc");
        poison();
    }
    Buffer(Buffer&& other) noexcept : allocation_(std::exchange(other.allocation_, nullptr)),
        bytes_(other.bytes_), shift_(other.shift_) {}
    Buffer(Buffer const&) = delete;
    Buffer& operator=(Buffer const&) = delete;
    ~Buffer() { cudaFree(allocation_); }

    static Buffer of(void const* host, size_t bytes, size_t shift) {
        Buffer buffer(bytes, shift);
        must(cudaMemcpy(buffer.data(), host, bytes, cudaMemcpyHostToDevice), "copy to the GPU");
        return buffer;
    }
    // `shift` counts elements, as in of_rows.
    template <typename T>
    static Buffer of(std::vector<T> const& values, size_t shift) {
        return of(values.data(), values.size() * sizeof(T), shift * sizeof(T));
    }
    // Rows of `width` floats as rows of `stride` elements of the dtype; poison between them.
    static Buffer of_rows(Dtype dtype, std::vector<float> const& values, int64_t width,
        int64_t stride, size_t shift) {
        int64_t const rows = width ? static_cast<int64_t>(values.size()) / width : 0;
        std::vector<char> bytes(
            static_cast<size_t>(rows * stride * dtype_bytes(dtype)), static_cast<char>(0xFF));
        reference::put_rows(dtype, bytes.data(), stride, values.data(), rows, width);
        return of(bytes.data(), bytes.size(), shift * dtype_bytes(dtype));
    }

    void poison() { must(cudaMemset(data(), 0xFF, bytes_), "cudaMemset"); }
    void clear() { must(cudaMemset(data(), 0, bytes_), "cudaMemset"); }
    void* data() const { return static_cast<char*>(allocation_) + shift_; }
    template <typename T>
    T* as() const {
        return static_cast<T*>(data());
    }
    size_t bytes() const { return bytes_; }
    std::vector<char> host() const {
        std::vector<char> bytes(bytes_);
        must(cudaMemcpy(bytes.data(), data(), bytes_, cudaMemcpyDeviceToHost), "copy to the host");
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
    void* allocation_ = nullptr;
    size_t bytes_, shift_;
};

}  // namespace ckv::harness
