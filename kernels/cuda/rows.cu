// Ops that treat each row, or each element, by itself.
#include "kernels/cuda/device.cuh"

#include "kernels/cuda/reduce.cuh"

#include <cuda_bf16.h>

enum {
    THREADS = 256,
    NORM_VECTORS = 4, NORM_FEW = 128, NORM_MANY = 512, // float4s of a thread; threads of a row
};

static __global__ void embed_rows(const void *table, bool f32, int begin, int n, int hidden,
                                  const int32_t *ids, float *x)
{
    int64_t id = (int64_t) ids[blockIdx.x] - begin;
    float *to = x + (size_t) blockIdx.x * hidden;
    bool mine = id >= 0 && id < n;
    size_t first = mine ? (size_t) id * hidden : 0;
    for (int i = threadIdx.x; i < hidden; i += THREADS) {
        float value = 0;
        if (mine) {
            value = f32 ? ((const float *) table)[first + i]
                        : __bfloat162float(((const __nv_bfloat16 *) table)[first + i]);
        }
        to[i] = value;
    }
}

void cuda_embed(struct device *d, const void *table, enum dtype dtype, int vocab_begin,
                int vocab_n, int hidden, const int32_t *ids, float *x, int n_rows)
{
    check(dtype == DTYPE_BF16 || dtype == DTYPE_F32, "an embedding of %s", dtype_name(dtype));
    if (n_rows == 0) return;
    embed_rows<<<n_rows, THREADS, 0, d->stream>>>(table, dtype == DTYPE_F32, vocab_begin, vocab_n,
                                                  hidden, ids, x);
    device_launched(d, "embed");
}

static __global__ void rmsnorm_rows(const float *x, int x_stride, const float *weight, float eps,
                                    float *out, int dim)
{
    const float *from = x + (size_t) blockIdx.x * x_stride;
    float *to = out + (size_t) blockIdx.x * dim;
    float sum = 0;
    for (int i = threadIdx.x; i < dim; i += THREADS) sum = fmaf(from[i], from[i], sum);
    float scale = 1.0f / sqrtf(block_sum<THREADS>(sum) / (float) dim + eps);
    for (int i = threadIdx.x; i < dim; i += THREADS) to[i] = from[i] * scale * weight[i];
}

struct norm {
    const float *x, *weight;
    int x_stride, dim;
    float eps;
    float *out;
    float *sum;       // x, where a row of `add` is added to it first
    const float *add; // null: none is
};

