// A stand-in for the expression builder that TensorRT hands to getOutputShapes.
//
// Expressions are evaluated at once: each is a number. TensorRT's classes are not meant to be
// derived from outside of a test; their headers allow it.
#pragma once

#include <NvInferRuntime.h>

#include <algorithm>
#include <deque>

namespace ckv::tests {

class Number final : public nvinfer1::IDimensionExpr {
public:
    explicit Number(int64_t value) : apparatus_(value) { mImpl = &apparatus_; }

private:
    struct Apparatus final : nvinfer1::apiv::VDimensionExpr {
        explicit Apparatus(int64_t value) : value(value) {}
        bool isConstant() const override { return true; }
        int64_t getConstantValue() const override { return value; }
        bool isSizeTensor() const override { return false; }
        int64_t value;
    };
    Apparatus apparatus_;
};

class Builder final : public nvinfer1::IExprBuilder {
public:
    Builder() { mImpl = &apparatus_; }

    nvinfer1::DimsExprs dims(std::initializer_list<int64_t> extents) {
        nvinfer1::DimsExprs all{};
        all.nbDims = static_cast<int32_t>(extents.size());
        std::transform(extents.begin(), extents.end(), all.d,
            [&](int64_t extent) { return constant(extent); });
        return all;
    }

private:
    struct Apparatus final : nvinfer1::apiv::VExprBuilder {
        nvinfer1::IDimensionExpr const* constant(int64_t value) override {
            return &numbers.emplace_back(value);
        }
        nvinfer1::IDimensionExpr const* operation(nvinfer1::DimensionOperation operation,
            nvinfer1::IDimensionExpr const& a, nvinfer1::IDimensionExpr const& b) override {
            if (operation != nvinfer1::DimensionOperation::kSUM) {
                return nullptr;
            }
            return constant(a.getConstantValue() + b.getConstantValue());
        }
        nvinfer1::IDimensionExpr const* declareSizeTensor(
            int32_t, nvinfer1::IDimensionExpr const&, nvinfer1::IDimensionExpr const&) override {
            return nullptr;
        }
        std::deque<Number> numbers;
    };
    Apparatus apparatus_;
};

}  // namespace ckv::tests
