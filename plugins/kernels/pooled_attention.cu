// The public entry points of both attention forms: checks, copy widths, choice of kernel.
#include "ckv/pooled_attention.h"

#include <climits>

#include "attention_dispatch.cuh"
#include "attention_entry.h"

namespace ckv {
namespace {

bool splits(Tactic t) { return t != Tactic::kWhole && t != Tactic::kCoresWhole; }

bool wants_mma(Tactic t) { return t != Tactic::kCoresWhole && t != Tactic::kCoresSplit; }

// Kernels step over rows in 32-bit bytes, and count events up to two tiles past the last one.
constexpr int64_t kLongestRow = (int64_t{1} << 29) - 1;
constexpr int32_t kMostEvents = INT32_MAX - 256;

bool sound(PooledSide const& side, int32_t width) {
    return side.width() == width && side.pool_stride >= 0 && side.pool_stride <= kLongestRow &&
           side.user_stride >= 0 && side.user_stride <= kLongestRow;
}

bool sound(AttentionArgs const& a) {
    return a.heads > 0 && a.width > 0 && a.width % a.heads == 0 && sound(a.key, a.width) &&
           sound(a.value, a.width) && a.batch >= 0 && a.queries >= 0 && a.events >= 0 &&
           a.events <= kMostEvents;
}

uint64_t address(void const* p) { return reinterpret_cast<uintptr_t>(p); }

CopyWidth copy_of(PooledSide const& side, int32_t head_width, int32_t bytes) {
    return copy_width(address(side.pool), side.pool_stride, address(side.user), side.user_stride,
        side.pool_width, head_width, bytes);
}

KernelArgs kernel_args(AttentionArgs const& a) {
    KernelArgs p{};
    p.a = a;
    p.head_width = a.width / a.heads;
    int32_t const bytes = dtype_bytes(a.dtype);
    p.query_vector = query_vector(address(a.query), a.width, p.head_width, bytes);
    p.key_copy = copy_of(a.key, p.head_width, bytes);
    p.value_copy = copy_of(a.value, p.head_width, bytes);
    return p;
}

template <Dtype kDtype>
cudaError_t run(KernelArgs const& p, Form form, Tactic tactic, LaunchPlan const& plan,
    cudaStream_t stream) {
    if (wants_mma(tactic)) {
        cudaError_t const status = AttentionLauncher<kDtype>::mma(p, form, plan, stream);
        if (status != cudaErrorNotSupported) {
            return status;
        }
    }
    return AttentionLauncher<kDtype>::cores(p, form, plan, stream);
}

cudaError_t attend(
    KernelArgs const& p, Form form, Tactic tactic, void* workspace, cudaStream_t stream) {
    AttentionArgs const& a = p.a;
    int64_t const elements = int64_t{a.batch} * a.queries * a.width;
    if (elements == 0) {
        return cudaSuccess;
    }
    if (a.events == 0) {
        return clear(a.out, static_cast<size_t>(elements) * dtype_bytes(a.dtype), stream);
    }
    LaunchPlan const plan{
        splits(tactic) && workspace != nullptr, static_cast<float*>(workspace)};
    switch (a.dtype) {
        case Dtype::kFloat32: return run<Dtype::kFloat32>(p, form, tactic, plan, stream);
        case Dtype::kFloat16: return run<Dtype::kFloat16>(p, form, tactic, plan, stream);
        case Dtype::kBFloat16: return run<Dtype::kBFloat16>(p, form, tactic, plan, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace

size_t attention_workspace(AttentionArgs const& largest, Tactic tactic) {
    return splits(tactic) ? static_cast<size_t>(most_split_floats(largest)) * sizeof(float) : 0;
}

cudaError_t pooled_attention(
    SoftmaxArgs const& args, Tactic tactic, void* workspace, cudaStream_t stream) {
    if (!sound(args)) {
        return cudaErrorInvalidValue;
    }
    KernelArgs p = kernel_args(args);
    p.mask = args.mask;
    return attend(p, Form::kSoftmax, tactic, workspace, stream);
}

cudaError_t pooled_pointwise_attention(
    PointwiseArgs const& args, Tactic tactic, void* workspace, cudaStream_t stream) {
    if (!sound(args)) {
        return cudaErrorInvalidValue;
    }
    KernelArgs p = kernel_args(args);
    p.bias = args.bias;
    p.visible = args.visible;
    p.count = args.count;
    p.count_is_float32 = args.count_is_float32;
    return attend(p, Form::kPointwise, tactic, workspace, stream);
}

}  // namespace ckv
