// The launch functions that are compiled apart, one source file an element type.
#pragma once

#include <cuda_runtime_api.h>

#include "attention_args.h"

namespace ckv {

struct LaunchPlan;

template <Dtype kDtype>
struct AttentionLauncher {
    static cudaError_t cores(KernelArgs const&, Form, LaunchPlan const&, cudaStream_t);
    // cudaErrorNotSupported where the tensor cores can't take it: the caller then takes `cores`.
    static cudaError_t mma(KernelArgs const&, Form, LaunchPlan const&, cudaStream_t);
};

}  // namespace ckv
