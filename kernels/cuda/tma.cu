#include "kernels/cuda/tma.cuh"

#include <pthread.h>

// The driver's function, which a program linked without the driver has to ask for.
typedef CUresult encode_function(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                 const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                 const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static encode_function *encode;

static void find_encode()
{
    void *found = nullptr;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                         cudaEnableDefault, &result);
#else
    cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found,
                                                cudaEnableDefault, &result);
#endif
    if (error == cudaSuccess && result == cudaDriverEntryPointSuccess) {
        encode = (encode_function *) found;
    }
}

CUtensorMap tma_map(struct device *d, const struct tma_tensor *t)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_encode);
    CUtensorMap map = {};
    cuuint64_t sizes[3] = {t->row_bytes, (cuuint64_t) t->n_rows, (cuuint64_t) t->n_matrices};
    cuuint64_t steps[2] = {t->row_bytes, t->step};
    cuuint32_t box[3] = {TMA_ROW, (cuuint32_t) t->box_rows, 1}, strides[3] = {1, 1, 1};
    if (t->n_matrices == 1) steps[1] = t->row_bytes * (cuuint64_t) t->n_rows;
    CUresult result = CUDA_ERROR_NOT_FOUND;
    if (encode != nullptr) {
        result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 3, (void *) t->base, sizes, steps, box,
                        strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    }
    if (result != CUDA_SUCCESS) device_note(d, cudaErrorInvalidValue, "a tensor map");
    return map;
}
