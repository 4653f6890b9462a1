// Runs the entry kernels of aot/ in the emulator, with the launch and the integers given.
#pragma once

#include "emulator/run.h"

namespace ckv::emulator {

// What TensorRT would take from a plugin: grid, shared memory, and the integers between inputs and
// output in their order.
struct AotLaunch {
    int32_t grid[3];
    int32_t threads;
    int32_t shared_bytes;
    int32_t tile;           // ordinary cores: rows of a thread, 1 or 4
    int32_t values;         // and value columns of a block, 32 or 128
    int32_t head;           // tensor cores: padded columns of a head, else 0
    int32_t warps;          // and warps of a block
    int32_t float_count;    // pointwise form: whether `count` is float beside narrower elements
    int32_t const* numbers;
};

#pragma GCC visibility push(default)
extern "C" {

// Return a cudaError_t; cudaErrorInvalidValue where there is no such kernel. Outputs are poisoned.
int32_t ckv_emulated_aot_pool_gather_concat(Options const* options, AotLaunch const* launch,
    reference::Side const* side, int64_t rows, float* out);
int32_t ckv_emulated_aot_pooled_attention(Options const* options, AotLaunch const* launch,
    reference::Attention const* a, int32_t const* mask);
int32_t ckv_emulated_aot_pooled_pointwise_attention(Options const* options,
    AotLaunch const* launch, reference::Attention const* a, float const* bias,
    int32_t const* visible, float const* count);

// Bytes of shared memory that a block needs: of ordinary cores, and of tensor cores with as many
// `warps` as have room in 48 KiB, perhaps none.
int64_t ckv_aot_shared_bytes(int32_t tile, int32_t values);
int64_t ckv_aot_tensor_core_block(int32_t element_bytes, int32_t head, int32_t* warps);
}
#pragma GCC visibility pop

}  // namespace ckv::emulator
