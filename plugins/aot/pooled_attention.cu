// nvcc -ptx -DCKV_AOT_T=<element type> -DCKV_AOT_SCALE=<float>, and for ordinary cores
//     -DCKV_AOT_TILE=<rows of a thread> -DCKV_AOT_VALUES=<columns>, for tensor cores
//     -DCKV_AOT_HEAD=<columns of a head, padded> -DCKV_AOT_WARPS=<of a block>
#include "aot/attention_entry.cuh"

extern "C" CKV_AOT_KERNEL ckv_pooled_attention(
    CKV_AOT_ROWS, int32_t const* mask, CKV_AOT_SIZES, void* out) {
    ckv::aot::softmax<CKV_AOT_BLOCK(ckv::Form::kSoftmax)>(
        CKV_AOT_SCALE, CKV_AOT_ROW_NAMES, mask, CKV_AOT_SIZE_NAMES, out);
}
