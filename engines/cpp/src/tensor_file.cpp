#include <ckv/error.h>
#include <ckv/tensor_file.h>

#include <algorithm>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>

namespace ckv {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

// safetensors' own limit.
constexpr std::uint64_t kLongestHeader = 100'000'000;

[[noreturn]] void refuse(fs::path const& path, std::string const& what) {
    throw Error(ErrorCode::kBundle, path.string() + " is no file of these tensors: " + what);
}

// The JSON at the start of the file, and where the tensors' bytes begin.
std::pair<json, std::uint64_t> read_header(fs::path const& path, std::ifstream& file) {
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

char const* type_name(ElementType type) {
    switch (type) {
        case ElementType::kBool: return "BOOL";
        case ElementType::kInt32: return "I32";
        case ElementType::kFloat16: return "F16";
        case ElementType::kFloat32: break;
    }
    return "F32";
}

std::vector<TensorSpec> inputs_named(GraphSpec const& graph, std::string const& prefix) {
    std::vector<TensorSpec> tensors;
    for (TensorSpec const& tensor : graph.inputs) {
        if (tensor.name.compare(0, prefix.size(), prefix) == 0) {
            tensors.push_back(tensor);
        }
    }
    return tensors;
}

}  // namespace

struct TensorFile::Source {
    std::mutex mutex;
    std::ifstream file;
};

TensorFile TensorFile::item_table(Bundle const& bundle) {
    return open(bundle.file("item_table.safetensors"),
                inputs_named(bundle.manifest.graph("decode_items"), "item_"));
}

TensorFile TensorFile::pools(Bundle const& bundle, fs::path const& path) {
    auto tensors = inputs_named(bundle.manifest.graph("decode"), "pool_");
    if (tensors.empty()) {
        throw Error(ErrorCode::kBundle, "the graphs of " + bundle.folder.string() +
                                            " hold their pools: export with --pool input");
    }
    return open(path.empty() ? bundle.file("pools.safetensors") : path, std::move(tensors));
}

TensorFile TensorFile::open(fs::path const& path, std::vector<TensorSpec> tensors) {
    TensorFile made;
    made.path_ = path;
    made.tensors_ = std::move(tensors);
    made.source_ = std::make_shared<Source>();
    std::ifstream& file = made.source_->file;
    file.open(path, std::ios::binary);
    auto const [header, start] = read_header(path, file);
    file.seekg(0, std::ios::end);
    auto const size = static_cast<std::uint64_t>(file.tellg());
    try {
        for (TensorSpec const& tensor : made.tensors_) {
            json const& entry = header.at(tensor.name);
            auto const shape = entry.at("shape").get<std::vector<std::int64_t>>();
            if (!shape.empty() && !tensor.axes.empty() && !tensor.axes[0].name.empty()) {
                made.sizes_.try_emplace(tensor.axes[0].name, shape[0]);
            }
            auto const ends = entry.at("data_offsets").get<std::vector<std::uint64_t>>();
            bool const fits = entry.at("dtype") == type_name(tensor.type) &&
                              shape == tensor.shape(made.sizes_) && ends.size() == 2 &&
                              ends[0] <= ends[1] && ends[1] <= size - start &&
                              ends[1] - ends[0] == tensor.bytes(made.sizes_);
            if (!fits) {
                refuse(path, "its tensor '" + tensor.name + "' is not that of the graph");
            }
            made.extents_[tensor.name] = {start + ends[0], ends[1] - ends[0]};
        }
        made.metadata_ = header.value("__metadata__", made.metadata_);
    } catch (json::exception const& problem) {
        refuse(path, problem.what());
    } catch (Error const& problem) {
        // A negative size, or one that overflows.
        if (problem.code() != ErrorCode::kShape) {
            throw;
        }
        refuse(path, problem.what());
    }
    return made;
}

void TensorFile::read(std::string const& name, void* out) const {
    auto const found = extents_.find(name);
    if (found == extents_.end()) {
        refuse(path_, "it has no tensor '" + name + "'");
    }
    std::lock_guard const lock(source_->mutex);
    std::ifstream& file = source_->file;
    file.clear();  // of an earlier failure
    file.seekg(static_cast<std::streamoff>(found->second.start));
    if (!file.read(static_cast<char*>(out), static_cast<std::streamsize>(found->second.bytes))) {
        refuse(path_, "it ends before its tensor '" + name + "' does");
    }
}

std::string TensorFile::metadata(std::string const& name) const {
    auto const found = metadata_.find(name);
    return found == metadata_.end() ? std::string() : found->second;
}

}  // namespace ckv
