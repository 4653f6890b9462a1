// Inputs and outputs of a graph: names, element types, axes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ckv {

enum class ElementType { kBool, kInt32, kFloat32, kFloat16 };

std::size_t element_bytes(ElementType type);

// Sizes of named axes: B users, S history events, K cached events given to decode, T newly
// appended events, C candidates per user, I items of a table.
using Sizes = std::map<std::string, std::int64_t>;

// A dynamic axis has a name; a fixed one has a size.
struct Axis {
    std::string name;
    std::int64_t size = 0;
};

struct TensorSpec {
    std::string name;
    ElementType type = ElementType::kFloat32;
    std::vector<Axis> axes;

    // The axes with every name replaced by its size. Throws kShape where `sizes` lacks one or
    // has it below 0.
    std::vector<std::int64_t> shape(Sizes const& sizes) const;

    // Throws kShape as `shape` does, and beyond 64 bits.
    std::size_t bytes(Sizes const& sizes) const;
};

struct GraphSpec {
    std::string name;
    std::vector<TensorSpec> inputs;
    std::vector<TensorSpec> outputs;

    // Throws kShape for a name that is neither an input nor an output.
    TensorSpec const& tensor(std::string const& name) const;
};

// Addresses by tensor name, for a call: every input and output of the graph, at least
// TensorSpec::bytes(sizes) each. A tensor without elements may be null.
using Buffers = std::map<std::string, void*>;

// Smallest, most usual and largest size of one axis.
struct Range {
    std::int64_t min = 0;
    std::int64_t opt = 0;
    std::int64_t max = 0;

    bool holds(std::int64_t size) const { return min <= size && size <= max; }
};

using Profile = std::map<std::string, Range>;

}  // namespace ckv
