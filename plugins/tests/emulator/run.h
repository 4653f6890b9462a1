// Runs the real kernels in the emulator on float tensors, as the reference takes them.
#pragma once

#include <cstdint>

#include "ckv/pooled_attention.h"
#include "reference.h"

namespace ckv::emulator {

struct Options {
    int32_t dtype;       // ckv::Dtype
    int32_t tactic;      // ckv::Tactic
    int32_t alignment;   // bytes: of every tensor's first element
    int32_t padding;     // elements between rows of pool and user part
    int32_t capability;  // of the pretended GPU, 75 or 90
    uint32_t seed;       // of the order in which threads run
};

// Seen from outside of the library, where all else is hidden.
#pragma GCC visibility push(default)
extern "C" {

// Return a cudaError_t. Outputs are poisoned before the launch; `bad` gets the debug counter.
// Inputs are rounded to the dtype. Shapes as in reference.h.
int32_t ckv_emulated_pool_gather_concat(Options const* options, reference::Side const* side,
    int64_t rows, float* out, uint32_t* bad);
int32_t ckv_emulated_pooled_attention(Options const* options, reference::Attention const* a,
    int32_t const* mask, uint32_t* bad);
int32_t ckv_emulated_pooled_pointwise_attention(Options const* options,
    reference::Attention const* a, float const* bias, int32_t const* visible, float const* count,
    uint32_t* bad);

// The reference with C names.
int64_t ckv_reference_pool_gather_concat(reference::Side const* side, int64_t rows, float* out);
int64_t ckv_reference_pooled_attention(reference::Attention const* a, int32_t const* mask);
int64_t ckv_reference_pooled_pointwise_attention(reference::Attention const* a, float const* bias,
    int32_t const* visible, float const* count);

// `count` floats, rounded to the dtype and back.
void ckv_round(int32_t dtype, float* values, int64_t count);
}
#pragma GCC visibility pop

}  // namespace ckv::emulator
