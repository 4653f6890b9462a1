#include <ckv/error.h>
#include <ckv/item_table.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

namespace ckv {
namespace {

using nlohmann::json;

constexpr char kFileName[] = "item_table.safetensors";
// safetensors' own limit.
constexpr std::uint64_t kLongestHeader = 100'000'000;

[[noreturn]] void refuse(std::filesystem::path const& path, std::string const& what) {
    throw Error(ErrorCode::kBundle, path.string() + " is no item table: " + what);
}

// The JSON at the start of the file, and where the tensors' bytes begin.
std::pair<json, std::uint64_t> read_header(std::filesystem::path const& path) {
    std::ifstream file(path, std::ios::binary);
    std::uint64_t length = 0;
    if (!file.read(reinterpret_cast<char*>(&length), sizeof length)) {
        refuse(path, "it can't be read or has no header");
    }
    if (length > kLongestHeader) {
        refuse(path, "its header would have " + std::to_string(length) + " bytes");
    }
    std::string text(length, '\0');
    if (!file.read(text.data(), static_cast<std::streamsize>(length))) {
        refuse(path, "its header is truncated");
    }
    try {
        return {json::parse(text), sizeof length + length};
    } catch (json::exception const& error) {
        refuse(path, error.what());
    }
}

std::vector<std::int64_t> shape_of(json const& entry) {
    auto shape = entry.at("shape").get<std::vector<std::int64_t>>();
    if (shape.empty() || *std::min_element(shape.begin(), shape.end()) < 0) {
        throw Error(ErrorCode::kBundle, "a tensor has a bad shape");
    }
    return shape;
}

}  // namespace

ItemTable ItemTable::open(Bundle const& bundle) {
    GraphSpec const& graph = bundle.manifest.graph("decode_items");
    ItemTable table;
    table.path_ = bundle.file(kFileName);
    auto const [header, start] = read_header(table.path_);
    std::error_code error;
    std::uint64_t const size = std::filesystem::file_size(table.path_, error);
    bool first = true;
    try {
        for (TensorSpec const& tensor : graph.inputs) {
            if (tensor.axes.empty() || tensor.axes[0].name != "I") {
                continue;
            }
            json const& entry = header.at(tensor.name);
            auto const shape = shape_of(entry);
            table.items_ = first ? shape[0] : table.items_;
            first = false;
            char const* const type = tensor.type == ElementType::kInt32 ? "I32" : "F32";
            auto const ends = entry.at("data_offsets").get<std::vector<std::uint64_t>>();
            bool const fits = entry.at("dtype") == type &&
                              shape == tensor.shape({{"I", table.items_}}) && ends.size() == 2 &&
                              ends[0] <= ends[1] && ends[1] <= size - start &&
                              ends[1] - ends[0] == tensor.bytes({{"I", table.items_}});
            if (!fits) {
                refuse(table.path_, "its tensor '" + tensor.name + "' is not that of the graph");
            }
            table.extents_[tensor.name] = {start + ends[0], ends[1] - ends[0]};
        }
    } catch (json::exception const& problem) {
        refuse(table.path_, problem.what());
    }
    return table;
}

void ItemTable::read(std::string const& name, void* out) const {
    auto const found = extents_.find(name);
    if (found == extents_.end()) {
        refuse(path_, "it has no tensor '" + name + "'");
    }
    std::ifstream file(path_, std::ios::binary);
    file.seekg(static_cast<std::streamoff>(found->second.start));
    if (!file.read(static_cast<char*>(out), static_cast<std::streamsize>(found->second.bytes))) {
        refuse(path_, "it ends before its tensor '" + name + "' does");
    }
}

}  // namespace ckv
