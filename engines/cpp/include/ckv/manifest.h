// A bundle as `ckv-export` writes it: its manifest, and the files behind it.
#pragma once

#include <ckv/tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace ckv {

struct Feature {
    std::string name;
    std::string role;  // "item" or "user"
    std::string kind;  // "categorical", "sequence", "numeric", "vector", "timestamp"
    std::int64_t vocab_size = 0;
};

struct Model {
    std::string kind;
    std::int64_t max_len = 0;
    std::int64_t num_layers = 1;
    std::optional<std::int64_t> window;  // none: the whole history is cached
    std::int64_t pool_rows_k = 0;        // 0: that side has no pool
    std::int64_t pool_rows_v = 0;
    std::vector<Feature> features;
};

struct FileEntry {
    std::string sha256;  // hex
    std::uint64_t bytes = 0;
};

struct EngineEntry {
    std::string graph;
    std::string file;  // relative to the bundle
    std::string backend;  // "tensorrt" or "tensorrt_rtx"
    std::string backend_version;
    std::vector<std::string> targets;  // GPUs that it was built for: "sm86"
    Profile profile;  // of the first of its profiles
    std::string plugin_file;  // the library in the bundle that it needs; empty: none
    bool version_compatible = false;  // runs with later versions; holds code of the host for that
    bool hardware_compatible = false;  // runs on every GPU from Ampere on
};

struct Manifest {
    std::string name;
    std::string fingerprint;  // SHA-256 of the model, hex
    std::string entries;  // SHA-256 of what cache entries depend on: records carry it
    std::string ids;  // the same for records that are ids alone
    Model model;
    bool item_table = false;
    bool pools_are_inputs = false;
    Profile profile;
    std::map<std::string, std::vector<double>> padding;  // entries of padding that aren't zeros
    std::map<std::string, GraphSpec> graphs;
    std::map<std::string, FileEntry> files;
    std::vector<EngineEntry> engines;

    // Throws kBundle naming the graphs that there are.
    GraphSpec const& graph(std::string const& name) const;
};

// Throws kBundle; `where` stands in its message.
Manifest parse_manifest(std::string const& json, std::string const& where);

struct Bundle {
    std::filesystem::path folder;
    Manifest manifest;

    // Read the manifest and check that every file it lists is there, with its size and, but for
    // engines and plugin libraries, its SHA-256. Those are hashed when they are loaded: `read` does,
    // and so does `Engine`. Throws kBundle for anything missing or different.
    static Bundle open(std::filesystem::path const& folder);

    // The same without looking at any file but the manifest.
    static Bundle open_unverified(std::filesystem::path const& folder);

    std::filesystem::path file(std::string const& name) const { return folder / name; }

    // A file's bytes, with the size and the SHA-256 that the manifest gives them, whatever has
    // happened to the file since the bundle was opened. Throws kBundle.
    std::vector<char> read(std::string const& name) const;
};

}  // namespace ckv
