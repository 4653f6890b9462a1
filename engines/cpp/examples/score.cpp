// Scores candidates for one user:  score BUNDLE RECORD ITEM...
//
// RECORD: a file that holds the user's cache record (float16 user parts); without events where it is
// "-". ITEM: ids of the candidates. For bundles whose candidates are one id each.
#include <ckv/engine.h>
#include <ckv/error.h>
#include <ckv/record.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

namespace {

using Memory = std::unique_ptr<void, decltype(&cudaFree)>;

Memory allocate(std::size_t bytes) {
    void* memory = nullptr;
    if (bytes > 0 && cudaMalloc(&memory, bytes) != cudaSuccess) {
        throw ckv::Error(ckv::ErrorCode::kCuda, "there is not enough device memory");
    }
    return {memory, &cudaFree};
}

void score(char const* folder, char const* file, std::vector<std::int32_t> const& items) {
    ckv::Bundle const bundle = ckv::Bundle::open(folder);
    auto const layout = ckv::RecordLayout::of(bundle.manifest, ckv::UserType::kFloat16, "decode");
    ckv::Engine engine(bundle, "decode");

    std::vector<std::uint8_t> record = ckv::empty_record(layout);
    if (std::strcmp(file, "-") != 0) {
        std::ifstream in(file, std::ios::binary);
        record.assign(std::istreambuf_iterator<char>(in), {});
    }
    std::int64_t const events = ckv::batch_events(layout, {record});
    ckv::Sizes const sizes = {{"B", 1}, {"S", events}, {"K", layout.window_rows(events)},
                              {"T", 0}, {"C", static_cast<std::int64_t>(items.size())}};

    // On the host, every input; zeros where the user is not known by features.
    std::map<std::string, std::vector<std::uint8_t>> inputs;
    std::map<std::string, void*> addresses;
    for (ckv::TensorSpec const& tensor : engine.graph().inputs) {
        inputs[tensor.name].resize(tensor.bytes(sizes));
        addresses[tensor.name] = inputs[tensor.name].data();
        if (tensor.name.rfind("candidate_", 0) == 0) {
            if (tensor.bytes(sizes) != 4 * items.size()) {
                throw ckv::Error(ckv::ErrorCode::kShape, "candidates of this bundle are no ids");
            }
            std::memcpy(addresses[tensor.name], items.data(), 4 * items.size());
        }
    }
    ckv::batch(layout, {record}, events, addresses);

    std::vector<Memory> memory;
    ckv::Buffers buffers;
    for (auto const* tensors : {&engine.graph().inputs, &engine.graph().outputs}) {
        for (ckv::TensorSpec const& tensor : *tensors) {
            memory.push_back(allocate(tensor.bytes(sizes)));
            buffers[tensor.name] = memory.back().get();
        }
    }
    cudaStream_t stream = nullptr;
    cudaStreamCreate(&stream);
    for (auto const& [name, bytes] : inputs) {
        cudaMemcpyAsync(buffers[name], bytes.data(), bytes.size(), cudaMemcpyDefault, stream);
    }
    engine.enqueue(sizes, buffers, stream);
    std::vector<float> scores(items.size());
    cudaMemcpyAsync(scores.data(), buffers["score"], 4 * scores.size(), cudaMemcpyDefault, stream);
    if (cudaStreamSynchronize(stream) != cudaSuccess) {
        throw ckv::Error(ckv::ErrorCode::kCuda, "the call failed");
    }
    cudaStreamDestroy(stream);
    for (std::size_t i = 0; i < items.size(); ++i) {
        std::printf("%d %.6f\n", items[i], static_cast<double>(scores[i]));
    }
}

}  // namespace

int main(int argc, char** argv) {
    try {
        std::vector<std::int32_t> items;
        for (int i = 3; i < argc; ++i) {
            items.push_back(std::atoi(argv[i]));
        }
        if (items.empty()) {
            throw ckv::Error(ckv::ErrorCode::kShape, "usage: score BUNDLE RECORD ITEM...");
        }
        score(argv[1], argv[2], items);
    } catch (std::exception const& error) {
        std::fprintf(stderr, "score: %s\n", error.what());
        return 2;
    }
}
