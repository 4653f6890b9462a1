// Launching a kernel and asking about it, the same on a GPU and in the emulator.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#if defined(CKV_EMULATE)
#include "emulator/launch.h"
#else

namespace ckv {

struct Grid {
    int64_t x = 1, y = 1, z = 1;
};

// Launches `kernel`, which takes one struct, and returns what the runtime says of the launch.
template <typename Args>
cudaError_t launch(void (*kernel)(Args), Grid grid, int threads, size_t shared_bytes,
    cudaStream_t stream, Args args) {
    constexpr size_t kWithoutAsking = 48 * 1024;
    void const* entry = reinterpret_cast<void const*>(kernel);
    if (shared_bytes > kWithoutAsking) {
        cudaError_t const status = cudaFuncSetAttribute(entry,
            cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
        if (status != cudaSuccess) {
            return status;
        }
    }
    if (grid.x > INT32_MAX || grid.y > UINT16_MAX || grid.z > UINT16_MAX) {
        return cudaErrorInvalidConfiguration;
    }
    dim3 const blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
        static_cast<unsigned>(grid.z));
    void* pointers[] = {&args};
    // Not cudaPeekAtLastError: it also reports what others left behind in this thread.
    return cudaLaunchKernel(
        entry, blocks, dim3(static_cast<unsigned>(threads)), pointers, shared_bytes, stream);
}

// Whether the code of `kKernel` that this GPU runs was compiled for `capability` (80 = 8.0) or
// later, and a block can have `shared_bytes`. The loaded code is asked, not only the GPU: PTX for
// an older GPU runs on a newer one, but lacks what the older one lacks. Asked once a device.
template <auto kKernel>
bool runs_here(int capability, size_t shared_bytes) {
    constexpr int kDevices = 64;
    static std::atomic<signed char> known[kDevices];  // 0 not asked, 1 yes, -1 no
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) {
        return false;
    }
    signed char answer = known[device].load(std::memory_order_relaxed);
    if (answer == 0) {
        cudaFuncAttributes attributes{};
        int most_shared = 0;
        bool const asked =
            cudaFuncGetAttributes(&attributes, reinterpret_cast<void const*>(kKernel)) ==
                cudaSuccess &&
            cudaDeviceGetAttribute(
                &most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess;
        if (!asked) {
            cudaGetLastError();  // answered here: nobody else shall find it
        }
        bool const yes = asked && attributes.ptxVersion >= capability &&
                         shared_bytes <= static_cast<size_t>(most_shared);
        answer = yes ? 1 : -1;
        known[device].store(answer, std::memory_order_relaxed);
    }
    return answer > 0;
}

inline cudaError_t clear(void* at, size_t bytes, cudaStream_t stream) {
    return cudaMemsetAsync(at, 0, bytes, stream);
}

}  // namespace ckv

#endif  // CKV_EMULATE
