// Checks every kernel against the CPU reference, then times them. Needs a GPU.
//
//   cmake --preset native && cmake --build --preset native --target ckv_harness
//   build/native/ckv_harness [check|quick|time] [SEED]
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "call.h"

int main(int argc, char** argv) {
    int gpus = 0;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus == 0) {
        std::fprintf(stderr, "ckv_harness needs an NVIDIA GPU and its driver: none answers here\n");
        return 2;
    }
    char const* what = argc > 1 ? argv[1] : "all";
    uint32_t const seed = argc > 2 ? static_cast<uint32_t>(std::strtoul(argv[2], nullptr, 10)) : 1;
    bool const all = std::strcmp(what, "all") == 0;
    bool const quick = std::strcmp(what, "quick") == 0;  // without the largest shapes
    bool const checks = all || quick || std::strcmp(what, "check") == 0;
    bool const times = all || std::strcmp(what, "time") == 0;
    if (!checks && !times) {
        std::fprintf(stderr, "usage: ckv_harness [check|quick|time] [SEED]\n");
        return 2;
    }
    cudaDeviceProp properties{};
    ckv::harness::must(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    std::printf("%s, compute capability %d.%d, seed %u\n", properties.name, properties.major,
        properties.minor, seed);
    if (checks && ckv::harness::check_all(seed, quick) > 0) {
        return 1;
    }
    if (times) {
        ckv::harness::time_all();
    }
    return 0;
}