static __device__ __forceinline__ float4 plus(float4 a, float4 b)
{
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// A row stays in registers: NORM_VECTORS a thread, which are asked for at once, as are the weights.
template <int N, bool ADD> static __global__ void __launch_bounds__(N) norm_vectors(struct norm n)
{
    const float4 *from = (const float4 *) (n.x + (size_t) blockIdx.x * n.x_stride);
    const float4 *by = (const float4 *) n.weight;
    size_t row = (size_t) blockIdx.x * n.dim;
    float4 *to = (float4 *) (n.out + row), v[NORM_VECTORS], w[NORM_VECTORS];
    float sum = 0;
#pragma unroll
    for (int j = 0; j < NORM_VECTORS; j++) {
        int i = threadIdx.x + j * N;
        v[j] = i < n.dim / 4 ? from[i] : make_float4(0, 0, 0, 0);
        if (ADD && i < n.dim / 4) v[j] = plus(v[j], ((const float4 *) (n.add + row))[i]);
        w[j] = i < n.dim / 4 ? by[i] : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; ADD && j < NORM_VECTORS; j++) {
        int i = threadIdx.x + j * N;
        if (i < n.dim / 4) ((float4 *) (n.sum + row))[i] = v[j];
    }
#pragma unroll
    for (int j = 0; j < NORM_VECTORS; j++) {
        sum = fmaf(v[j].x, v[j].x, fmaf(v[j].y, v[j].y, sum));
        sum = fmaf(v[j].z, v[j].z, fmaf(v[j].w, v[j].w, sum));
    }
    float s = 1.0f / sqrtf(block_sum<N>(sum) / (float) n.dim + n.eps);
#pragma unroll
    for (int j = 0; j < NORM_VECTORS; j++) {
        int i = threadIdx.x + j * N;
        if (i >= n.dim / 4) continue;
        to[i] = make_float4(v[j].x * s * w[j].x, v[j].y * s * w[j].y, v[j].z * s * w[j].z,
                            v[j].w * s * w[j].w);
    }
}

static bool in_vectors(const void *a, const void *b, const void *c)
{
    return (((uintptr_t) a | (uintptr_t) b | (uintptr_t) c) & (sizeof(float4) - 1)) == 0;
}

// False: these rows are not for whole vectors. The way depends on the shape alone, so that a row's
// sum has one order however many there are.
template <bool ADD> static bool run_vectors(struct device *d, const struct norm &n, int n_rows)
{
    int few = NORM_FEW * NORM_VECTORS * 4, many = NORM_MANY * NORM_VECTORS * 4;
    bool whole = in_vectors(n.x, n.weight, n.out) && n.x_stride % 4 == 0 && n.dim % 4 == 0;
    if (!whole || (ADD && !in_vectors(n.add, n.add, n.add)) || n.dim > many) return false;
    if (n.dim <= few) norm_vectors<NORM_FEW, ADD><<<n_rows, NORM_FEW, 0, d->stream>>>(n);
    else norm_vectors<NORM_MANY, ADD><<<n_rows, NORM_MANY, 0, d->stream>>>(n);
    return true;
}

void cuda_rmsnorm(struct device *d, const float *x, int x_stride, const float *weight, float eps,
                  void *out, int dim, int n_rows)
{
    float *to = (float *) out;
    if (n_rows == 0) return;
    if (!run_vectors<false>(d, {x, weight, x_stride, dim, eps, to, nullptr, nullptr}, n_rows)) {
        rmsnorm_rows<<<n_rows, THREADS, 0, d->stream>>>(x, x_stride, weight, eps, to, dim);
    }
    device_launched(d, "rmsnorm");
}

static __global__ void swiglu_elements(const float *gate, const float *up, float *out, size_t n)
{
    size_t i = (size_t) blockIdx.x * THREADS + threadIdx.x;
    if (i < n) out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

void cuda_swiglu(struct device *d, const float *gate, const float *up, void *out, int n,
                 int n_rows)
{
    size_t all = (size_t) n * (size_t) n_rows;
    if (all == 0) return;
    unsigned blocks = (unsigned) ceil_div(all, THREADS);
    swiglu_elements<<<blocks, THREADS, 0, d->stream>>>(gate, up, (float *) out, all);
    device_launched(d, "swiglu");
}

static __global__ void add_elements(float *x, const float *y, size_t n)
{
    size_t i = (size_t) blockIdx.x * THREADS + threadIdx.x;
    if (i < n) x[i] += y[i];
}

static __global__ void add_vectors(float4 *x, const float4 *y, size_t n)
{
    size_t i = (size_t) blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    x[i] = plus(x[i], y[i]);
}

void cuda_add(struct device *d, float *x, const float *y, size_t n)
{
    if (n == 0) return;
    if (n % 4 == 0 && in_vectors(x, y, y)) {
        unsigned blocks = (unsigned) ceil_div(n / 4, THREADS);
        add_vectors<<<blocks, THREADS, 0, d->stream>>>((float4 *) x, (const float4 *) y, n / 4);
    } else {
        add_elements<<<(unsigned) ceil_div(n, THREADS), THREADS, 0, d->stream>>>(x, y, n);
    }
    device_launched(d, "add");
}

void cuda_add_rmsnorm(struct device *d, float *x, const float *y, const float *weight, float eps,
                      void *out, int dim, int n_rows)
{
    if (n_rows == 0) return;
    if (run_vectors<true>(d, {x, weight, dim, dim, eps, (float *) out, x, y}, n_rows)) {
        device_launched(d, "add_rmsnorm");
        return;
    }
    cuda_add(d, x, y, (size_t) n_rows * (size_t) dim);
    cuda_rmsnorm(d, x, dim, weight, eps, out, dim, n_rows);
}

static __global__ void gather_rows(const float *x, const int32_t *out_rows, int dim, float *out)
{
    const float *from = x + (size_t) out_rows[blockIdx.x] * dim;
    float *to = out + (size_t) blockIdx.x * dim;
    for (int i = threadIdx.x; i < dim; i += THREADS) to[i] = from[i];
}

void cuda_gather(struct device *d, const float *x, const int32_t *out_rows, int dim, float *out,
                 int n_out)
{
    if (n_out == 0) return;
    gather_rows<<<n_out, THREADS, 0, d->stream>>>(x, out_rows, dim, out);
    device_launched(d, "gather");
}
