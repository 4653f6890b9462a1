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
    cudaError_t opt_in = cudaSuccess;
    cudaError_t get_device = cudaSuccess;
    int device = 0;
    int ptx_version = 80;
    int most_shared = 99 * 1024;
    int launches = 0;
    int questions = 0;
    size_t opted_in = 0;
    dim3 blocks, threads;
    size_t shared_bytes = 0;
    cudaStream_t stream = nullptr;
    int number = 0;
    void* cleared = nullptr;
    int cleared_to = -1;
    size_t cleared_bytes = 0;
} runtime;

int passed = 0;

struct Args {
    int number;
};
void kernel(Args) {}
template <int>
void asked_kernel(Args) {}

cudaStream_t some_stream() {
    static int place;
    return reinterpret_cast<cudaStream_t>(&place);
}

cudaError_t launched(ckv::Grid grid, size_t shared_bytes) {
    return ckv::launch(kernel, grid, 96, shared_bytes, some_stream(), Args{7});
}

void a_launch_is_passed_on_whole() {
    runtime = {};
    CHECK(launched({2, 3, 4}, 16) == cudaSuccess);
    CHECK(runtime.blocks.x == 2 && runtime.blocks.y == 3 && runtime.blocks.z == 4);
    CHECK(runtime.threads.x == 96 && runtime.threads.y == 1 && runtime.threads.z == 1);
    CHECK(runtime.shared_bytes == 16 && runtime.stream == some_stream() && runtime.number == 7);
    int place = 0;
    CHECK(ckv::clear(&place, sizeof place, some_stream()) == cudaSuccess);
    CHECK(runtime.cleared == &place && runtime.cleared_to == 0);
    CHECK(runtime.cleared_bytes == sizeof place && runtime.stream == some_stream());
    ++passed;
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
    runtime.opt_in = cudaErrorInvalidValue;
    CHECK(launched({1, 1, 1}, 48 * 1024 + 16) == cudaErrorInvalidValue && runtime.launches == 2);
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
    CHECK(!ckv::runs_here<asked_kernel<0>>(80, 1024) && runtime.questions == 2);
    runtime.device = 2;
    runtime.ptx_version = 90;
    CHECK(!ckv::runs_here<asked_kernel<0>>(80, 99 * 1024 + 1));
    runtime.device = 3;
    CHECK(ckv::runs_here<asked_kernel<0>>(80, 99 * 1024));
    ++passed;
}

void devices_that_do_not_answer_take_other_kernels() {
    runtime = {};
    runtime.device = 64;  // one more than there is room for
    CHECK(!ckv::runs_here<asked_kernel<2>>(80, 1024) && runtime.questions == 0);
    runtime.device = 0;
    runtime.get_device = cudaErrorNoDevice;
    CHECK(!ckv::runs_here<asked_kernel<2>>(80, 1024) && runtime.questions == 0);
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

cudaError_t cudaLaunchKernel(void const*, dim3 blocks, dim3 threads, void** args,
    size_t shared_bytes, cudaStream_t stream) {
    ++runtime.launches;
    runtime.blocks = blocks;
    runtime.threads = threads;
    runtime.shared_bytes = shared_bytes;
    runtime.stream = stream;
    runtime.number = static_cast<Args*>(args[0])->number;
    return runtime.launch;
}
cudaError_t cudaFuncSetAttribute(void const*, cudaFuncAttribute, int bytes) {
    runtime.opted_in = static_cast<size_t>(bytes);
    return runtime.opt_in;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void const*) {
    ++runtime.questions;
    attributes->ptxVersion = runtime.ptx_version;
    runtime.left_by_others = runtime.attributes;
    return runtime.attributes;
}
cudaError_t cudaGetDevice(int* device) {
    *device = runtime.device;
    return runtime.get_device;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int device) {
    CHECK(what == cudaDevAttrMaxSharedMemoryPerBlockOptin && device == runtime.device);
    *value = runtime.most_shared;
    return cudaSuccess;
}
cudaError_t cudaPeekAtLastError() { return runtime.left_by_others; }
cudaError_t cudaGetLastError() {
    cudaError_t const error = runtime.left_by_others;
    runtime.left_by_others = cudaSuccess;
    return error;
}
cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream) {
    runtime.cleared = at;
    runtime.cleared_to = value;
    runtime.cleared_bytes = bytes;
    runtime.stream = stream;
    return cudaSuccess;
}
}

int main() {
    a_launch_is_passed_on_whole();
    errors_of_others_are_not_ours();
    much_shared_memory_is_asked_for();
    grids_too_large_are_refused();
    each_device_is_asked_once();
    devices_that_do_not_answer_take_other_kernels();
    a_question_leaves_no_error_behind();
    std::printf("%d passed, 0 failed\n", passed);
    return 0;
}
