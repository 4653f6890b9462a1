#include "bind.h"

#include <ckv/error.h>

namespace ckv::detail {

std::vector<Bound> bind_all(GraphSpec const& graph, Sizes const& sizes, Buffers const& buffers,
                            void* nothing) {
    std::vector<Bound> bound;
    for (auto const* tensors : {&graph.inputs, &graph.outputs}) {
        for (TensorSpec const& tensor : *tensors) {
            auto const found = buffers.find(tensor.name);
            if (found == buffers.end()) {
                throw Error(ErrorCode::kShape, "a call of " + graph.name + " needs a buffer for '" +
                                                   tensor.name + "'");
            }
            void* address = found->second;
            if (address == nullptr) {
                if (tensor.bytes(sizes) > 0) {
                    throw Error(ErrorCode::kShape,
                                "the buffer of '" + tensor.name + "' is null, it must have " +
                                    std::to_string(tensor.bytes(sizes)) + " bytes");
                }
                address = nothing;
            }
            bound.push_back({&tensor, tensors == &graph.inputs, tensor.shape(sizes), address});
        }
    }
    if (bound.size() != buffers.size()) {
        for (auto const& each : buffers) {
            graph.tensor(each.first);
        }
    }
    return bound;
}

}  // namespace ckv::detail
