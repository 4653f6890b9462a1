#include "run.h"

#include "ckv/pool_gather_concat.h"
#include "elements.h"
#include "emulator/tensors.h"

namespace ckv::emulator {
namespace {

using reference::get;

void fill(AttentionArgs& args, Device& device, reference::Attention const& a, uint32_t* bad) {
    int64_t const queries = int64_t{a.batch} * a.queries;
    int64_t const events = int64_t{a.batch} * a.events;
    args.dtype = device.dtype();
    args.batch = a.batch;
    args.queries = a.queries;
    args.events = a.events;
    args.heads = a.heads;
    args.width = a.width;
    args.scale = static_cast<float>(a.scale);
    args.query = device.rows(a.query, queries, a.width, 0);
    args.key = device.side(a.key, events);
    args.value = device.side(a.value, events);
    args.out = device.raw(queries * a.width * dtype_bytes(args.dtype));
    args.bad_events = bad;
}

void take(Dtype dtype, AttentionArgs const& args, double* out) {
    auto const* from = static_cast<char const*>(args.out);
    for (int64_t i = 0; i < int64_t{args.batch} * args.queries * args.width; ++i) {
        out[i] = get(dtype, from + i * dtype_bytes(dtype));
    }
}

void* scratch(Device& device, AttentionArgs const& args, Tactic tactic) {
    return device.raw(static_cast<int64_t>(attention_workspace(args, tactic)));
}

}  // namespace

extern "C" {

int32_t ckv_emulated_pool_gather_concat(Options const* options, reference::Side const* side,
    int64_t rows, float* out, uint32_t* bad) {
    Device device(*options);
    PoolGatherConcatArgs args;
    args.dtype = device.dtype();
    args.rows = rows;
    args.side = device.side(*side, rows);
    args.out_stride = args.side.width() + device.padding();
    int64_t const bytes = dtype_bytes(args.dtype);
    char* result = device.raw(rows * args.out_stride * bytes);
    args.out = result;
    args.bad_rows = bad;
    cudaError_t const status = pool_gather_concat(args, nullptr);
    int64_t const width = args.side.width();
    for (int64_t i = 0; i < rows * width; ++i) {
        out[i] = get(args.dtype, result + (i / width * args.out_stride + i % width) * bytes);
    }
    return status;
}

int32_t ckv_emulated_pooled_attention(Options const* options, reference::Attention const* a,
    int32_t const* mask, uint32_t* bad) {
    Device device(*options);
    SoftmaxArgs args;
    fill(args, device, *a, bad);
    args.mask = device.plain(mask, int64_t{a->batch} * a->events);
    auto const tactic = static_cast<Tactic>(options->tactic);
    cudaError_t const status =
        pooled_attention(args, tactic, scratch(device, args, tactic), nullptr);
    take(args.dtype, args, a->out);
    return status;
}

int32_t ckv_emulated_pooled_pointwise_attention(Options const* options,
    reference::Attention const* a, float const* bias, int32_t const* visible, float const* count,
    uint32_t* bad) {
    Device device(*options);
    PointwiseArgs args;
    fill(args, device, *a, bad);
    int64_t const queries = int64_t{a->batch} * a->queries;
    args.bias = device.rows(bias, queries, a->events, 0);
    args.visible = device.plain(visible, queries * a->events);
    // Either type, as the seed will have it.
    args.count_is_float32 = args.dtype == Dtype::kFloat32 || options->seed % 2 == 0;
    args.count = args.count_is_float32 ? device.plain(count, queries)
                                       : device.rows(count, queries, 1, 0);
    auto const tactic = static_cast<Tactic>(options->tactic);
    cudaError_t const status =
        pooled_pointwise_attention(args, tactic, scratch(device, args, tactic), nullptr);
    take(args.dtype, args, a->out);
    return status;
}

int64_t ckv_reference_pool_gather_concat(reference::Side const* side, int64_t rows, float* out) {
    return reference::pool_gather_concat(*side, rows, out);
}
int64_t ckv_reference_pooled_attention(reference::Attention const* a, int32_t const* mask) {
    return reference::pooled_attention(*a, mask);
}
int64_t ckv_reference_pooled_pointwise_attention(reference::Attention const* a, float const* bias,
    int32_t const* visible, float const* count) {
    return reference::pooled_pointwise_attention(*a, bias, visible, count);
}

void ckv_round(int32_t dtype, float* values, int64_t count) {
    reference::round(static_cast<Dtype>(dtype), values, count);
}
}

}  // namespace ckv::emulator
