// How fast a GPU computes exponentials: work of a softmax that no copy and no product stands for.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace ckv::harness {

// x -> 2^-x in fp32, `rounds` times for each of `count` numbers, by the instruction that the kernels
// take. Nothing is read or written on the way: of many rounds the time is the exponentials' alone.
cudaError_t exponentials(
    float const* x, float* out, int64_t count, int32_t rounds, cudaStream_t stream);

}  // namespace ckv::harness
