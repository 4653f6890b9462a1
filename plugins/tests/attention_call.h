// Tensors of a small call of the attention plugins, their descriptions, and what must come out.
#pragma once

#include <NvInferRuntime.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "reference.h"

namespace ckv::tests {

using nvinfer1::DataType;

inline nvinfer1::PluginTensorDesc desc(std::vector<int64_t> const& extents, DataType type) {
    nvinfer1::PluginTensorDesc d{};
    d.dims.nbDims = static_cast<int32_t>(extents.size());
    std::copy(extents.begin(), extents.end(), d.dims.d);
    d.type = type;
    d.format = nvinfer1::TensorFormat::kLINEAR;
    return d;
}

inline nvinfer1::DynamicPluginTensorDesc dynamic(nvinfer1::PluginTensorDesc const& d) {
    return {d, d.dims, d.dims, d.dims};
}

// Shapes, pool rows and pointers of a small call of the attention ops: B 2, C 3, N 130, d 8.
struct AttentionCall {
    std::vector<float> query = values(2 * 3 * 8), pool = values(6 * 7), user = values(2 * 130);
    std::vector<float> bias = values(2 * 3 * 130), count = std::vector<float>(6, 2.0F);
    std::vector<int32_t> index, mask, visible;
    std::vector<double> want = std::vector<double>(2 * 3 * 8);
    std::vector<nvinfer1::PluginTensorDesc> descs;
    std::vector<void const*> in;

    explicit AttentionCall(bool softmax) {
        for (int i = 0; i < 260; ++i) {
            index.push_back(i % 7);  // 6 is outside the pool
            mask.push_back(i % 3 > 0);
        }
        for (int i = 0; i < 780; ++i) {
            visible.push_back(i % 5 > 0);
        }
        auto const add = [&](std::vector<int64_t> const& extents, DataType type, void const* at) {
            descs.push_back(desc(extents, type));
            in.push_back(at);
        };
        add({2, 3, 8}, DataType::kFLOAT, query.data());
        for (int side = 0; side < 2; ++side) {
            add({6, 7}, DataType::kFLOAT, pool.data());
            add({2, 130}, DataType::kINT32, index.data());
            add({2, 130, 1}, DataType::kFLOAT, user.data());
        }
        if (softmax) {
            add({2, 130}, DataType::kINT32, mask.data());
        } else {
            add({2, 3, 130}, DataType::kFLOAT, bias.data());
            add({2, 3, 130}, DataType::kINT32, visible.data());
            add({2, 3}, DataType::kFLOAT, count.data());
        }
        ckv::reference::Side const side{pool.data(), index.data(), user.data(), 6, 7, 1};
        ckv::reference::Attention const a{
            2, 3, 130, 2, 8, 0.5, query.data(), side, side, want.data()};
        if (softmax) {
            ckv::reference::pooled_attention(a, mask.data());
        } else {
            ckv::reference::pooled_pointwise_attention(
                a, bias.data(), visible.data(), count.data());
        }
    }
    static std::vector<float> values(int n) {
        std::vector<float> x(n);
        for (int i = 0; i < n; ++i) {
            x[i] = std::sin(static_cast<float>(i * i % 97));
        }
        return x;
    }
};

}  // namespace ckv::tests
