// nvcc -ptx, with the macros of pooled_attention.cu and -DCKV_AOT_FLOAT_COUNT=<true or false>
#include "aot/attention_entry.cuh"

CKV_AOT_POINTWISE(ckv_pooled_pointwise_attention, CKV_AOT_T, CKV_AOT_TILE, CKV_AOT_VALUES,
    CKV_AOT_SCALE, CKV_AOT_FLOAT_COUNT)
