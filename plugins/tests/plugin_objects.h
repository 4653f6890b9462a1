// Our plugin objects by name, with the capabilities that TensorRT asks them for.
#pragma once

#include <NvInferRuntime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "check.h"
#include "creators.h"

namespace ckv::tests {

inline constexpr char const* kNames[] = {
    "PoolGatherConcat", "PooledAttention", "PooledPointwiseAttention"};

// Inputs of each op: E an element type, I int32, D a divisor, E or float32. The output is E.
inline std::string kinds(std::string const& name) {
    return name == "PoolGatherConcat"  ? "EIE"
           : name == "PooledAttention" ? "EEIEEIEI"
                                       : "EEIEEIEEID";
}

inline nvinfer1::IPluginCreatorV3One& creator(char const* name) {
    int32_t count = 0;
    nvinfer1::IPluginCreatorInterface* const* all = ckv::tensorrt::creators(count);
    for (int32_t i = 0; i < count; ++i) {
        auto* one = static_cast<nvinfer1::IPluginCreatorV3One*>(all[i]);
        if (std::strcmp(one->getPluginName(), name) == 0) {
            return *one;
        }
    }
    std::fprintf(stderr, "no creator %s\n", name);
    std::exit(1);
}

struct Plugin {
    explicit Plugin(nvinfer1::IPluginV3* p) : whole(p) {
        using nvinfer1::PluginCapabilityType;
        CHECK(p);
        core = as<nvinfer1::IPluginV3OneCore>(PluginCapabilityType::kCORE);
        build = as<nvinfer1::IPluginV3OneBuild>(PluginCapabilityType::kBUILD);
        runtime = as<nvinfer1::IPluginV3OneRuntime>(PluginCapabilityType::kRUNTIME);
    }
    template <typename T>
    T* as(nvinfer1::PluginCapabilityType type) {
        return static_cast<T*>(whole->getCapabilityInterface(type));
    }
    std::unique_ptr<nvinfer1::IPluginV3> whole;
    nvinfer1::IPluginV3OneCore* core;
    nvinfer1::IPluginV3OneBuild* build;
    nvinfer1::IPluginV3OneRuntime* runtime;
};

inline Plugin create(char const* name, int32_t heads = 2, float scale = 0.5F) {
    using nvinfer1::PluginFieldType;
    nvinfer1::PluginField const fields[] = {{"num_heads", &heads, PluginFieldType::kINT32, 1},
        {"scale", &scale, PluginFieldType::kFLOAT32, 1},
        // The parser also passes what our nodes carry for its own sake.
        {"plugin_version", "1", PluginFieldType::kCHAR, 2}};
    nvinfer1::PluginFieldCollection const all{3, fields};
    return Plugin(creator(name).createPlugin("node", &all, nvinfer1::TensorRTPhase::kBUILD));
}

}  // namespace ckv::tests
