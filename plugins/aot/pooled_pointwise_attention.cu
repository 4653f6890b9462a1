// nvcc -ptx, with the macros of pooled_attention.cu and -DCKV_AOT_FLOAT_COUNT=<true or false>
#include "aot/attention_entry.cuh"

extern "C" CKV_AOT_KERNEL ckv_pooled_pointwise_attention(CKV_AOT_ROWS, void const* bias,
    int32_t const* visible, void const* count, CKV_AOT_SIZES, void* out) {
    ckv::aot::pointwise<CKV_AOT_BLOCK(ckv::Form::kPointwise)>(CKV_AOT_SCALE, CKV_AOT_FLOAT_COUNT,
        CKV_AOT_ROW_NAMES, bias, visible, count, CKV_AOT_SIZE_NAMES, out);
}
