// The kernels as PyTorch operators in namespace `ckv_kernels`, for tests and benchmarks on a GPU.
//
// Built by torch.utils.cpp_extension together with kernels/*.cu (torch/kernels.py). Shapes
// are those of the ONNX operators; tensors must be contiguous and on one CUDA device.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>
#include <torch/types.h>

#include <cstdint>
#include <optional>

#include "ckv/pool_gather_concat.h"
#include "ckv/pooled_attention.h"
#include "exponentials.h"

namespace {

using torch::Tensor;

ckv::Dtype dtype_of(Tensor const& x) {
    switch (x.scalar_type()) {
        case at::kFloat: return ckv::Dtype::kFloat32;
        case at::kHalf: return ckv::Dtype::kFloat16;
        case at::kBFloat16: return ckv::Dtype::kBFloat16;
        default: TORCH_CHECK(false, "must be float32, float16 or bfloat16, got ", x.scalar_type());
    }
}

void check_like(Tensor const& x, Tensor const& like, char const* name) {
    TORCH_CHECK(x.is_contiguous() && x.device() == like.device(), name,
        " must be contiguous and on ", like.device());
    TORCH_CHECK(x.scalar_type() == like.scalar_type(), name, " must be ", like.scalar_type(),
        ", got ", x.scalar_type());
}

void check_int32(Tensor const& x, Tensor const& like, char const* name) {
    TORCH_CHECK(x.is_contiguous() && x.device() == like.device() && x.scalar_type() == at::kInt,
        name, " must be contiguous int32 on ", like.device());
}

// index [...], user [..., d_u]; `like` gives device and type.
ckv::PooledSide side_of(
    Tensor const& pool, Tensor const& index, Tensor const& user, Tensor const& like) {
    check_like(pool, like, "pool");
    check_like(user, like, "user");
    check_int32(index, like, "index");
    TORCH_CHECK(pool.dim() == 2 && user.dim() == index.dim() + 1 &&
                    user.numel() == index.numel() * user.size(-1),
        "pool must be [M, d_g], index [...] and user [..., d_u], got ", pool.sizes(), ", ",
        index.sizes(), ", ", user.sizes());
    ckv::PooledSide side;
    side.pool = pool.const_data_ptr();
    side.index = index.const_data_ptr<int32_t>();
    side.user = user.const_data_ptr();
    side.pool_rows = pool.size(0);
    side.pool_width = static_cast<int32_t>(pool.size(1));
    side.user_width = static_cast<int32_t>(user.size(-1));
    side.pool_stride = side.pool_width;
    side.user_stride = side.user_width;
    return side;
}

unsigned int* counter_of(std::optional<Tensor> const& bad, Tensor const& like) {
    if (!bad) {
        return nullptr;
    }
    check_int32(*bad, like, "bad");
    return reinterpret_cast<unsigned int*>(bad->data_ptr<int32_t>());
}

void check_launch(cudaError_t status) {
    TORCH_CHECK(status == cudaSuccess, "CUDA: ", cudaGetErrorString(status));
}

Tensor pool_gather_concat(Tensor const& pool, Tensor const& index, Tensor const& user,
    std::optional<Tensor> const& bad) {
    c10::cuda::CUDAGuard const guard(pool.device());
    ckv::PoolGatherConcatArgs args;
    args.dtype = dtype_of(pool);
    args.side = side_of(pool, index, user, pool);
    args.rows = index.numel();
    auto shape = index.sizes().vec();
    shape.push_back(args.side.width());
    Tensor out = torch::empty(shape, pool.options());
    args.out = out.data_ptr();
    args.out_stride = args.side.width();
    args.bad_rows = counter_of(bad, pool);
    check_launch(ckv::pool_gather_concat(args, c10::cuda::getCurrentCUDAStream()));
    return out;
}

struct Parts {
    Tensor const &pool_k, &index_k, &user_k, &pool_v, &index_v, &user_v;
};

void fill(ckv::AttentionArgs& args, Tensor const& query, Parts const& parts, int64_t heads,
    double scale, std::optional<Tensor> const& bad) {
    TORCH_CHECK(query.dim() == 3 && query.is_contiguous(), "query must be contiguous [B, C, d]");
    TORCH_CHECK(parts.index_k.dim() == 2 && parts.index_k.sizes() == parts.index_v.sizes() &&
                    parts.index_k.size(0) == query.size(0),
        "indices must be [B, N]");
    args.dtype = dtype_of(query);
    args.batch = static_cast<int32_t>(query.size(0));
    args.queries = static_cast<int32_t>(query.size(1));
    args.width = static_cast<int32_t>(query.size(2));
    args.events = static_cast<int32_t>(parts.index_k.size(1));
    args.heads = static_cast<int32_t>(heads);
    args.scale = static_cast<float>(scale);
    args.query = query.const_data_ptr();
    args.key = side_of(parts.pool_k, parts.index_k, parts.user_k, query);
    args.value = side_of(parts.pool_v, parts.index_v, parts.user_v, query);
    args.bad_events = counter_of(bad, query);
}

// Runs `launch(args, tactic, workspace, stream)` into a fresh output.
template <typename Args, typename Launch>
Tensor launched(Args& args, Tensor const& query, int64_t tactic, Launch launch) {
    TORCH_CHECK(tactic >= 0 && tactic <= static_cast<int64_t>(ckv::Tactic::kCoresSplit),
        "tactic must be 0 to 4, got ", tactic);
    Tensor out = torch::empty_like(query);
    args.out = out.data_ptr();
    auto const chosen = static_cast<ckv::Tactic>(tactic);
    auto const bytes = static_cast<int64_t>(ckv::attention_workspace(args, chosen));
    Tensor workspace = torch::empty({bytes}, query.options().dtype(at::kByte));
    check_launch(launch(args, chosen, bytes ? workspace.data_ptr() : nullptr,
        c10::cuda::getCurrentCUDAStream()));
    return out;
}

Tensor pooled_attention(Tensor const& query, Tensor const& pool_k, Tensor const& index_k,
    Tensor const& user_k, Tensor const& pool_v, Tensor const& index_v, Tensor const& user_v,
    Tensor const& mask, int64_t heads, double scale, int64_t tactic,
    std::optional<Tensor> const& bad) {
    c10::cuda::CUDAGuard const guard(query.device());
    ckv::SoftmaxArgs args;
    fill(args, query, {pool_k, index_k, user_k, pool_v, index_v, user_v}, heads, scale, bad);
    check_int32(mask, query, "mask");
    TORCH_CHECK(mask.sizes() == index_k.sizes(), "mask must be [B, N]");
    args.mask = mask.const_data_ptr<int32_t>();
    return launched(args, query, tactic, ckv::pooled_attention);
}

Tensor pooled_pointwise_attention(Tensor const& query, Tensor const& pool_k,
    Tensor const& index_k, Tensor const& user_k, Tensor const& pool_v, Tensor const& index_v,
    Tensor const& user_v, Tensor const& bias, Tensor const& visible, Tensor const& count,
    int64_t heads, double scale, int64_t tactic, std::optional<Tensor> const& bad) {
    c10::cuda::CUDAGuard const guard(query.device());
    ckv::PointwiseArgs args;
    fill(args, query, {pool_k, index_k, user_k, pool_v, index_v, user_v}, heads, scale, bad);
    check_like(bias, query, "bias");
    check_int32(visible, query, "visible");
    int64_t const links = query.size(0) * query.size(1) * index_k.size(1);
    TORCH_CHECK(bias.numel() == links && visible.numel() == links,
        "bias and visible must be [B, C, N]");
    TORCH_CHECK(count.is_contiguous() && count.device() == query.device() &&
                    count.numel() == query.size(0) * query.size(1),
        "count must be contiguous [B, C]");
    args.count_is_float32 = count.scalar_type() == at::kFloat;
    TORCH_CHECK(args.count_is_float32 || count.scalar_type() == query.scalar_type(),
        "count must be float32 or of the query's type, got ", count.scalar_type());
    args.bias = bias.const_data_ptr();
    args.visible = visible.const_data_ptr<int32_t>();
    args.count = count.const_data_ptr();
    return launched(args, query, tactic, ckv::pooled_pointwise_attention);
}

// x -> 2^-x, `rounds` times: no operator of the graphs, but what bench/ measures a rate by.
Tensor exponentials(Tensor const& x, int64_t rounds) {
    c10::cuda::CUDAGuard const guard(x.device());
    TORCH_CHECK(x.is_contiguous() && x.scalar_type() == at::kFloat, "x must be contiguous float32");
    TORCH_CHECK(rounds >= 0 && rounds <= INT32_MAX, "rounds must be 0 to 2^31 - 1, got ", rounds);
    Tensor out = torch::empty_like(x);
    check_launch(ckv::harness::exponentials(x.const_data_ptr<float>(), out.data_ptr<float>(),
        x.numel(), static_cast<int32_t>(rounds), c10::cuda::getCurrentCUDAStream()));
    return out;
}

}  // namespace

