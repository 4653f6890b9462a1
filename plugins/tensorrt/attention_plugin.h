// PooledAttention and PooledPointwiseAttention: attention whose keys and values are never stored.
//
// Both: query T [B, C, d], then pool T [M, d_g], index int32 [B, N], user T [B, N, d_u] for keys
// and again for values. Then softmax: mask int32 [B, N]; pointwise: bias T [B, C, N], visible
// int32 [B, C, N], count T or float [B, C]. Output T [B, C, d]. Attributes: num_heads, scale.
#pragma once

#include "ckv/pooled_attention.h"
#include "plugin_base.h"

namespace ckv::tensorrt {

struct AttentionAttributes {
    int32_t num_heads = 0;
    float scale = 0.0F;
};

class AttentionPlugin : public PluginBase {
public:
    static constexpr char kHeadsField[] = "num_heads";
    static constexpr char kScaleField[] = "scale";

    // Throws std::invalid_argument for attributes that make no sense.
    AttentionPlugin(char const* name, AttentionAttributes const& attributes);

    size_t getWorkspaceSize(DynamicDesc const* in, int32_t inputs, DynamicDesc const* out,
        int32_t outputs) const noexcept final;
    int32_t getNbTactics() noexcept final;
    int32_t getValidTactics(int32_t* tactics, int32_t count) noexcept final;
    int32_t setTactic(int32_t tactic) noexcept final;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept final {
        return &collection_;
    }

protected:
    // The fields of a copy point at its own attributes.
    AttentionPlugin(AttentionPlugin const& other)
        : PluginBase(other), attributes_(other.attributes_), tactic_(other.tactic_) {}

    nvinfer1::DimsExprs output_shape(
        nvinfer1::DimsExprs const* in, nvinfer1::IExprBuilder& builder) const final;
    void check_shapes(Desc const* in) const override;

    // Sizes and pointers of what both forms share; pointers may be null for the sizes alone.
    void fill(AttentionArgs& args, Desc const* desc, void const* const* in) const;

    AttentionAttributes const attributes_;
    Tactic tactic_ = Tactic::kAuto;

private:
    nvinfer1::PluginField const fields_[2] = {
        {kHeadsField, &attributes_.num_heads, nvinfer1::PluginFieldType::kINT32, 1},
        {kScaleField, &attributes_.scale, nvinfer1::PluginFieldType::kFLOAT32, 1}};
    nvinfer1::PluginFieldCollection const collection_{2, fields_};
};

class PooledAttentionPlugin final : public AttentionPlugin {
public:
    static constexpr char kName[] = "PooledAttention";

    explicit PooledAttentionPlugin(AttentionAttributes const& attributes)
        : AttentionPlugin(kName, attributes) {}

protected:
    Signature const& signature() const override;
    PluginBase* copy() const override { return new PooledAttentionPlugin(*this); }
    void check_shapes(Desc const* in) const override;
    void run(Desc const* in_desc, void const* const* in, void* out, void* workspace,
        cudaStream_t stream) const override;
};

class PooledPointwiseAttentionPlugin final : public AttentionPlugin {
public:
    static constexpr char kName[] = "PooledPointwiseAttention";

    explicit PooledPointwiseAttentionPlugin(AttentionAttributes const& attributes)
        : AttentionPlugin(kName, attributes) {}

protected:
    Signature const& signature() const override;
    PluginBase* copy() const override { return new PooledPointwiseAttentionPlugin(*this); }
    void check_shapes(Desc const* in) const override;
    void run(Desc const* in_desc, void const* const* in, void* out, void* workspace,
        cudaStream_t stream) const override;
};

}  // namespace ckv::tensorrt
