#include "kernels/cuda/skinny_rows.cuh"

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/overlap.cuh"

enum {
    STREAM_THREADS = 256,
    STREAM_ITEMS = 2, // of a thread, asked for at once
};

static __device__ __forceinline__ uint4 even_halves(const float4 (&v)[4])
{
    return make_uint4(pack_bf16(v[0].x, v[0].z), pack_bf16(v[1].x, v[1].z),
                      pack_bf16(v[2].x, v[2].z), pack_bf16(v[3].x, v[3].z));
}

static __device__ __forceinline__ uint4 odd_halves(const float4 (&v)[4])
{
    return make_uint4(pack_bf16(v[0].y, v[0].w), pack_bf16(v[1].y, v[1].w),
                      pack_bf16(v[2].y, v[2].w), pack_bf16(v[3].y, v[3].w));
}

// At most a block a multiprocessor, so that the product behind, which may not begin before all of
// them have, begins early.
template <bool VECTORS>
static __global__ void __launch_bounds__(STREAM_THREADS)
stream_rows(const __grid_constant__ struct gemm_rows r, int blocks, uint4 *to, int pitch)
{
    overlap_next();
    overlap_wait();
    int items = r.n_rows * blocks * 8, stride = gridDim.x * STREAM_THREADS;
    for (int first = blockIdx.x * STREAM_THREADS + threadIdx.x; first < items;
         first += stride * STREAM_ITEMS) {
        float4 v[STREAM_ITEMS][4];
#pragma unroll
        for (int i = 0; i < STREAM_ITEMS; i++) {
            int item = first + i * stride;
            const float *from = r.x + (size_t) (item / 8 / blocks) * r.x_stride;
            int k = item / 8 % blocks * SCALE_BLOCK + item % 8 * 4 - r.phases[0];
#pragma unroll
            for (int t = 0; t < 4; t++) {
                v[i][t] = four_inputs<VECTORS>(from, k + t * 32, item < items ? r.k : 0);
            }
        }
#pragma unroll
        for (int i = 0; i < STREAM_ITEMS; i++) {
            int item = first + i * stride, place = item % (blocks * 8) * 16;
            if (item >= items) break;
            uint4 *there = to + ((size_t) (item / 8 / blocks) * pitch + place) / 8;
            there[0] = even_halves(v[i]);
            there[1] = odd_halves(v[i]);
        }
    }
}

bool skinny_rows_by_vectors(const struct gemm_rows *r)
{
    return (uintptr_t) r->x % 16 == 0 && r->x_stride % 4 == 0 && r->k % 4 == 0 &&
           r->phases[0] % 4 == 0;
}

void skinny_rows_stream(struct device *d, const struct gemm_rows *r, int blocks, void *to)
{
    uint64_t items = (uint64_t) r->n_rows * (uint64_t) blocks * 8;
    dim3 grid((unsigned) smaller(ceil_div(items, STREAM_THREADS), (uint64_t) d->n_sm));
    auto kernel = skinny_rows_by_vectors(r) ? stream_rows<true> : stream_rows<false>;
    if (!d->stream_carved) {
        // A multiprocessor runs it beside skinny_product only with the same shares.
        const void *kernels[] = {(const void *) stream_rows<true>,
                                 (const void *) stream_rows<false>};
        for (const void *each : kernels) {
            cudaFuncAttribute carveout = cudaFuncAttributePreferredSharedMemoryCarveout;
            device_note(d, cudaFuncSetAttribute(each, carveout, cudaSharedmemCarveoutMaxShared),
                        "gemm");
        }
        d->stream_carved = true;
    }
    overlap_launch(d, "gemm", true, kernel, grid, STREAM_THREADS, 0, *r, blocks, (uint4 *) to,
                   (int) cuda_input_pitch(r->k));
}
