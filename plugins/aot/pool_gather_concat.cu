// nvcc -ptx -DCKV_AOT_BYTES=<bytes of an element>
#include "aot/gather_entry.cuh"

CKV_AOT_GATHER(ckv_pool_gather_concat, CKV_AOT_BYTES)
