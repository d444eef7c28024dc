// Ops that treat each row, or each element, by itself.
#include "kernels/cuda/norm.cuh"

#include <cuda_bf16.h>

enum { THREADS = 256 };

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

template <int N, bool ADD>
static __global__ void __launch_bounds__(N) norm_vectors(const __grid_constant__ struct norm n)
{
    norm_row<N, ADD>(n, blockIdx.x);
}

// False: these rows are not for whole vectors. The way depends on the shape alone, so that a row's
// sum has one order however many there are.
template <bool ADD>
static bool run_vectors(struct device *d, const char *op, const struct norm &n, int n_rows)
{
    dim3 rows((unsigned) n_rows);
    if (!norm_fits(n, NORM_MANY)) return false;
    if (norm_fits(n, NORM_FEW)) {
        overlap_launch(d, op, true, norm_vectors<NORM_FEW, ADD>, rows, NORM_FEW, 0, n);
    } else {
        overlap_launch(d, op, true, norm_vectors<NORM_MANY, ADD>, rows, NORM_MANY, 0, n);
    }
    return true;
}

void cuda_rmsnorm(struct device *d, const float *x, int x_stride, const float *weight, float eps,
                  void *out, int dim, int n_rows)
{
    float *to = (float *) out;
    if (n_rows == 0) return;
    struct norm n = {x, weight, x_stride, dim, eps, to, nullptr, nullptr};
    if (run_vectors<false>(d, "rmsnorm", n, n_rows)) return;
    rmsnorm_rows<<<n_rows, THREADS, 0, d->stream>>>(x, x_stride, weight, eps, to, dim);
    device_launched(d, "rmsnorm");
}

static __global__ void swiglu_elements(const float *gate, const float *up, float *out, size_t n)
{
    size_t i = (size_t) blockIdx.x * THREADS + threadIdx.x;
    overlap_next();
    overlap_wait();
    if (i < n) out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

void cuda_swiglu(struct device *d, const float *gate, const float *up, void *out, int n,
                 int n_rows)
{
    size_t all = (size_t) n * (size_t) n_rows;
    if (all == 0) return;
    unsigned blocks = (unsigned) ceil_div(all, THREADS);
    overlap_launch(d, "swiglu", true, swiglu_elements, dim3(blocks), THREADS, 0, gate, up,
                   (float *) out, all);
}

static __global__ void add_elements(float *x, const float *y, size_t n)
{
    size_t i = (size_t) blockIdx.x * THREADS + threadIdx.x;
    if (i < n) x[i] += y[i];
}

static __global__ void add_vectors(float4 *x, const float4 *y, size_t n)
{
    size_t i = (size_t) blockIdx.x * THREADS + threadIdx.x;
    overlap_next();
    overlap_wait();
    if (i >= n) return;
    x[i] = plus(x[i], y[i]);
}

void cuda_add(struct device *d, float *x, const float *y, size_t n)
{
    if (n == 0) return;
    if (n % 4 == 0 && in_vectors(x, y, y)) {
        unsigned blocks = (unsigned) ceil_div(n / 4, THREADS);
        overlap_launch(d, "add", true, add_vectors, dim3(blocks), THREADS, 0, (float4 *) x,
                       (const float4 *) y, n / 4);
        return;
    }
    add_elements<<<(unsigned) ceil_div(n, THREADS), THREADS, 0, d->stream>>>(x, y, n);
    device_launched(d, "add");
}

void cuda_add_rmsnorm(struct device *d, float *x, const float *y, const float *weight, float eps,
                      void *out, int dim, int n_rows)
{
    if (n_rows == 0) return;
    struct norm n = {x, weight, dim, dim, eps, (float *) out, x, y};
    if (run_vectors<true>(d, "add_rmsnorm", n, n_rows)) return;
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
