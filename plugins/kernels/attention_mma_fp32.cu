#include "attention_dispatch.cuh"
#include "attention_entry.h"

namespace ckv {

template <>
cudaError_t AttentionLauncher<Dtype::kFloat32>::mma(
    KernelArgs const& p, Form form, LaunchPlan const& plan, cudaStream_t stream) {
    return form == Form::kSoftmax ? run_mma<float, Form::kSoftmax>(p, plan, stream)
                                  : run_mma<float, Form::kPointwise>(p, plan, stream);
}

}  // namespace ckv
