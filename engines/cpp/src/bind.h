// What is checked of a call's buffers before a runtime sees them.
#pragma once

#include <ckv/tensor.h>

#include <vector>

namespace ckv::detail {

// One tensor of a call: its shape, and an address that is never null.
struct Bound {
    TensorSpec const* tensor = nullptr;
    bool input = false;
    std::vector<std::int64_t> shape;
    void* address = nullptr;
};

// Every tensor of the graph once. Throws kShape for a buffer that is missing, unknown, or null
// although it has elements. `nothing` stands for the address of a tensor without any: runtimes
// take no null.
std::vector<Bound> bind_all(GraphSpec const& graph, Sizes const& sizes, Buffers const& buffers,
                            void* nothing);

}  // namespace ckv::detail
