#include <ckv/error.h>
#include <ckv/manifest.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "sha256.h"

namespace ckv {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr int kSchemaVersion = 3;
constexpr char kFileName[] = "manifest.json";
constexpr std::size_t kChunk = 1 << 20;

[[noreturn]] void refuse(std::string const& what) { throw Error(ErrorCode::kBundle, what); }

// A size or a count.
std::int64_t whole(json const& value, char const* name) {
    // What int64 doesn't hold comes back below 0, too.
    if (!value.is_number_integer() || value.get<std::int64_t>() < 0) {
        refuse(std::string(name) + " must be a whole number of 0 or more, got " + value.dump());
    }
    return value.get<std::int64_t>();
}

Range parse_range(std::string const& text) {
    std::array<std::int64_t, 3> parts{};
    char const* at = text.data();
    char const* const end = at + text.size();
    for (std::size_t i = 0; i < 3; ++i) {
        auto const [next, error] = std::from_chars(at, end, parts[i]);
        bool const good = error == std::errc() && (i == 2 ? next == end : next != end);
        if (!good || (i < 2 && *next != ':')) {
            refuse("a range must be MIN:OPT:MAX, got '" + text + "'");
        }
        at = next + 1;
    }
    Range const range{parts[0], parts[1], parts[2]};
    if (range.min < 0 || range.opt < range.min || range.max < range.opt) {
        refuse("a range must satisfy 0 <= min <= opt <= max, got '" + text + "'");
    }
    return range;
}

Profile parse_profile(json const& data) {
    Profile profile;
    for (auto const& [axis, range] : data.items()) {
        profile[axis] = parse_range(range.get<std::string>());
    }
    return profile;
}

ElementType parse_type(std::string const& name) {
    if (name == "bool") {
        return ElementType::kBool;
    }
    if (name == "int32") {
        return ElementType::kInt32;
    }
    if (name == "float32") {
        return ElementType::kFloat32;
    }
    if (name == "float16") {
        return ElementType::kFloat16;
    }
    refuse("a tensor has the unknown dtype '" + name + "'");
}

std::vector<TensorSpec> parse_tensors(json const& data) {
    std::vector<TensorSpec> tensors;
    for (json const& each : data) {
        TensorSpec tensor;
        tensor.name = each.at("name").get<std::string>();
        tensor.type = parse_type(each.at("dtype").get<std::string>());
        for (json const& axis : each.at("axes")) {
            if (axis.is_string()) {
                tensor.axes.push_back({axis.get<std::string>(), 0});
            } else {
                tensor.axes.push_back({"", whole(axis, "an axis")});
            }
            Axis const& last = tensor.axes.back();
            // Bounded, so that products of sizes stay within 64 bits.
            if (axis.is_string() ? last.name.empty() : last.size > 1 << 30) {
                refuse("tensor '" + tensor.name + "' has a bad axis: " + axis.dump());
            }
        }
        tensors.push_back(std::move(tensor));
    }
    return tensors;
}

// Whoever looks a tensor up by its name must find the one that was meant.
GraphSpec parse_graph(std::string const& name, json const& data) {
    GraphSpec graph{name, parse_tensors(data.at("inputs")), parse_tensors(data.at("outputs"))};
    std::set<std::string> seen;
    for (auto const* tensors : {&graph.inputs, &graph.outputs}) {
        for (TensorSpec const& tensor : *tensors) {
            if (!seen.insert(tensor.name).second) {
                refuse("the graph " + name + " has two tensors '" + tensor.name + "'");
            }
        }
    }
    return graph;
}

Model parse_model(json const& data) {
    Model model;
    model.kind = data.at("kind").get<std::string>();
    model.max_len = whole(data.at("max_len"), "max_len");
    if (model.max_len < 1) {
        refuse("max_len must be at least 1");
    }
    model.num_layers = whole(data.at("num_layers"), "num_layers");
    if (!data.at("window").is_null()) {
        model.window = whole(data.at("window"), "window");
        if (*model.window < 2) {
            refuse("window must be at least 2");
        }
    }
    json const& attention = data.at("attention");
    model.pool_rows_k = whole(attention.at("pool_rows_k"), "pool_rows_k");
    model.pool_rows_v = whole(attention.at("pool_rows_v"), "pool_rows_v");
    for (json const& feature : data.at("features")) {
        model.features.push_back({feature.at("name").get<std::string>(),
                                  feature.at("role").get<std::string>(),
                                  feature.at("kind").get<std::string>(),
                                  whole(feature.at("vocab_size"), "vocab_size")});
    }
    return model;
}

EngineEntry parse_engine(json const& data) {
    EngineEntry engine;
    engine.graph = data.at("graph").get<std::string>();
    engine.file = data.at("file").get<std::string>();
    engine.backend = data.at("backend").get<std::string>();
    engine.backend_version = data.at("backend_version").get<std::string>();
    engine.targets = data.at("targets").get<std::vector<std::string>>();
    engine.profile = parse_profile(data.at("profile"));
    json const settings = data.value("settings", json::object());
    engine.version_compatible = settings.value("version_compatible", false);
    engine.hardware_compatible = settings.value("hardware_compatible", false);
    json const plugin = data.value("plugin", json());
    if (!plugin.is_null()) {
        json const& file = plugin.at("file");
        engine.plugin_file = file.is_null() ? "" : file.get<std::string>();
    }
    return engine;
}

void parse_files(json const& data, Manifest& manifest) {
    for (auto const& [name, entry] : data.items()) {
        fs::path const path(name);
        bool inside = !name.empty() && path.is_relative();
        for (fs::path const& part : path) {
            inside = inside && part != "..";
        }
        if (!inside) {
            refuse("it lists the file '" + name + "', which is not inside the bundle");
        }
        manifest.files[name] = {entry.at("sha256").get<std::string>(),
                                static_cast<std::uint64_t>(whole(entry.at("bytes"), "bytes"))};
    }
}

Manifest parse(json const& data) {
    Manifest manifest;
    manifest.name = data.at("name").get<std::string>();
    manifest.fingerprint = data.at("fingerprint").get<std::string>();
    manifest.entries = data.at("fingerprints").value("entries", manifest.fingerprint);
    manifest.ids = data.at("fingerprints").value("ids", manifest.entries);
    manifest.model = parse_model(data.at("model"));
    manifest.item_table = !data.at("item_table").is_null();
    manifest.pools_are_inputs = !data.at("form").at("pools").is_null();
    manifest.profile = parse_profile(data.at("profile"));
    if (data.contains("padding")) {  // bundles of earlier versions have none
        data.at("padding").get_to(manifest.padding);
    }
    for (auto const& [name, graph] : data.at("graphs").items()) {
        manifest.graphs[name] = parse_graph(name, graph);
    }
    parse_files(data.at("files"), manifest);
    for (json const& engine : data.at("engines")) {
        manifest.engines.push_back(parse_engine(engine));
    }
    return manifest;
}

std::string read_text(fs::path const& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    if (!file) {
        refuse("can't read " + path.string());
    }
    return std::move(text).str();
}

[[noreturn]] void refuse_changed(fs::path const& path, std::string const& remedy) {
    refuse(path.string() + " is not the file that was exported, its hash differs: " + remedy);
}

std::string hash_of(fs::path const& path) {
    std::ifstream file(path, std::ios::binary);
    detail::Sha256 digest;
    std::vector<char> chunk(kChunk);
    while (file) {
        file.read(chunk.data(), static_cast<std::streamsize>(chunk.size()));
        digest.update(chunk.data(), static_cast<std::size_t>(file.gcount()));
    }
    if (file.bad() || !file.eof()) {
        refuse("can't read " + path.string());
    }
    return digest.finish();
}

// The files that are hashed when they are loaded.
std::set<std::string> loaded_files(Manifest const& manifest) {
    std::set<std::string> files;
    for (EngineEntry const& engine : manifest.engines) {
        files.insert(engine.file);
        if (!engine.plugin_file.empty()) {
            files.insert(engine.plugin_file);
        }
    }
    return files;
}

void verify(Bundle const& bundle) {
    Manifest const& manifest = bundle.manifest;
    std::set<std::string> const loaded = loaded_files(manifest);
    std::vector<std::string> needed(loaded.begin(), loaded.end());
    for (auto const& [name, graph] : manifest.graphs) {
        needed.push_back(name + ".onnx");
    }
    if (manifest.item_table) {
        needed.emplace_back("item_table.safetensors");
    }
    if (manifest.pools_are_inputs) {
        needed.emplace_back("pools.safetensors");
    }
    for (std::string const& name : needed) {
        if (manifest.files.count(name) == 0) {
            refuse(bundle.file(kFileName).string() + " has no hash of " + name +
                   ": export it again");
        }
    }
    for (auto const& [name, entry] : manifest.files) {
        fs::path const path = bundle.file(name);
        std::error_code error;
        if (!fs::is_regular_file(path, error)) {
            refuse("the bundle " + bundle.folder.string() + " lacks its file " + name +
                   ": export it again");
        }
        if (fs::file_size(path, error) != entry.bytes || error ||
            (loaded.count(name) == 0 && hash_of(path) != entry.sha256)) {
            refuse_changed(path, "export it again");
        }
    }
}

}  // namespace

