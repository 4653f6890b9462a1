// A CUDA runtime whose one GPU is ptx/machine.h: programs link this in place of libcudart.
//
// It reads the PTX that nvcc put beside the host code (uncompressed, -no-compress), as a driver
// does that finds no machine code for its GPU; or PTX text, by the driver's interface. A fault is
// told on standard error and by `ckv_ptx_fault`, and every call after it fails, as after an illegal
// access on a GPU. CKV_PTX_SEED is the seed of the order in which warps run.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "ptx/fat_binary.h"
#include "ptx/machine.h"
#include "ptx/streams.h"

namespace ckv::ptx {
namespace {

constexpr int kSharedWithoutAsking = 48 * 1024;
constexpr int kSharedAtMost = 227 * 1024;  // of a block, compute capability 9.0

struct Function {
    Module const* module = nullptr;
    std::string name;
    std::unique_ptr<Program> program;  // once launched
    int most_shared = kSharedWithoutAsking;
};

struct Gpu {
    std::map<void const*, std::unique_ptr<Module>> modules;           // by their fat binary
    std::vector<std::unique_ptr<Module>> loaded;                      // from text
    std::map<void const*, Function> functions;                        // by the host's stub
    std::map<std::pair<Module const*, std::string>, Function> named;  // asked for by name
    GlobalMemory memory;
    Streams streams;
    std::mt19937 random{static_cast<uint32_t>(
        std::getenv("CKV_PTX_SEED") ? std::atoi(std::getenv("CKV_PTX_SEED")) : 1)};
    cudaError_t failed = cudaSuccess;  // until the device is reset
    cudaError_t latest = cudaSuccess;  // for cudaGetLastError
    std::string fault;
};

// Made by the first registration, before main; never ended, since unregistering comes after it.
Gpu& gpu() {
    static Gpu* const the_gpu = new Gpu;
    return *the_gpu;
}

cudaError_t said(cudaError_t status) {
    if (status != cudaSuccess) {
        gpu().latest = status;
    }
    return status;
}

template <typename F>
cudaError_t checked(F const& f) {
    if (gpu().failed != cudaSuccess) {
        return said(gpu().failed);
    }
    try {
        return said(f());
    } catch (std::exception const& fault) {
        std::fprintf(stderr, "%s\n", fault.what());
        gpu().fault = fault.what();
        gpu().failed = cudaErrorIllegalAddress;
        return said(gpu().failed);
    }
}

Function& function(void const* host) {
    auto const found = gpu().functions.find(host);
    if (found == gpu().functions.end()) {
        throw Fault("an unregistered kernel was launched");
    }
    return found->second;
}

// The same error as the driver's.
CUresult of_driver(cudaError_t status) { return static_cast<CUresult>(status); }

// Arguments are copied at once: a graph that is replayed keeps those of its capture.
cudaError_t launch(Function& f, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
    cudaStream_t stream) {
    if (!f.program) {
        f.program = std::make_unique<Program>(f.module->parse(f.name));
    }
    Kernel const& kernel = f.program->kernel;
    uint64_t const threads = uint64_t{block.x} * block.y * block.z;
    bool const possible = grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= INT32_MAX &&
                          grid.y <= UINT16_MAX && grid.z <= UINT16_MAX && threads > 0 &&
                          threads <= static_cast<uint64_t>(kernel.most_threads) && block.y == 1 &&
                          block.z == 1;
    if (!possible || shared_bytes > static_cast<size_t>(f.most_shared)) {
        return cudaErrorInvalidValue;
    }
    std::vector<char> parameters(static_cast<size_t>(kernel.parameter_bytes()));
    for (size_t i = 0; i < kernel.parameters.size(); ++i) {
        Parameter const& p = kernel.parameters[i];
        std::memcpy(parameters.data() + p.offset, arguments[i], static_cast<size_t>(p.bytes));
    }
    return gpu().streams.queue(stream, [&f, grid, threads, shared_bytes, parameters] {
        Launch const what{{grid.x, grid.y, grid.z}, static_cast<int>(threads), shared_bytes,
            parameters.data()};
        run(*f.program, what, gpu().memory, gpu().random);
        return cudaSuccess;
    });
}

cudaError_t copy(void* to, void const* from, size_t bytes, cudaMemcpyKind kind) {
    if (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice) {
        gpu().memory.host(from, bytes, Access::kRead);
    }
    if (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) {
        gpu().memory.host(to, bytes, Access::kWrite);
    }
    std::memmove(to, from, bytes);
    return cudaSuccess;
}

cudaError_t fill(void* at, int value, size_t bytes) {
    gpu().memory.host(at, bytes, Access::kWrite);
    std::memset(at, value, bytes);
    return cudaSuccess;
}

cudaError_t queued(cudaStream_t stream, Work work) {
    return checked([&] { return gpu().streams.queue(stream, std::move(work)); });
}

cudaError_t outside_of_captures(Work const& work) {
    return checked([&] { return gpu().streams.unless_captured(work); });
}

}  // namespace
}  // namespace ckv::ptx

using namespace ckv::ptx;

#pragma GCC visibility push(default)
extern "C" {

// ---- what nvcc's host code calls by itself

void** __cudaRegisterFatBinary(void* fat_binary) {
    auto& slot = gpu().modules[fat_binary];
    slot = std::make_unique<Module>(ptx_of(fat_binary));
    return reinterpret_cast<void**>(slot.get());
}
void __cudaRegisterFatBinaryEnd(void** /*module*/) {}
void __cudaUnregisterFatBinary(void** /*module*/) {}
void __cudaRegisterFunction(void** module, char const* host, char* /*device*/, char const* name,
    int /*threads*/, uint3* /*tid*/, uint3* /*bid*/, dim3* /*block*/, dim3* /*grid*/,
    int* /*warp*/) {
    Function& f = gpu().functions[host];
    f.module = reinterpret_cast<Module const*>(module);
    f.name = name;
}
// Of kernel<<<..>>>, which our kernels are not launched by.
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaErrorUnknown; }
cudaError_t __cudaGetKernel(cudaKernel_t*, void const*) { return cudaErrorUnknown; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
    return cudaErrorUnknown;
}

