// The item table of a bundle exported with --item-table: what decode_items takes beside ids.
#pragma once

#include <ckv/manifest.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

namespace ckv {

// A safetensors file with a tensor [I, ..] for each item_* input of decode_items. Read them into
// the caller's memory once, upload them once, and bind them at every call, with I in the sizes.
class ItemTable {
public:
    // Reads the header and checks it against the graph. Throws kBundle.
    static ItemTable open(Bundle const& bundle);

    // I, the ids that the table has rows for.
    std::int64_t items() const { return items_; }

    // Write the tensor into `out`, which has TensorSpec::bytes({{"I", items()}}). Throws kBundle
    // for another name or a file that has become shorter.
    void read(std::string const& name, void* out) const;

private:
    struct Extent {
        std::uint64_t start = 0;  // in the file
        std::uint64_t bytes = 0;
    };

    std::filesystem::path path_;
    std::int64_t items_ = 0;
    std::map<std::string, Extent> extents_;
};

}  // namespace ckv
