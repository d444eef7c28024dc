#include "kernels/cuda/tma.cuh"

#include "kernels/cuda/hopper.cuh"

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

// Swizzled as wgmma reads tiles; the innermost of `n` dimensions first.
static CUtensorMap describe(struct device *d, CUtensorMapDataType type, int n, const void *base,
                            const cuuint64_t *sizes, const cuuint64_t *steps,
                            const cuuint32_t *box)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static const cuuint32_t strides[3] = {1, 1, 1};
    pthread_once(&once, find_encode);
    CUtensorMap map = {};
    CUresult result = CUDA_ERROR_NOT_FOUND;
    if (encode != nullptr) {
        result = encode(&map, type, (cuuint32_t) n, (void *) base, sizes, steps, box, strides,
                        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    }
    if (result != CUDA_SUCCESS) device_note(d, cudaErrorInvalidValue, "a tensor map");
    return map;
}

CUtensorMap tma_map(struct device *d, const struct tma_tensor *t)
{
    cuuint64_t sizes[3] = {t->row_bytes, (cuuint64_t) t->n_rows, (cuuint64_t) t->n_matrices};
    cuuint64_t steps[2] = {t->row_bytes, t->step};
    cuuint32_t box[3] = {TMA_ROW, (cuuint32_t) t->box_rows, 1};
    if (t->n_matrices == 1) steps[1] = t->row_bytes * (cuuint64_t) t->n_rows;
    return describe(d, CU_TENSOR_MAP_DATA_TYPE_UINT8, 3, t->base, sizes, steps, box);
}

CUtensorMap hopper_map(struct device *d, const void *base, uint64_t rows, uint64_t columns,
                       int box_rows)
{
    cuuint64_t sizes[2] = {columns, rows}, steps[1] = {columns * sizeof(__nv_bfloat16)};
    cuuint32_t box[2] = {CHUNK_COLUMNS, (cuuint32_t) box_rows};
    return describe(d, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, base, sizes, steps, box);
}
