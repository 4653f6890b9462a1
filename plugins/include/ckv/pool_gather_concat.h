// PoolGatherConcat: concat(pool[index], user), row by row.
#pragma once

#include <cuda_runtime_api.h>

#include "ckv/types.h"

namespace ckv {

struct PoolGatherConcatArgs {
    Dtype dtype = Dtype::kFloat32;
    int64_t rows = 0;       // how many indices
    PooledSide side;        // index [rows], user [rows, user_width]
    void* out = nullptr;    // [rows, side.width()], rows `out_stride` elements apart
    int64_t out_stride = 0;
    // Device counter, or null: rows whose index was outside the pool are added to it.
    unsigned int* bad_rows = nullptr;
};

// Writes every element of `out`; a row with an index outside the pool gets zeros, then its user
// part. Returns what the launch returned: asynchronous errors come up on the stream.
cudaError_t pool_gather_concat(PoolGatherConcatArgs const& args, cudaStream_t stream);

}  // namespace ckv
