#include "attention_plugin.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <iterator>

#include "log.h"

namespace ckv::tensorrt {
namespace {

enum Input { kQuery, kPoolK, kIndexK, kUserK, kPoolV, kIndexV, kUserV, kMask };
enum PointwiseInput { kBias = kMask, kVisible, kCount };

constexpr Tactic kTactics[] = {
    Tactic::kWhole, Tactic::kSplit, Tactic::kCoresWhole, Tactic::kCoresSplit};

// The seven inputs that both ops begin with, then an op's own.
std::vector<InputKind> kinds_of(std::initializer_list<InputKind> own) {
    std::vector<InputKind> kinds;
    kinds.push_back(InputKind::kElement);
    for (int side = 0; side < 2; ++side) {
        kinds.push_back(InputKind::kElement);
        kinds.push_back(InputKind::kInt32);
        kinds.push_back(InputKind::kElement);
    }
    for (InputKind kind : own) {
        kinds.push_back(kind);
    }
    return kinds;
}

PooledSide side_of(
    nvinfer1::PluginTensorDesc const* desc, void const* const* in, Input pool) {
    PooledSide side;
    side.pool_rows = extent(desc[pool].dims, 0);
    side.pool_width = static_cast<int32_t>(extent(desc[pool].dims, 1));
    side.user_width = static_cast<int32_t>(extent(desc[pool + 2].dims, -1));
    side.pool_stride = side.pool_width;
    side.user_stride = side.user_width;
    if (in) {
        side.pool = in[pool];
        side.index = static_cast<int32_t const*>(in[pool + 1]);
        side.user = in[pool + 2];
    }
    return side;
}

bool has_extents(nvinfer1::Dims const& dims, std::initializer_list<int64_t> extents) {
    return dims.nbDims == static_cast<int32_t>(extents.size()) &&
           std::equal(extents.begin(), extents.end(), dims.d);
}

// The largest extents of a profile, as a plain description.
std::vector<nvinfer1::PluginTensorDesc> largest(
    nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs) {
    std::vector<nvinfer1::PluginTensorDesc> descs;
    for (int32_t i = 0; i < inputs; ++i) {
        descs.push_back(in[i].desc);
        descs.back().dims = in[i].max;
    }
    return descs;
}

std::string text_of(AttentionAttributes const& attributes) {
    char text[64];
    std::snprintf(text, sizeof text, "num_heads=%d scale=%.9g", attributes.num_heads,
        static_cast<double>(attributes.scale));
    return text;
}

}  // namespace

AttentionPlugin::AttentionPlugin(char const* name, AttentionAttributes const& attributes)
    : PluginBase(name, text_of(attributes)), attributes_(attributes) {
    require(attributes.num_heads > 0, "num_heads must be positive");
    require(std::isfinite(attributes.scale), "scale must be finite");
}

size_t AttentionPlugin::getWorkspaceSize(
    DynamicDesc const* in, int32_t inputs, DynamicDesc const*, int32_t) const noexcept {
    return shielded<size_t>(getPluginName(), 0, [&] {
        AttentionArgs args;
        fill(args, largest(in, inputs).data(), nullptr);
        // The tactic may still change: room for every one of them.
        return attention_workspace(args, Tactic::kAuto);
    });
}

int32_t AttentionPlugin::getNbTactics() noexcept {
    return static_cast<int32_t>(std::size(kTactics));
}

int32_t AttentionPlugin::getValidTactics(int32_t* tactics, int32_t count) noexcept {
    if (count != getNbTactics()) {
        return 1;
    }
    std::transform(std::begin(kTactics), std::end(kTactics), tactics,
        [](Tactic tactic) { return static_cast<int32_t>(tactic); });
    return 0;
}

int32_t AttentionPlugin::setTactic(int32_t tactic) noexcept {
    if (tactic < 0 || tactic > static_cast<int32_t>(Tactic::kCoresSplit)) {
        return 1;
    }
    tactic_ = static_cast<Tactic>(tactic);
    return 0;
}

nvinfer1::DimsExprs AttentionPlugin::output_shape(
    nvinfer1::DimsExprs const* in, nvinfer1::IExprBuilder&) const {
    require(in[kQuery].nbDims == 3, "query must be [B, C, d]");
    return in[kQuery];
}

void AttentionPlugin::fill(AttentionArgs& args, Desc const* desc, void const* const* in) const {
    args.dtype = dtype_of(desc[kQuery].type);
    args.batch = static_cast<int32_t>(extent(desc[kQuery].dims, 0));
    args.queries = static_cast<int32_t>(extent(desc[kQuery].dims, 1));
    args.width = static_cast<int32_t>(extent(desc[kQuery].dims, 2));
    args.events = static_cast<int32_t>(extent(desc[kIndexK].dims, 1));
    args.heads = attributes_.num_heads;
    args.scale = attributes_.scale;
    args.query = in ? in[kQuery] : nullptr;
    args.key = side_of(desc, in, kPoolK);
    args.value = side_of(desc, in, kPoolV);
}

void AttentionPlugin::check_shapes(Desc const* in) const {
    AttentionArgs args;
    fill(args, in, nullptr);
    require(in[kQuery].dims.nbDims == 3, "query must be [B, C, d]");
    require(args.width % args.heads == 0, "num_heads must divide d");
    require(args.key.width() == args.width, "keys are not as wide as the query");
    require(args.value.width() == args.width, "values are not as wide as the query");
    for (Input pool : {kPoolK, kPoolV}) {
        require(in[pool].dims.nbDims == 2, "a pool is not [M, d_g]");
        require(has_extents(in[pool + 1].dims, {args.batch, args.events}),
            "an index is not [B, N]");
        require(in[pool + 2].dims.nbDims == 3 && extent(in[pool + 2].dims, 0) == args.batch &&
                    extent(in[pool + 2].dims, 1) == args.events,
            "a user part is not [B, N, d_u]");
    }
}

Signature const& PooledAttentionPlugin::signature() const {
    static Signature const ours{kName, kinds_of({InputKind::kInt32})};
    return ours;
}

void PooledAttentionPlugin::check_shapes(Desc const* in) const {
    AttentionPlugin::check_shapes(in);
    nvinfer1::Dims const& index = in[kIndexK].dims;
    require(has_extents(in[kMask].dims, {index.d[0], index.d[1]}), "mask is not [B, N]");
}

void PooledAttentionPlugin::run(Desc const* in_desc, void const* const* in, void* out,
    void* workspace, cudaStream_t stream) const {
    SoftmaxArgs args;
    fill(args, in_desc, in);
    args.out = out;
    args.mask = static_cast<int32_t const*>(in[kMask]);
    check(pooled_attention(args, tactic_, workspace, stream));
}

Signature const& PooledPointwiseAttentionPlugin::signature() const {
    static Signature const ours{
        kName, kinds_of({InputKind::kElement, InputKind::kInt32, InputKind::kDivisor})};
    return ours;
}

void PooledPointwiseAttentionPlugin::check_shapes(Desc const* in) const {
    AttentionPlugin::check_shapes(in);
    nvinfer1::Dims const& query = in[kQuery].dims;
    int64_t const events = in[kIndexK].dims.d[1];
    require(has_extents(in[kBias].dims, {query.d[0], query.d[1], events}),
        "bias is not [B, C, N]");
    require(has_extents(in[kVisible].dims, {query.d[0], query.d[1], events}),
        "visible is not [B, C, N]");
    require(has_extents(in[kCount].dims, {query.d[0], query.d[1]}), "count is not [B, C]");
}

void PooledPointwiseAttentionPlugin::run(Desc const* in_desc, void const* const* in, void* out,
    void* workspace, cudaStream_t stream) const {
    PointwiseArgs args;
    fill(args, in_desc, in);
    args.out = out;
    args.bias = in[kBias];
    args.visible = static_cast<int32_t const*>(in[kVisible]);
    args.count = in[kCount];
    args.count_is_float32 = in_desc[kCount].type == nvinfer1::DataType::kFLOAT;
    check(pooled_pointwise_attention(args, tactic_, workspace, stream));
}

}  // namespace ckv::tensorrt
