// Decode attention straight from the compact cache: keys and values are never written to memory.
//
// Two forms over the same gathered rows. Softmax (SPEC section 1): masked events have the logit
// -1e9, so a query whose events are all masked gets their mean. Pointwise (SPEC section 2, HSTU):
// weight silu(logit + bias) where visible, 0 elsewhere, and the sum is divided by `count`.
#pragma once

#include <cuda_runtime_api.h>

#include "ckv/types.h"

namespace ckv {

inline constexpr float kMaskedLogit = -1e9F;

// Tensors are row-major and dense but for the strides of PooledSide.
struct AttentionArgs {
    Dtype dtype = Dtype::kFloat32;
    int32_t batch = 0;
    int32_t queries = 0;  // candidates of one user; they share the rows gathered for that user
    int32_t events = 0;
    int32_t heads = 1;    // head h owns columns [h * width / heads, (h + 1) * width / heads)
    int32_t width = 0;    // of query, key, value and output
    float scale = 1.0F;   // multiplies query . key
    void const* query = nullptr;  // [batch, queries, width], activated
    PooledSide key;
    PooledSide value;
    void* out = nullptr;  // [batch, queries, width]
    // Device counter, or null: events with a key or value index outside its pool are added to it,
    // none where there are no queries.
    unsigned int* bad_events = nullptr;
};

struct SoftmaxArgs : AttentionArgs {
    int32_t const* mask = nullptr;  // [batch, events], 0 = masked
};

struct PointwiseArgs : AttentionArgs {
    void const* bias = nullptr;        // [batch, queries, events], of `dtype`
    int32_t const* visible = nullptr;  // [batch, queries, events], 0 = weight 0
    void const* count = nullptr;       // [batch, queries], the divisor
    bool count_is_float32 = true;      // else `count` is of `dtype`
};

// Which kernel runs. The default picks by shape and GPU; the others exist for autotuners.
enum class Tactic : int32_t {
    kAuto = 0,
    kWhole = 1,       // one block sees all events of its queries
    kSplit = 2,       // events are split over blocks and combined by a second kernel
    kCoresWhole = 3,  // the same two without tensor cores
    kCoresSplit = 4,
};

// Bytes of scratch that any call with sizes up to those of `largest` needs under `tactic`.
size_t attention_workspace(AttentionArgs const& largest, Tactic tactic);

// `workspace` holds at least `attention_workspace` bytes and is 16-byte aligned; it may be null
// where that is 0. No events: zeros. An event with a bad index counts as masked or invisible.
cudaError_t pooled_attention(
    SoftmaxArgs const& args, Tactic tactic, void* workspace, cudaStream_t stream);
cudaError_t pooled_pointwise_attention(
    PointwiseArgs const& args, Tactic tactic, void* workspace, cudaStream_t stream);

}  // namespace ckv