// ---- kernels

cudaError_t cudaLaunchKernel(void const* host, dim3 grid, dim3 block, void** arguments,
    size_t shared_bytes, cudaStream_t stream) {
    return checked([&] {
        return launch(function(host), grid, block, arguments, shared_bytes, stream);
    });
}
cudaError_t cudaFuncSetAttribute(void const* host, cudaFuncAttribute attribute, int value) {
    return checked([&] {
        if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value > kSharedAtMost) {
            return cudaErrorInvalidValue;
        }
        function(host).most_shared = value;
        return cudaSuccess;
    });
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void const* host) {
    return checked([&] {
        *attributes = {};
        attributes->ptxVersion = function(host).module->target();
        attributes->binaryVersion = attributes->ptxVersion;
        return cudaSuccess;
    });
}

// ---- the driver's interface, by which TensorRT launches the kernels inside an engine

CUresult cuModuleLoadData(CUmodule* module, void const* ptx) {
    return of_driver(checked([&] {
        auto& loaded = gpu().loaded;
        loaded.push_back(std::make_unique<Module>(static_cast<char const*>(ptx)));
        *module = reinterpret_cast<CUmodule>(loaded.back().get());
        return cudaSuccess;
    }));
}
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, char const* name) {
    auto const* of = reinterpret_cast<Module const*>(module);
    if (!of->has(name)) {
        return CUDA_ERROR_NOT_FOUND;
    }
    Function& f = gpu().named[{of, name}];
    f.module = of;
    f.name = name;
    *function = reinterpret_cast<CUfunction>(&f);
    return CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
    unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
    CUstream stream, void** arguments, void** /*extra*/) {
    return of_driver(checked([&] {
        return launch(*reinterpret_cast<Function*>(function), {grid_x, grid_y, grid_z},
            {block_x, block_y, block_z}, arguments, shared_bytes, stream);
    }));
}

// ---- memory

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
    return outside_of_captures([&] {
        *pointer = gpu().memory.allocate(bytes);
        return cudaSuccess;
    });
}
cudaError_t cudaFree(void* pointer) {
    return outside_of_captures([&] {
        bool const known = pointer == nullptr || gpu().memory.free(pointer);
        return known ? cudaSuccess : cudaErrorInvalidValue;
    });
}
cudaError_t cudaMemcpy(void* to, void const* from, size_t bytes, cudaMemcpyKind kind) {
    return outside_of_captures([&] { return copy(to, from, bytes, kind); });
}
cudaError_t cudaMemcpyAsync(
    void* to, void const* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    return queued(stream, [=] { return copy(to, from, bytes, kind); });
}
cudaError_t cudaMemset(void* at, int value, size_t bytes) {
    return outside_of_captures([&] { return fill(at, value, bytes); });
}
cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream) {
    return queued(stream, [=] { return fill(at, value, bytes); });
}

// ---- streams and graphs

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    *stream = gpu().streams.make();
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaDeviceSynchronize(); }
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    return checked([&] { return gpu().streams.begin(stream); });
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    return checked([&] {
        auto work = std::make_unique<Graph>();
        cudaError_t const status = gpu().streams.end(stream, *work);
        *graph = status == cudaSuccess ? reinterpret_cast<cudaGraph_t>(work.release()) : nullptr;
        return status;
    });
}
cudaError_t cudaGraphInstantiate(
    cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long /*flags*/) {
    *ready = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph)));
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream) {
    return queued(stream, [ready] { return replay(*reinterpret_cast<Graph*>(ready)); });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete reinterpret_cast<Graph*>(graph);
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
    delete reinterpret_cast<Graph*>(ready);
    return cudaSuccess;
}

// ---- the device

cudaError_t cudaDeviceReset() {
    gpu().failed = gpu().latest = cudaSuccess;
    gpu().fault.clear();
    return cudaSuccess;
}
char const* ckv_ptx_fault() { return gpu().fault.c_str(); }
cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
    if (attribute != cudaDevAttrMaxSharedMemoryPerBlockOptin) {
        return said(cudaErrorInvalidValue);
    }
    *value = kSharedAtMost;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int /*device*/) {
    *properties = {};
    std::strcpy(properties->name, "PTX on the CPU");
    properties->major = 9;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    return outside_of_captures([] { return cudaSuccess; });
}
cudaError_t cudaGetLastError() {
    cudaError_t const latest = gpu().latest;
    gpu().latest = gpu().failed;
    return latest;
}
char const* cudaGetErrorString(cudaError_t status) {
    return status == cudaErrorIllegalAddress ? "the kernel did what a GPU would not promise"
                                             : "the CUDA runtime refused the call";
}

// ---- no clock: seconds here would say nothing of a GPU

cudaError_t cudaEventCreate(cudaEvent_t*) { return said(cudaErrorNotSupported); }
cudaError_t cudaEventDestroy(cudaEvent_t) { return said(cudaErrorNotSupported); }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return said(cudaErrorNotSupported); }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return said(cudaErrorNotSupported); }
cudaError_t cudaEventElapsedTime(float*, cudaEvent_t, cudaEvent_t) {
    return said(cudaErrorNotSupported);
}

}  // extern "C"
#pragma GCC visibility pop
