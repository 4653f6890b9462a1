// Manifests: what is read, and what is refused; a tensor file that is replaced:
//     test_manifest SCRATCH-FOLDER
#include <ckv/manifest.h>
#include <ckv/tensor_file.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <tuple>

#include "../src/sha256.h"
#include "check.h"
#include "sample.h"

namespace fs = std::filesystem;
using ckv::ErrorCode;

namespace {

void everything_is_read() {
    ckv::Manifest const manifest = ckv::parse_manifest(sample_manifest(), "m");
    CHECK(manifest.name == "toy");
    CHECK(manifest.model.window == 4 && manifest.model.max_len == 20);
    CHECK(manifest.model.kind == "sim" && manifest.model.num_layers == 1);
    CHECK(ckv::parse_manifest(changed_manifest("\"num_layers\": 1", "\"num_layers\": 2"), "m")
              .model.num_layers == 2);
    CHECK(manifest.model.pool_rows_k == 10 && manifest.model.pool_rows_v == 70000);
    CHECK(manifest.model.features.size() == 3 && manifest.model.features[0].vocab_size == 9);
    CHECK(!manifest.item_table && !manifest.pools_are_inputs);
    CHECK(manifest.entries.substr(0, 4) == "ff11" && manifest.fingerprint.substr(0, 4) == "0011");
    CHECK(manifest.engines[0].plugin_file.empty());
    for (bool const hardware : {false, true}) {
        std::string const setting = hardware ? "hardware" : "version";
        std::string const settings =
            "\"plugin\": {\"file\": null}, \"settings\": {\"" + setting + "_compatible\": true}";
        auto const engines =
            ckv::parse_manifest(changed_manifest("\"plugin\": null", settings), "m").engines;
        CHECK(engines[0].hardware_compatible == hardware);
        CHECK(engines[0].version_compatible == !hardware);
        CHECK(!engines[1].hardware_compatible && !engines[1].version_compatible);
        CHECK(engines[0].plugin_file.empty());
    }
    std::string const beside = "\"plugin\": {\"file\": \"p.so\"}";
    CHECK(ckv::parse_manifest(changed_manifest("\"plugin\": null", beside), "m")
              .engines[0]
              .plugin_file == "p.so");
    std::string const padded = "\"padding\": {\"cache_k_user\": [0, 1.5]}, \"engines\": [";
    CHECK((ckv::parse_manifest(changed_manifest("\"engines\": [", padded), "m")
               .padding.at("cache_k_user") == std::vector<double>{0, 1.5}));
    CHECK(manifest.padding.empty());
    CHECK(manifest.profile.at("S").max == 16 && manifest.profile.at("S").opt == 10);
    CHECK(manifest.graph("decode").inputs.size() == 8);
    ckv::TensorSpec const& user = manifest.graph("decode").tensor("cache_k_user");
    CHECK(user.type == ckv::ElementType::kFloat32);
    CHECK((user.shape({{"B", 3}, {"K", 5}}) == std::vector<std::int64_t>{3, 1, 5, 2}));
    CHECK(user.bytes({{"B", 3}, {"K", 5}}) == 120);
    CHECK(manifest.graph("decode").tensor("history_mask").bytes({{"B", 3}, {"S", 5}}) == 15);
    CHECK(ckv::parse_manifest(changed_manifest("\"entries\"", "\"other\""), "m").entries ==
          manifest.fingerprint);
    CHECK(manifest.ids == manifest.entries);
    CHECK(ckv::parse_manifest(changed_manifest("\"entries\"", "\"ids\""), "m").ids ==
          manifest.entries);
    CHECK(manifest.engines[0].profile.at("B").max == 8);
    CHECK(manifest.engines.size() == 2 && manifest.engines[0].targets[0] == "sm86");
    CHECK(ckv::parse_manifest(changed_manifest("\"window\": 4", "\"window\": null"), "m")
              .model.window == std::nullopt);
    CHECK(manifest.graph("decode").tensor("score").bytes({{"B", 3}, {"C", 5}}) == 60);
    for (ckv::Sizes const& sizes : {ckv::Sizes{{"B", 1}}, {{"B", 1}, {"K", -1}}}) {
        refuses(ErrorCode::kShape, "the size of axis K of tensor 'cache_k_user' is not given or below 0",
                [&] { user.shape(sizes); });
    }
    refuses(ErrorCode::kShape, "too large to address",
            [&] { user.bytes({{"B", std::int64_t{1} << 40}, {"K", std::int64_t{1} << 40}}); });
    refuses(ErrorCode::kShape, "no tensor 'nope'", [&] { manifest.graph("decode").tensor("nope"); });
    refuses(ErrorCode::kBundle, "has the graphs decode, prefill, not 'x'", [&] { manifest.graph("x"); });
}

void damage_is_refused() {
    auto const refused = [](std::string const& from, std::string const& to, std::string const& why) {
        refuses(ErrorCode::kBundle, why,
                [&] { ckv::parse_manifest(changed_manifest(from, to), "where"); });
    };
    std::string const text = sample_manifest();
    for (std::size_t length = 0; length < text.size(); length += 7) {
        refuses(ErrorCode::kBundle, "where",
                [&] { ckv::parse_manifest(text.substr(0, length), "where"); });
    }
    for (std::string const other : {"2", "4"}) {
        refused("\"schema_version\": 3", "\"schema_version\": " + other,
                "schema version " + other + ", this library reads 3");
    }
    refused("\"schema_version\": 3, ", "", "where is damaged");
    refused("\"fingerprint\"", "\"fingerprnt\"", "where is damaged");
    refused("\"max_len\": 20", "\"max_len\": \"20\"", "max_len must be a whole number");
    refused("\"max_len\": 20", "\"max_len\": 0", "max_len must be at least 1");
    // With a negative size, ids of records would pass unchecked.
    for (std::string const field :
         {"max_len", "vocab_size", "pool_rows_k", "pool_rows_v", "bytes"}) {
        std::string const key = "\"" + field + "\": ";
        for (char const* size : {"-1", "18446744073709551615", "2.5"}) {
            refused(key, key + size + ", \"x\": ",
                    field + " must be a whole number of 0 or more, got " + size);
        }
    }
    refused("\"window\": 4", "\"window\": 1", "window must be at least 2");
    refused("\"int32\"", "\"int33\"", "unknown dtype 'int33'");
    refused("[\"B\", 1, \"K\", 2]", "[\"B\", 1, \"K\", -2]",
            "an axis must be a whole number of 0 or more, got -2");
    refused("[\"B\", 1, \"K\", 2]", "[\"B\", 1, \"K\", \"\"]", "bad axis");
    refused("[\"B\", 1, \"K\", 2]", "[\"B\", 1, \"K\", 99999999999]", "bad axis");
    refused("[\"B\", 1, \"K\", 2]", "[\"B\", 1, \"K\", null]", "must be a whole number");
    for (char const* name : {"history_mask", "score"}) {
        refused("{\"name\": \"history_item_id\"", "{\"name\": \"" + std::string(name) + "\"",
                "the graph decode has two tensors '" + std::string(name) + "'");
    }
    for (char const* range : {"8", "1:8", "1:8:4", "2:1:3", "-1:0:1", "1:2:3:4", "a:b:c", "1:2:3 ",
                              "", "0:0:", "0:99999999999999999999:16"}) {
        refused("\"0:10:16\"", std::string("\"") + range + "\"", "a range must");
    }
    for (char const* path : {"../x", "/etc/passwd", "a/../../x", ""}) {
        refused("\"decode.onnx\": {", "\"" + std::string(path) + "\": {", "not inside the bundle");
    }
    refuses(ErrorCode::kBundle, "no bundle manifest", [] { ckv::parse_manifest("{", "x"); });
    refuses(ErrorCode::kBundle, "x", [] { ckv::parse_manifest("[]", "x"); });
    refuses(ErrorCode::kBundle, "x", [] { ckv::parse_manifest("\xff\xfe", "x"); });
}

void write(fs::path const& path, std::string const& text) {
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
}

std::string sha256(std::string const& text) {
    ckv::detail::Sha256 digest;
    digest.update(text.data(), text.size());
    return digest.finish();
}

// A bundle with these files; its manifest.
std::string write_bundle(fs::path const& folder, std::string const& manifest,
                         std::map<std::string, std::string> const& files) {
    std::string entries;
    for (auto const& [name, text] : files) {
        write(folder / name, text);
        entries += (entries.empty() ? "\"" : ", \"") + name + "\": {\"sha256\": \"" + sha256(text) +
                   "\", \"bytes\": " + std::to_string(text.size()) + "}";
    }
    std::string text = manifest;
    std::size_t const start = text.find("\"files\": {") + 10;
    text.replace(start, text.find("}}", start) + 1 - start, entries);
    write(folder / "manifest.json", text);
    return text;
}

void files_are_verified(fs::path const& folder) {
    fs::create_directories(folder);
    refuses(ErrorCode::kBundle, "is no bundle: it has no manifest.json",
            [&] { ckv::Bundle::open(folder); });
    refuses(ErrorCode::kBundle, "nowhere is no bundle: there is no such folder",
            [&] { ckv::Bundle::open(folder / "nowhere"); });
    std::string const large(3 << 20, 'x');
    std::string text = write_bundle(
        folder, sample_manifest(),
        {{"decode.onnx", "abc"}, {"prefill.onnx", ""}, {"weights.bin", large}, {"engines/d.rtx", "e"}});
    CHECK(ckv::Bundle::open(folder).manifest.name == "toy");
    CHECK(ckv::Bundle::open_unverified(folder).manifest.files.size() == 4);

    for (auto const& [from, to, missing] :
         {std::tuple("\"item_table\": null", "\"item_table\": {}", "item_table.safetensors"),
          {"\"pools\": null", "\"pools\": \"float32\"", "pools.safetensors"},
          {"\"plugin\": null", "\"plugin\": {\"file\": \"p.so\"}", "p.so"},
          {"\"prefill\": {", "\"other\": {", "other.onnx"}}) {
        std::string more = text;
        write(folder / "manifest.json", more.replace(more.find(from), std::strlen(from), to));
        refuses(ErrorCode::kBundle, std::string("has no hash of ") + missing,
                [&] { ckv::Bundle::open(folder); });
    }
    write(folder / "manifest.json", text);

    std::string changed = large;
    changed.back() = 'y';
    for (std::string const& other : {changed, large.substr(1)}) {
        write(folder / "weights.bin", other);
        refuses(ErrorCode::kBundle,
                "weights.bin is not the file that was exported, its hash differs: export it again",
                [&] { ckv::Bundle::open(folder); });
    }
    fs::remove(folder / "weights.bin");
    refuses(ErrorCode::kBundle, "lacks its file weights.bin", [&] { ckv::Bundle::open(folder); });
    fs::create_directory(folder / "weights.bin");
    refuses(ErrorCode::kBundle, "lacks its file weights.bin", [&] { ckv::Bundle::open(folder); });
    std::string const listed = "\"engines/d.rtx\": {";
    write(folder / "manifest.json", text.replace(text.find(listed), listed.size(), "\"x\": {"));
    refuses(ErrorCode::kBundle, "has no hash of engines/d.rtx", [&] { ckv::Bundle::open(folder); });
}

void what_engines_load_is_hashed_then(fs::path const& folder) {
    std::string const beside = "\"plugin\": {\"file\": \"engines/p.so\"}";
    write_bundle(folder, changed_manifest("\"plugin\": null", beside),
                 {{"decode.onnx", ""}, {"prefill.onnx", "abc"}, {"engines/d.rtx", "plan"},
                  {"engines/p.so", "code"}});
    ckv::Bundle const bundle = ckv::Bundle::open(folder);
    for (auto const& [name, text] :
         {std::pair("engines/d.rtx", "plan"), {"engines/p.so", "code"}, {"decode.onnx", ""}}) {
        auto const bytes = bundle.read(name);
        CHECK(std::string(bytes.begin(), bytes.end()) == text);
    }
    refuses(ErrorCode::kBundle, "manifest.json is not among the files of the bundle",
            [&] { bundle.read("manifest.json"); });
    for (std::string const name : {"engines/d.rtx", "engines/p.so"}) {
        fs::path const path = folder / name;
        std::string const differs = name + " is not the file that was exported, its hash differs: ";
        fs::rename(path, folder / "kept");
        for (char const* other : {"same", "another size"}) {
            write(path, other);
            refuses(ErrorCode::kBundle, differs + "open the bundle again, or export it again",
                    [&] { bundle.read(name); });
        }
        refuses(ErrorCode::kBundle, differs + "export it", [&] { ckv::Bundle::open(folder); });
        write(path, "same");
        CHECK(ckv::Bundle::open(folder).manifest.files.size() == 4);
        fs::remove(path);
        refuses(ErrorCode::kBundle, "can't read", [&] { bundle.read(name); });
        refuses(ErrorCode::kBundle, "lacks its file " + name, [&] { ckv::Bundle::open(folder); });
        fs::create_directory(path);
        refuses(ErrorCode::kBundle, "can't read", [&] { bundle.read(name); });
        fs::remove(path);
        fs::rename(folder / "kept", path);
    }
}

// A safetensors file of one pool, put in the place of what there is.
void publish(fs::path const& path, std::string const& metadata, float value) {
    std::array<float, 4> const pool = {value, value, value, value};
    std::string const header = "{\"__metadata__\": {\"entries\": \"" + metadata +
                               "\"}, \"pool_k_0\": {\"dtype\": \"F32\", \"shape\": [2, 2], "
                               "\"data_offsets\": [0, 16]}}";
    std::uint64_t const length = header.size();
    std::string text(reinterpret_cast<char const*>(&length), sizeof length);
    text.append(header).append(reinterpret_cast<char const*>(pool.data()), sizeof pool);
    write(path.string() + ".partial", text);
    fs::rename(path.string() + ".partial", path);
}

void a_file_that_is_replaced_is_read_on_as_it_was(fs::path const& folder) {
    std::string const candidate = "{\"name\": \"candidate_item_id\"";
    std::string const pool = "{\"name\": \"pool_k_0\", \"dtype\": \"float32\", \"axes\": [2, 2]}, ";
    ckv::Bundle const bundle{
        folder, ckv::parse_manifest(changed_manifest(candidate, pool + candidate), "m")};
    fs::path const path = folder / "retrained.safetensors";
    publish(path, "first", 1);
    ckv::TensorFile const first = ckv::TensorFile::pools(bundle, path);
    publish(path, "the second", 2);
    ckv::TensorFile const second = ckv::TensorFile::pools(bundle, path);
    for (auto const& [file, name, value] :
         {std::tuple(&first, "first", 1.0F), {&second, "the second", 2.0F}}) {
        std::array<float, 4> got{};
        file->read("pool_k_0", got.data());
        CHECK(file->metadata("entries") == name && file->metadata("other").empty());
        CHECK((got == std::array{value, value, value, value}));
    }
}

}  // namespace

int main(int argc, char** argv) {
    CHECK(argc == 2);
    everything_is_read();
    damage_is_refused();
    fs::path const folder = argv[1];
    fs::remove_all(folder);
    files_are_verified(folder / "verified");
    what_engines_load_is_hashed_then(folder / "loaded");
    a_file_that_is_replaced_is_read_on_as_it_was(folder);
    fs::remove_all(folder);
}
