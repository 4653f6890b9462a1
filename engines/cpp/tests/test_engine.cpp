// What of the engine can be seen without a GPU. Exits with 77 where there is one: tests/cpp in Python
// then runs real engines.
#include <ckv/engine.h>
#include <cuda_runtime_api.h>

#include "../src/tensorrt_runtime.h"
#include "check.h"
#include "sample.h"

using ckv::ErrorCode;

namespace {

constexpr int kSkipped = 77;

void a_runtime_is_made_and_logs() {
    ckv::detail::take_logged_error();
    int messages = 0;
    ckv::detail::Log log([&](ckv::LogLevel, std::string const&) { ++messages; });
    auto const runtime = log.make_runtime();
    CHECK(runtime != nullptr && messages == 0);
    CHECK(getLogger() != &log);  // TensorRT keeps it for longer than an engine its own
    std::string const junk(1000, 'x');
    CHECK(runtime->deserializeCudaEngine(junk.data(), junk.size()) == nullptr);
    CHECK(messages > 0);
    CHECK(ckv::detail::take_logged_error().rfind(": ", 0) == 0);
    CHECK(ckv::detail::take_logged_error().empty());
}

void without_a_gpu_it_says_so() {
    ckv::Bundle const bundle{"/nowhere", ckv::parse_manifest(sample_manifest(), "m")};
    refuses(ErrorCode::kCuda, "running an engine needs an NVIDIA GPU",
            [&] { ckv::Engine(bundle, "decode"); });
}

}  // namespace

int main() {
    std::printf("%s\n", ckv::tensorrt_version().c_str());
    int devices = 0;
    if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) {
        std::printf("there is a GPU\n");
        return kSkipped;
    }
    a_runtime_is_made_and_logs();
    without_a_gpu_it_says_so();
}
