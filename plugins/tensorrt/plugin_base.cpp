#include "plugin_base.h"

#include <stdexcept>

#include "log.h"

namespace ckv::tensorrt {

using nvinfer1::DataType;

namespace {

bool is_element(DataType type) {
    return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

bool fits(InputKind kind, DataType type, DataType element) {
    switch (kind) {
        case InputKind::kElement: return type == element && is_element(type);
        case InputKind::kInt32: return type == DataType::kINT32;
        case InputKind::kDivisor: return type == element || type == DataType::kFLOAT;
    }
    return false;
}

}  // namespace

Dtype dtype_of(DataType type) {
    switch (type) {
        case DataType::kFLOAT: return Dtype::kFloat32;
        case DataType::kHALF: return Dtype::kFloat16;
        case DataType::kBF16: return Dtype::kBFloat16;
        default: throw std::invalid_argument("element type must be FLOAT, HALF or BF16");
    }
}

int64_t extent(nvinfer1::Dims const& dims, int axis) {
    int const at = axis < 0 ? dims.nbDims + axis : axis;
    require(at >= 0 && at < dims.nbDims, "an input has too few axes");
    return dims.d[at];
}

int64_t volume(nvinfer1::Dims const& dims) {
    int64_t product = 1;
    for (int i = 0; i < dims.nbDims; ++i) {
        product *= dims.d[i];
    }
    return product;
}

void require(bool holds, char const* what) {
    if (!holds) {
        throw std::invalid_argument(what);
    }
}

void check(cudaError_t status) {
    if (status != cudaSuccess) {
        throw std::runtime_error("CUDA error " + std::to_string(static_cast<int>(status)));
    }
}

PluginBase::PluginBase(std::string const& name, std::string const& attributes)
    : timing_id_(name + ' ' + kVersion + ' ' + attributes) {}

nvinfer1::IPluginCapability* PluginBase::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE:
            return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD:
            return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* PluginBase::clone() noexcept {
    return shielded<nvinfer1::IPluginV3*>(getPluginName(), nullptr, [&] { return copy(); });
}

int32_t PluginBase::configurePlugin(
    DynamicDesc const*, int32_t inputs, DynamicDesc const*, int32_t outputs) noexcept {
    return inputs == static_cast<int32_t>(signature().inputs.size()) && outputs == 1 ? 0 : 1;
}

int32_t PluginBase::getOutputDataTypes(
    DataType* out, int32_t outputs, DataType const* in, int32_t inputs) const noexcept {
    if (outputs != 1 || inputs != static_cast<int32_t>(signature().inputs.size())) {
        return 1;
    }
    out[0] = in[0];
    return 0;
}

int32_t PluginBase::getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs,
    nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* out, int32_t outputs,
    nvinfer1::IExprBuilder& builder) noexcept {
    return shielded<int32_t>(getPluginName(), 1, [&] {
        require(inputs == static_cast<int32_t>(signature().inputs.size()) && outputs == 1,
            "wrong number of inputs or outputs");
        out[0] = output_shape(in, builder);
        return 0;
    });
}

bool PluginBase::supportsFormatCombination(
    int32_t position, DynamicDesc const* in_out, int32_t inputs, int32_t) noexcept {
    Desc const& desc = in_out[position].desc;
    InputKind const kind = position < inputs ? signature().inputs[static_cast<size_t>(position)]
                                             : InputKind::kElement;
    return desc.format == nvinfer1::TensorFormat::kLINEAR &&
           fits(kind, desc.type, in_out[0].desc.type);
}

int32_t PluginBase::onShapeChange(
    Desc const* in, int32_t inputs, Desc const*, int32_t outputs) noexcept {
    return shielded<int32_t>(getPluginName(), 1, [&] {
        require(inputs == static_cast<int32_t>(signature().inputs.size()) && outputs == 1,
            "wrong number of inputs or outputs");
        check_shapes(in);
        return 0;
    });
}

int32_t PluginBase::enqueue(Desc const* in_desc, Desc const*, void const* const* in,
    void* const* out, void* workspace, cudaStream_t stream) noexcept {
    return shielded<int32_t>(getPluginName(), 1, [&] {
        run(in_desc, in, out[0], workspace, stream);
        return 0;
    });
}

}  // namespace ckv::tensorrt