TORCH_LIBRARY(ckv_kernels, m) {
    m.def(
        "pool_gather_concat(Tensor pool, Tensor index, Tensor user, Tensor(a!)? bad=None) "
        "-> Tensor");
    m.def(
        "pooled_attention(Tensor query, Tensor pool_k, Tensor index_k, Tensor user_k, "
        "Tensor pool_v, Tensor index_v, Tensor user_v, Tensor mask, int num_heads, float scale, "
        "int tactic=0, Tensor(a!)? bad=None) -> Tensor");
    m.def(
        "pooled_pointwise_attention(Tensor query, Tensor pool_k, Tensor index_k, Tensor user_k, "
        "Tensor pool_v, Tensor index_v, Tensor user_v, Tensor bias, Tensor visible, Tensor count, "
        "int num_heads, float scale, int tactic=0, Tensor(a!)? bad=None) -> Tensor");
    m.def("exponentials(Tensor x, int rounds) -> Tensor");
}

TORCH_LIBRARY_IMPL(ckv_kernels, CUDA, m) {
    m.impl("pool_gather_concat", pool_gather_concat);
    m.impl("pooled_attention", pooled_attention);
    m.impl("pooled_pointwise_attention", pooled_pointwise_attention);
    m.impl("exponentials", exponentials);
}
