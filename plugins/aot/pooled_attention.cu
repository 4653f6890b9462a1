// nvcc -ptx -DCKV_AOT_T=<element type> -DCKV_AOT_TILE=<rows of a thread> -DCKV_AOT_VALUES=<columns>
//     -DCKV_AOT_SCALE=<float>
#include "aot/attention_entry.cuh"

CKV_AOT_SOFTMAX(
    ckv_pooled_attention, CKV_AOT_T, CKV_AOT_TILE, CKV_AOT_VALUES, CKV_AOT_SCALE)
