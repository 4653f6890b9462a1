// Tensors of a small call of the attention plugins, their descriptions, and what must come out.
#pragma once

#include <NvInferRuntime.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "elements.h"
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

inline DataType type_of(Dtype dtype) {
    switch (dtype) {
        case Dtype::kFloat32: return DataType::kFLOAT;
        case Dtype::kFloat16: return DataType::kHALF;
        case Dtype::kBFloat16: return DataType::kBF16;
    }
    return DataType::kFLOAT;
}

inline nvinfer1::Dims filled(nvinfer1::Dims dims, int64_t extent) {
    std::fill_n(dims.d, dims.nbDims, extent);
    return dims;
}

// A profile up to these extents, of which the network knows none.
inline nvinfer1::DynamicPluginTensorDesc dynamic(nvinfer1::PluginTensorDesc d) {
    nvinfer1::Dims const most = d.dims;
    d.dims = filled(most, -1);
    return {d, filled(most, 0), most, filled(most, 1)};
}

// Shapes, pool rows and pointers of a small call of the attention ops: B 2, C 3, N 130, d 8.
struct AttentionCall {
    Dtype dtype;
    std::vector<float> query = values(2 * 3 * 8);
    // Keys and values are cut differently, so that one side's copies don't suit the other.
    std::vector<float> pool_k = values(6 * 4), user_k = values(2 * 130 * 4);
    std::vector<float> pool_v = values(6 * 7), user_v = values(2 * 130);
    std::vector<float> bias = values(2 * 3 * 130), count = std::vector<float>(6, 2.0F);
    std::vector<int32_t> index, mask, visible;
    std::vector<double> want = std::vector<double>(2 * 3 * 8);
    std::vector<nvinfer1::PluginTensorDesc> descs;
    std::vector<void const*> in;

    AttentionCall(bool softmax, Dtype dtype) : dtype(dtype) {
        for (int i = 0; i < 260; ++i) {
            index.push_back(i % 7);  // 6 is outside the pool
            mask.push_back(i % 3 > 0);
        }
        for (int i = 0; i < 780; ++i) {
            visible.push_back(i % 5 > 0);
        }
        add({2, 3, 8}, query);
        add({6, 4}, pool_k);
        add({2, 130}, index);
        add({2, 130, 4}, user_k);
        add({6, 7}, pool_v);
        add({2, 130}, index);
        add({2, 130, 1}, user_v);
        if (softmax) {
            add({2, 130}, mask);
        } else {
            add({2, 3, 130}, bias);
            add({2, 3, 130}, visible);
            add({2, 3}, count);
        }
        reference::Side const key{pool_k.data(), index.data(), user_k.data(), 6, 4, 4};
        reference::Side const value{pool_v.data(), index.data(), user_v.data(), 6, 7, 1};
        ckv::reference::Attention const a{
            2, 3, 130, 2, 8, 0.5, query.data(), key, value, want.data()};
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

private:
    void add(std::vector<int64_t> const& extents, std::vector<int32_t> const& integers) {
        descs.push_back(desc(extents, DataType::kINT32));
        in.push_back(integers.data());
    }
    void add(std::vector<int64_t> const& extents, std::vector<float>& floats) {
        int64_t const count = static_cast<int64_t>(floats.size());
        reference::round(dtype, floats.data(), count);
        std::vector<char>& elements = kept_.emplace_back(count * dtype_bytes(dtype));
        reference::put_rows(dtype, elements.data(), 1, floats.data(), count, 1);
        descs.push_back(desc(extents, type_of(dtype)));
        in.push_back(elements.data());
    }

    std::vector<std::vector<char>> kept_;
};

}  // namespace ckv::tests
