#include "pool_gather_concat_plugin.h"

#include "ckv/pool_gather_concat.h"

namespace ckv::tensorrt {
namespace {

enum Input { kPool, kIndex, kUser };

}  // namespace

Signature const& PoolGatherConcatPlugin::signature() const {
    static Signature const ours{
        kName, {InputKind::kElement, InputKind::kInt32, InputKind::kElement}};
    return ours;
}

nvinfer1::DimsExprs PoolGatherConcatPlugin::output_shape(
    nvinfer1::DimsExprs const* in, nvinfer1::IExprBuilder& builder) const {
    int32_t const rank = in[kUser].nbDims;
    require(in[kPool].nbDims == 2, "pool must be [M, d_g]");
    require(rank == in[kIndex].nbDims + 1, "user must have one axis more than index");
    nvinfer1::DimsExprs out = in[kUser];
    out.d[rank - 1] = builder.operation(
        nvinfer1::DimensionOperation::kSUM, *in[kPool].d[1], *in[kUser].d[rank - 1]);
    return out;
}

void PoolGatherConcatPlugin::check_shapes(Desc const* in) const {
    nvinfer1::Dims const& index = in[kIndex].dims;
    nvinfer1::Dims const& user = in[kUser].dims;
    require(in[kPool].dims.nbDims == 2, "pool must be [M, d_g]");
    require(user.nbDims == index.nbDims + 1, "user must have one axis more than index");
    for (int i = 0; i < index.nbDims; ++i) {
        require(index.d[i] == user.d[i], "index and user disagree about the events");
    }
}

void PoolGatherConcatPlugin::run(
    Desc const* in_desc, void const* const* in, void* out, void*, cudaStream_t stream) const {
    PoolGatherConcatArgs args;
    args.dtype = dtype_of(in_desc[kPool].type);
    args.rows = volume(in_desc[kIndex].dims);
    args.side.pool = in[kPool];
    args.side.index = static_cast<int32_t const*>(in[kIndex]);
    args.side.user = in[kUser];
    args.side.pool_rows = extent(in_desc[kPool].dims, 0);
    args.side.pool_width = static_cast<int32_t>(extent(in_desc[kPool].dims, 1));
    args.side.user_width = static_cast<int32_t>(extent(in_desc[kUser].dims, -1));
    args.side.pool_stride = args.side.pool_width;
    args.side.user_stride = args.side.user_width;
    args.out = out;
    args.out_stride = args.side.width();
    check(pool_gather_concat(args, stream));
}

}  // namespace ckv::tensorrt
