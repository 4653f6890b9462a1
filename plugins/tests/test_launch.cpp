// kernels/launch.h, compiled as for a GPU, over a CUDA runtime of this file's own.
#include "launch.h"

#include <cstdio>
#include <initializer_list>

#include "check.h"

namespace {

// What the runtime is told to answer, and what it was asked.
struct Runtime {
    cudaError_t left_by_others = cudaSuccess;
    cudaError_t launch = cudaSuccess;
    cudaError_t attributes = cudaSuccess;
    int device = 0;
    int ptx_version = 80;
    int most_shared = 99 * 1024;
    int launches = 0;
    int questions = 0;
    size_t opted_in = 0;
} runtime;

int passed = 0;

struct Args {
    int number;
};
void kernel(Args) {}
template <int>
void asked_kernel(Args) {}

cudaError_t launched(ckv::Grid grid, size_t shared_bytes) {
    return ckv::launch(kernel, grid, 32, shared_bytes, nullptr, Args{1});
}

void errors_of_others_are_not_ours() {
    runtime = {};
    runtime.left_by_others = cudaErrorPeerAccessAlreadyEnabled;
    CHECK(launched({1, 1, 1}, 0) == cudaSuccess && runtime.launches == 1);
    CHECK(runtime.left_by_others == cudaErrorPeerAccessAlreadyEnabled);
    runtime.launch = cudaErrorInvalidConfiguration;
    CHECK(launched({1, 1, 1}, 0) == cudaErrorInvalidConfiguration);
    ++passed;
}

void much_shared_memory_is_asked_for() {
    runtime = {};
    CHECK(launched({1, 1, 1}, 48 * 1024) == cudaSuccess && runtime.opted_in == 0);
    CHECK(launched({1, 1, 1}, 48 * 1024 + 16) == cudaSuccess);
    CHECK(runtime.opted_in == 48 * 1024 + 16 && runtime.launches == 2);
    ++passed;
}

void grids_too_large_are_refused() {
    runtime = {};
    CHECK(launched({INT32_MAX, UINT16_MAX, UINT16_MAX}, 0) == cudaSuccess);
    for (ckv::Grid const& grid : {ckv::Grid{int64_t{INT32_MAX} + 1, 1, 1},
             ckv::Grid{1, UINT16_MAX + 1, 1}, ckv::Grid{1, 1, UINT16_MAX + 1}}) {
        CHECK(launched(grid, 0) == cudaErrorInvalidConfiguration);
    }
    CHECK(runtime.launches == 1);
    ++passed;
}

void each_device_is_asked_once() {
    runtime = {};
    CHECK(ckv::runs_here<asked_kernel<0>>(80, 1024));
    CHECK(ckv::runs_here<asked_kernel<0>>(80, 1024) && runtime.questions == 1);
    runtime.device = 1;
    runtime.ptx_version = 75;
    CHECK(!ckv::runs_here<asked_kernel<0>>(80, 1024) && runtime.questions == 2);
    runtime.device = 2;
    runtime.ptx_version = 90;
    CHECK(!ckv::runs_here<asked_kernel<0>>(80, 100 * 1024));
    ++passed;
}

void a_question_leaves_no_error_behind() {
    runtime = {};
    runtime.attributes = cudaErrorInvalidDeviceFunction;
    CHECK(!ckv::runs_here<asked_kernel<1>>(80, 1024));
    CHECK(runtime.left_by_others == cudaSuccess);
    ++passed;
}

}  // namespace

extern "C" {

cudaError_t cudaLaunchKernel(
    void const*, dim3, dim3, void**, size_t, cudaStream_t) {
    ++runtime.launches;
    return runtime.launch;
}
cudaError_t cudaFuncSetAttribute(void const*, cudaFuncAttribute, int bytes) {
    runtime.opted_in = static_cast<size_t>(bytes);
    return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void const*) {
    ++runtime.questions;
    attributes->ptxVersion = runtime.ptx_version;
    runtime.left_by_others = runtime.attributes;
    return runtime.attributes;
}
cudaError_t cudaGetDevice(int* device) {
    *device = runtime.device;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = runtime.most_shared;
    return cudaSuccess;
}
cudaError_t cudaPeekAtLastError() { return runtime.left_by_others; }
cudaError_t cudaGetLastError() {
    cudaError_t const error = runtime.left_by_others;
    runtime.left_by_others = cudaSuccess;
    return error;
}
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t) { return cudaSuccess; }
}

int main() {
    errors_of_others_are_not_ours();
    much_shared_memory_is_asked_for();
    grids_too_large_are_refused();
    each_device_is_asked_once();
    a_question_leaves_no_error_behind();
    std::printf("%d passed, 0 failed\n", passed);
    return 0;
}
