#include <ckv/error.h>
#include <ckv/tensor.h>

namespace ckv {

std::size_t element_bytes(ElementType type) {
    switch (type) {
        case ElementType::kBool: return 1;
        case ElementType::kFloat16: return 2;
        default: return 4;
    }
}

std::vector<std::int64_t> TensorSpec::shape(Sizes const& sizes) const {
    std::vector<std::int64_t> shape;
    for (Axis const& axis : axes) {
        if (axis.name.empty()) {
            shape.push_back(axis.size);
            continue;
        }
        auto const found = sizes.find(axis.name);
        if (found == sizes.end() || found->second < 0) {
            throw Error(ErrorCode::kShape, "the size of axis " + axis.name + " of tensor '" + name +
                                               "' is not given or below 0");
        }
        shape.push_back(found->second);
    }
    return shape;
}

std::size_t TensorSpec::bytes(Sizes const& sizes) const {
    std::size_t bytes = element_bytes(type);
    for (std::int64_t const size : shape(sizes)) {
        if (__builtin_mul_overflow(bytes, static_cast<std::size_t>(size), &bytes)) {
            throw Error(ErrorCode::kShape, "tensor '" + name + "' is too large to address");
        }
    }
    return bytes;
}

TensorSpec const& GraphSpec::tensor(std::string const& wanted) const {
    for (auto const* tensors : {&inputs, &outputs}) {
        for (TensorSpec const& tensor : *tensors) {
            if (tensor.name == wanted) {
                return tensor;
            }
        }
    }
    throw Error(ErrorCode::kShape, "the graph " + name + " has no tensor '" + wanted + "'");
}

}  // namespace ckv
