// Checks every kernel against the CPU reference, then times them. Needs a GPU.
//
//   cmake --preset native && cmake --build --preset native --target ckv_harness
//   build/native/ckv_harness [check|quick|time] [SEED]
//   build/native/ckv_harness random SEED SHAPES
//
// `quick` leaves the largest shapes out; `random` draws as many as it is told.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "call.h"

int main(int argc, char** argv) {
    int gpus = 0;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus == 0) {
        std::fprintf(stderr, "ckv_harness needs an NVIDIA GPU and its driver: none answers here\n");
        return 2;
    }
    std::string const what = argc > 1 ? argv[1] : "all";
    uint32_t const seed = argc > 2 ? static_cast<uint32_t>(std::strtoul(argv[2], nullptr, 10)) : 1;
    int const shapes = argc > 3 ? std::atoi(argv[3]) : 0;
    bool const known = what == "all" || what == "check" || what == "quick" || what == "time";
    if (!known && !(what == "random" && shapes > 0)) {
        std::fprintf(stderr,
            "usage: ckv_harness [check|quick|time] [SEED]\n"
            "       ckv_harness random SEED SHAPES\n");
        return 2;
    }
    cudaDeviceProp properties{};
    ckv::harness::must(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    std::printf("%s, compute capability %d.%d, seed %u\n", properties.name, properties.major,
        properties.minor, seed);
    int failed = 0;
    if (what == "random") {
        failed = ckv::harness::check_random(seed, shapes);
    } else if (what != "time") {
        failed = ckv::harness::check_all(seed, what == "quick");
    }
    if (failed > 0) {
        return 1;
    }
    if (what == "all" || what == "time") {
        ckv::harness::time_all();
    }
    return 0;
}
