// Answers a user's request on the CPU:  serve BUNDLE RECORD [+ITEM...] ITEM...
//
// RECORD: a file with the user's cache record (float16 user parts), written anew; made if there is
// none. +ITEM: what the user has done since, oldest first. ITEM: what is to be scored. For bundles
// whose events and candidates are one id each, without user features.
#include <ckv/error.h>
#include <ckv/record.h>
#include <ckv/session.h>
#include <ckv/tensor_file.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>

using Ids = std::vector<std::int32_t>;
using Memory = std::map<std::string, std::vector<char>>;

// Every tensor of a call, zero at first.
static Memory allocate(ckv::GraphSpec const& graph, ckv::Sizes const& sizes) {
    Memory memory;
    for (auto const* tensors : {&graph.inputs, &graph.outputs}) {
        for (ckv::TensorSpec const& tensor : *tensors) {
            memory[tensor.name].resize(tensor.bytes(sizes));
        }
    }
    return memory;
}

static void set_ids(ckv::GraphSpec const& graph, std::string const& prefix, Ids const& ids,
                    Memory& memory) {
    for (ckv::TensorSpec const& tensor : graph.inputs) {
        if (tensor.name.rfind(prefix, 0) == 0 && tensor.type == ckv::ElementType::kInt32) {
            auto& bytes = memory.at(tensor.name);
            if (bytes.size() != 4 * ids.size()) {
                throw ckv::Error(ckv::ErrorCode::kShape, tensor.name + " is no id alone");
            }
            std::copy_n(reinterpret_cast<char const*>(ids.data()), bytes.size(), bytes.data());
        }
    }
}

static void serve(char const* folder, char const* file, Ids const& done, Ids const& candidates) {
    // A server does this once, but for the record.
    ckv::Bundle const bundle = ckv::Bundle::open(folder);
    auto const layout = ckv::RecordLayout::of(bundle.manifest);
    std::optional<ckv::TensorFile> items;
    if (bundle.manifest.item_table) {  // records are then ids alone
        items = ckv::TensorFile::item_table(bundle);
    }
    ckv::Session const decode(bundle, items ? "decode_items" : "decode");
    std::int64_t const most = layout.pad_to.value_or(bundle.manifest.profile.at("S").max);
    std::ifstream in(file, std::ios::binary);
    std::vector<std::uint8_t> record(std::istreambuf_iterator<char>(in), {});
    record = in.is_open() ? record : ckv::empty_record(layout);

    auto const appended = static_cast<std::int64_t>(done.size());
    std::int64_t const events =
        std::min(ckv::batch_events(layout, {record}, appended), most - appended);
    ckv::Sizes sizes = {{"B", 1}, {"S", events}, {"K", layout.window_rows(events)}, {"T", appended},
                        {"C", static_cast<std::int64_t>(candidates.size())}};
    if (items) {
        sizes["I"] = items->sizes().at("I");
    }
    Memory memory = allocate(decode.graph(), sizes);
    ckv::Buffers buffers;
    for (auto& [name, bytes] : memory) {
        buffers[name] = bytes.data();
    }
    if (items) {
        for (ckv::TensorSpec const& each : items->tensors()) {
            items->read(each.name, buffers.at(each.name));
        }
    }

    set_ids(decode.graph(), "append_", done, memory);
    set_ids(decode.graph(), "candidate_", candidates, memory);
    std::fill_n(memory.at("append_mask").begin(), done.size(), 1);
    ckv::batch(layout, {record}, events, buffers);
    decode.run(sizes, buffers);
    std::map<std::string, void const*> const tensors(buffers.begin(), buffers.end());
    auto const added = ckv::user_events(layout, tensors, sizes, 0, ckv::CallGraph::kDecode);
    ckv::append(layout, record, ckv::views(added), most);

    std::ofstream out(file, std::ios::binary);
    out.write(reinterpret_cast<char const*>(record.data()),
              static_cast<std::streamsize>(record.size()));
    for (std::size_t i = 0; i < candidates.size(); ++i) {
        float score = 0;
        std::memcpy(&score, memory.at("score").data() + i * sizeof score, sizeof score);
        std::printf("%d %.6f\n", candidates[i], static_cast<double>(score));
    }
}

int main(int argc, char** argv) {
    try {
        if (argc < 4) {
            throw std::runtime_error("usage: serve BUNDLE RECORD [+ITEM...] ITEM...");
        }
        Ids done, candidates;
        for (int i = 3; i < argc; ++i) {
            (argv[i][0] == '+' ? done : candidates).push_back(std::atoi(argv[i]));
        }
        serve(argv[1], argv[2], done, candidates);
    } catch (std::exception const& error) {
        std::fprintf(stderr, "serve: %s\n", error.what());
        return 2;
    }
}
