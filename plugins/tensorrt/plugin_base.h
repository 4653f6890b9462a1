// What our plugins have in common: one output of the first input's type, linear formats, fields.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <vector>

#include "ckv/types.h"

namespace ckv::tensorrt {

inline constexpr char kNamespace[] = "ckv";
inline constexpr char kPluginVersion[] = "1";

// Type of an input. Elements share one type, that of input 0, which the output has too. A divisor
// may be FLOAT beside narrower elements: a count above 2048 is not exact in 16 bits.
enum class InputKind : int8_t { kElement, kInt32, kDivisor };

struct Signature {
    char const* name;
    std::vector<InputKind> inputs;
};

// Throws for a type that our kernels don't have.
Dtype dtype_of(nvinfer1::DataType type);

// Extent of axis `axis`, counted from the end where negative.
int64_t extent(nvinfer1::Dims const& dims, int axis);
int64_t volume(nvinfer1::Dims const& dims);

// Throws std::invalid_argument(`what`) unless `holds`.
void require(bool holds, char const* what);

// Throws with the error's own words.
void check(cudaError_t status);

class PluginBase : public nvinfer1::IPluginV3,
                   public nvinfer1::IPluginV3OneCore,
                   public nvinfer1::IPluginV3OneBuild,
                   public nvinfer1::IPluginV3OneRuntime {
public:
    using Desc = nvinfer1::PluginTensorDesc;
    using DynamicDesc = nvinfer1::DynamicPluginTensorDesc;

    ~PluginBase() override = default;
    PluginBase& operator=(PluginBase const&) = delete;
    PluginBase& operator=(PluginBase&&) = delete;

    nvinfer1::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept final;
    nvinfer1::IPluginV3* clone() noexcept final;

    char const* getPluginName() const noexcept final { return signature().name; }
    char const* getPluginVersion() const noexcept final { return kPluginVersion; }
    char const* getPluginNamespace() const noexcept final { return kNamespace; }

    int32_t getNbOutputs() const noexcept final { return 1; }
    int32_t configurePlugin(DynamicDesc const* in, int32_t inputs, DynamicDesc const* out,
        int32_t outputs) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* out, int32_t outputs,
        nvinfer1::DataType const* in, int32_t inputs) const noexcept final;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs,
        nvinfer1::DimsExprs const* shape_inputs, int32_t shape_count, nvinfer1::DimsExprs* out,
        int32_t outputs, nvinfer1::IExprBuilder& builder) noexcept final;
    bool supportsFormatCombination(int32_t position, DynamicDesc const* in_out, int32_t inputs,
        int32_t outputs) noexcept final;
    char const* getTimingCacheID() noexcept final { return timing_id_.c_str(); }
    char const* getMetadataString() noexcept final { return timing_id_.c_str(); }

    int32_t onShapeChange(
        Desc const* in, int32_t inputs, Desc const* out, int32_t outputs) noexcept final;
    int32_t enqueue(Desc const* in_desc, Desc const* out_desc, void const* const* in,
        void* const* out, void* workspace, cudaStream_t stream) noexcept final;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept final {
        return clone();
    }

protected:
    // `attributes`: as text, what a timing depends on beside shapes and types.
    explicit PluginBase(std::string const& name, std::string const& attributes = {});
    PluginBase(PluginBase const&) = default;

    virtual Signature const& signature() const = 0;
    virtual PluginBase* copy() const = 0;
    virtual nvinfer1::DimsExprs output_shape(
        nvinfer1::DimsExprs const* in, nvinfer1::IExprBuilder& builder) const = 0;
    // Throws where the extents of the inputs contradict one another.
    virtual void check_shapes(Desc const* in) const = 0;
    virtual void run(Desc const* in_desc, void const* const* in, void* out, void* workspace,
        cudaStream_t stream) const = 0;

private:
    std::string const timing_id_;
};

}  // namespace ckv::tensorrt
