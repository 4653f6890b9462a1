#include "creators.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "attention_plugin.h"
#include "log.h"
#include "pool_gather_concat_plugin.h"

namespace ckv::tensorrt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

PluginField const& field_named(nvinfer1::PluginFieldCollection const* fields, char const* name) {
    for (int32_t i = 0; fields && i < fields->nbFields; ++i) {
        PluginField const& field = fields->fields[i];
        if (std::strcmp(field.name, name) == 0) {
            require(field.data && field.length == 1, "an attribute must be one number");
            return field;
        }
    }
    throw std::invalid_argument("the attribute " + std::string(name) + " is missing");
}

template <typename T>
T read(void const* data) {
    T value;
    std::memcpy(&value, data, sizeof value);
    return value;
}

// Parsers hand over 32-bit numbers; callers of addPluginV3 may well have 64-bit ones.
double number(PluginField const& field) {
    switch (field.type) {
        case PluginFieldType::kINT32: return read<int32_t>(field.data);
        case PluginFieldType::kINT64: return static_cast<double>(read<int64_t>(field.data));
        case PluginFieldType::kFLOAT32: return read<float>(field.data);
        case PluginFieldType::kFLOAT64: return read<double>(field.data);
        default: throw std::invalid_argument("an attribute must be one number");
    }
}

int32_t whole_number(PluginField const& field) {
    double const value = number(field);
    require(std::nearbyint(value) == value && std::abs(value) <= INT32_MAX,
        "an attribute must be a whole number of 32 bits");
    return static_cast<int32_t>(value);
}

// A creator of a plugin: `Plugin::kName` and how to make one from fields.
template <typename Plugin>
class Creator final : public nvinfer1::IPluginCreatorV3One {
public:
    explicit Creator(std::vector<PluginField> fields) : fields_(std::move(fields)) {
        names_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    }

    nvinfer1::IPluginV3* createPlugin(char const*, nvinfer1::PluginFieldCollection const* fields,
        nvinfer1::TensorRTPhase) noexcept override {
        // Both phases get the same fields: those of ONNX, or those that we serialized.
        return shielded<nvinfer1::IPluginV3*>(
            Plugin::kName, nullptr, [&] { return make(fields); });
    }
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &names_; }
    char const* getPluginName() const noexcept override { return Plugin::kName; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    char const* getPluginNamespace() const noexcept override { return kNamespace; }

private:
    static Plugin* make(nvinfer1::PluginFieldCollection const* fields) {
        if constexpr (std::is_base_of_v<AttentionPlugin, Plugin>) {
            AttentionAttributes attributes;
            attributes.num_heads =
                whole_number(field_named(fields, AttentionPlugin::kHeadsField));
            attributes.scale =
                static_cast<float>(number(field_named(fields, AttentionPlugin::kScaleField)));
            return new Plugin(attributes);
        } else {
            return new Plugin();
        }
    }

    std::vector<PluginField> fields_;
    nvinfer1::PluginFieldCollection names_{};
};

// The parser turns only attributes named here into fields.
std::vector<PluginField> attention_fields() {
    return {{AttentionPlugin::kHeadsField, nullptr, PluginFieldType::kINT32, 1},
        {AttentionPlugin::kScaleField, nullptr, PluginFieldType::kFLOAT32, 1}};
}

}  // namespace

nvinfer1::IPluginCreatorInterface* const* creators(int32_t& count) {
    static Creator<PoolGatherConcatPlugin> gather{{}};
    static Creator<PooledAttentionPlugin> softmax{attention_fields()};
    static Creator<PooledPointwiseAttentionPlugin> pointwise{attention_fields()};
    static nvinfer1::IPluginCreatorInterface* const all[] = {&gather, &softmax, &pointwise};
    count = static_cast<int32_t>(std::size(all));
    return all;
}

}  // namespace ckv::tensorrt