GraphSpec const& Manifest::graph(std::string const& wanted) const {
    auto const found = graphs.find(wanted);
    if (found != graphs.end()) {
        return found->second;
    }
    std::string names;
    for (auto const& each : graphs) {
        names += (names.empty() ? "" : ", ") + each.first;
    }
    refuse("the bundle " + name + " has the graphs " + names + ", not '" + wanted + "'");
}

Manifest parse_manifest(std::string const& text, std::string const& where) {
    json data;
    try {
        data = json::parse(text);
    } catch (json::exception const& error) {
        refuse(where + " is no bundle manifest: " + error.what());
    }
    try {
        json const& version = data.at("schema_version");
        if (version != kSchemaVersion) {
            refuse("it has schema version " + version.dump() + ", this library reads " +
                   std::to_string(kSchemaVersion) + ": use the ckv library of its ckv-export");
        }
        return parse(data);
    } catch (json::exception const& error) {
        refuse(where + " is damaged: " + error.what());
    } catch (Error const& error) {
        refuse(where + ": " + error.what());
    }
}

Bundle Bundle::open_unverified(fs::path const& folder) {
    fs::path const path = folder / kFileName;
    std::error_code error;
    if (!fs::is_regular_file(path, error)) {
        std::string const why = fs::exists(folder, error) ? std::string("it has no ") + kFileName
                                                          : "there is no such folder";
        refuse(folder.string() + " is no bundle: " + why);
    }
    return {folder, parse_manifest(read_text(path), path.string())};
}

Bundle Bundle::open(fs::path const& folder) {
    Bundle bundle = open_unverified(folder);
    verify(bundle);
    return bundle;
}

std::vector<char> Bundle::read(std::string const& name) const {
    auto const entry = manifest.files.find(name);
    if (entry == manifest.files.end()) {
        refuse(name + " is not among the files of the bundle " + folder.string());
    }
    fs::path const path = file(name);
    std::error_code error;
    std::uintmax_t const size = fs::file_size(path, error);  // none of a folder
    std::vector<char> bytes(error ? 0 : size);
    std::ifstream in(path, std::ios::binary);
    if (error || !in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) {
        refuse("can't read " + path.string());
    }
    detail::Sha256 digest;
    digest.update(bytes.data(), bytes.size());
    if (digest.finish() != entry->second.sha256) {
        refuse_changed(path, "open the bundle again, or export it again");
    }
    return bytes;
}

}  // namespace ckv
