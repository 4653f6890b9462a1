// Scores candidates for one user:  score BUNDLE RECORD ITEM...
//
// RECORD: a file with the user's cache record (float16 user parts), or "-" for a user without events.
// ITEM: ids of the candidates. For bundles whose candidates are one id each.
#include <ckv/engine.h>
#include <ckv/error.h>
#include <ckv/record.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

static void check(bool good, ckv::ErrorCode code, char const* what) {
    if (!good) {
        throw ckv::Error(code, what);
    }
}

static void score(char const* folder, char const* file, std::vector<std::int32_t> const& items) {
    ckv::Bundle const bundle = ckv::Bundle::open(folder);
    auto const layout = ckv::RecordLayout::of(bundle.manifest, ckv::UserType::kFloat16, "decode");
    ckv::Engine engine(bundle, "decode");

    std::ifstream in(file, std::ios::binary);
    std::vector<std::uint8_t> record(std::istreambuf_iterator<char>(in), {});
    record = std::strcmp(file, "-") == 0 ? ckv::empty_record(layout) : record;
    std::int64_t const events = ckv::batch_events(layout, {record});
    ckv::Sizes const sizes = {{"B", 1}, {"S", events}, {"K", layout.window_rows(events)},
                              {"T", 0}, {"C", static_cast<std::int64_t>(items.size())}};

    // Memory that host and device see, zero at first. A server would use pinned and device memory.
    ckv::Buffers buffers;
    for (auto const* tensors : {&engine.graph().inputs, &engine.graph().outputs}) {
        for (ckv::TensorSpec const& tensor : *tensors) {
            void*& memory = buffers[tensor.name];
            cudaError_t const status = cudaMallocManaged(&memory, tensor.bytes(sizes) + 1);
            check(status == cudaSuccess, ckv::ErrorCode::kCuda, "there is not enough memory");
            std::memset(memory, 0, tensor.bytes(sizes));
            if (tensor.name.rfind("candidate_", 0) == 0) {
                check(tensor.bytes(sizes) == 4 * items.size(), ckv::ErrorCode::kShape,
                      "the candidates of this bundle are no ids");
                std::memcpy(memory, items.data(), 4 * items.size());
            }
        }
    }
    ckv::batch(layout, {record}, events, buffers);
    engine.enqueue(sizes, buffers, nullptr);
    check(cudaDeviceSynchronize() == cudaSuccess, ckv::ErrorCode::kCuda, "the call failed");
    for (std::size_t i = 0; i < items.size(); ++i) {
        float const of = static_cast<float const*>(buffers.at("score"))[i];
        std::printf("%d %.6f\n", items[i], static_cast<double>(of));
    }
    for (auto const& each : buffers) {
        cudaFree(each.second);
    }
}

int main(int argc, char** argv) {
    try {
        check(argc > 3, ckv::ErrorCode::kShape, "usage: score BUNDLE RECORD ITEM...");
        std::vector<std::int32_t> items;
        for (int i = 3; i < argc; ++i) {
            items.push_back(std::atoi(argv[i]));
        }
        score(argv[1], argv[2], items);
    } catch (std::exception const& error) {
        std::fprintf(stderr, "score: %s\n", error.what());
        return 2;
    }
}
