// What a bundle keeps for its graphs in files of their own: an item table, or pools as inputs.
#pragma once

#include <ckv/manifest.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace ckv {

// A safetensors file with a tensor for each of some inputs of a graph. Read them into the caller's
// memory once, upload them once, and bind them at every call. It stays open: a file that another one
// replaces is read on as it was.
class TensorFile {
public:
    // The item table that decode_items takes beside ids: item_* [I, ..]. Throws kBundle.
    static TensorFile item_table(Bundle const& bundle);

    // The pools of a bundle whose graphs take them as inputs: pool_<k|v>_<layer>. `path`: another
    // file of the same shapes, such as retrained ones; empty: the bundle's own. Throws kBundle.
    static TensorFile pools(Bundle const& bundle, std::filesystem::path const& path = {});

    // {"I": rows of an item table}; empty for pools.
    Sizes const& sizes() const { return sizes_; }

    // The tensors, in the graph's order.
    std::vector<TensorSpec> const& tensors() const { return tensors_; }

    // Write the tensor into `out`, which has TensorSpec::bytes(sizes()). Throws kBundle for another
    // name or a file that has become shorter. May be called from any thread.
    void read(std::string const& name, void* out) const;

    // A text of the file's metadata, such as "entries", the fingerprint of the records that go with
    // pools (`Manifest::entries`); empty where it has none.
    std::string metadata(std::string const& name) const;

private:
    struct Extent {
        std::uint64_t start = 0;  // in the file
        std::uint64_t bytes = 0;
    };

    struct Source;  // the open file

    static TensorFile open(std::filesystem::path const& path, std::vector<TensorSpec> tensors);

    std::filesystem::path path_;
    std::shared_ptr<Source> source_;
    Sizes sizes_;
    std::vector<TensorSpec> tensors_;
    std::map<std::string, Extent> extents_;
    std::map<std::string, std::string> metadata_;
};

}  // namespace ckv
