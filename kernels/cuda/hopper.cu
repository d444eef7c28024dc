// Descriptions of matrices for Hopper's copy engine.
#include "kernels/cuda/hopper.cuh"

#include <pthread.h>

typedef CUresult encode_fn(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                           const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                           const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                           CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static encode_fn *encode;

// The driver is not linked: programs start where there is none.
static void find_encode(void)
{
    void *found = NULL;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                         cudaEnableDefault, &result);
#else
    cudaError_t error =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
    if (error == cudaSuccess && result == cudaDriverEntryPointSuccess) encode = (encode_fn *) found;
}

CUtensorMap hopper_map(struct device *d, const void *base, uint64_t rows, uint64_t columns,
                       int box_rows)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_encode);
    CUtensorMap map = {};
    cuuint64_t size[2] = {columns, rows}, pitch[1] = {columns * sizeof(__nv_bfloat16)};
    cuuint32_t box[2] = {CHUNK_COLUMNS, (cuuint32_t) box_rows}, step[2] = {1, 1};
    CUresult result = CUDA_ERROR_NOT_SUPPORTED;
    if (encode != NULL) {
        result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *) base, size, pitch, box,
                        step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    }
    if (result != CUDA_SUCCESS) device_note(d, cudaErrorInvalidValue, "a matrix' description");
    return map;
}
