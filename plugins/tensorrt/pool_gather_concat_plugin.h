// PoolGatherConcat(pool T [M, d_g], index int32 [...], user T [..., d_u]) -> T [..., d_g + d_u].
#pragma once

#include "plugin_base.h"

namespace ckv::tensorrt {

class PoolGatherConcatPlugin final : public PluginBase {
public:
    static constexpr char kName[] = "PoolGatherConcat";

    PoolGatherConcatPlugin() : PluginBase(kName) {}

    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override {
        return &no_fields_;
    }

protected:
    Signature const& signature() const override;
    PluginBase* copy() const override { return new PoolGatherConcatPlugin(*this); }
    nvinfer1::DimsExprs output_shape(
        nvinfer1::DimsExprs const* in, nvinfer1::IExprBuilder& builder) const override;
    void check_shapes(Desc const* in) const override;
    void run(Desc const* in_desc, void const* const* in, void* out, void* workspace,
        cudaStream_t stream) const override;

private:
    nvinfer1::PluginFieldCollection const no_fields_{};
};

}  // namespace ckv::tensorrt
