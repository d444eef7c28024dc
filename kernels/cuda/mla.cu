// Absorbed multi-head latent attention over paged KV: the exact way, for every shape and precision,
// and the choice of the faster one (mla_mma.cuh).
#include "kernels/cuda/device.cuh"

#include "kernels/cuda/kv_fp8.cuh"
#include "kernels/cuda/mla_mma.cuh"
#include "kernels/cuda/mla_wgmma.cuh"
#include "kernels/cuda/reduce.cuh"

#include <cuda_bf16.h>

enum { THREADS = 128, WARPS = THREADS / WARP };

static __device__ float load(const float *x) { return *x; }
static __device__ float load(const __nv_bfloat16 *x) { return __bfloat162float(*x); }

// A block of KV, value i of its row j.
template <typename T> struct plain_block {
    const T *rows;
    int width;
    __device__ plain_block(const struct mla &m, int id)
        : rows((const T *) m.kv.pool + (size_t) id * KV_BLOCK_ROWS * (m.kv_lora + m.rope)),
          width(m.kv_lora + m.rope)
    {
    }
    __device__ float operator()(int j, int i) const { return load(rows + (size_t) j * width + i); }
};

struct fp8_block {
    const char *base;
    const struct mla &m;
    __device__ fp8_block(const struct mla &all, int id)
        : base((const char *) all.kv.pool + (size_t) id * all.block.bytes), m(all)
    {
    }
    __device__ float operator()(int j, int i) const
    {
        if (i >= m.kv_lora) {
            return load((const __nv_bfloat16 *) (base + m.block.rope) + j * m.rope + i - m.kv_lora);
        }
        const float *scales = (const float *) (base + m.block.scales) + j * m.block.n_scales;
        return e4m3_widen((uint8_t) base[j * m.kv_lora + i]) * scales[i / KV_SCALE_VALUES];
    }
};

// One block a head (x) and row (y): walks the row's KV blocks in order. Shared: q (kv_lora + rope),
// sums (kv_lora), scores (KV_BLOCK_ROWS).
template <typename BLOCK> static __global__ void __launch_bounds__(THREADS)
attend(const __grid_constant__ struct mla m)
{
    extern __shared__ float shared[];
    int width = m.kv_lora + m.rope, head = blockIdx.x, row = blockIdx.y, thread = threadIdx.x;
    float *q = shared, *sums = q + width, *scores = sums + m.kv_lora;
    int pos = m.in.pos[row];
    if (pos < 0) return;
    if (pos / KV_BLOCK_ROWS >= m.in.max_blocks) __trap();
    const int32_t *blocks = m.in.blocks + (size_t) m.in.slot[row] * m.in.max_blocks;
    size_t first = ((size_t) row * m.n_heads + head) * m.kv_lora;
    const float *q_pe = m.q_pe + (size_t) row * m.q_stride + (size_t) head * m.q_head_stride;
    for (int i = thread; i < width; i += THREADS) {
        q[i] = i < m.kv_lora ? m.q_abs[first + i] : q_pe[i - m.kv_lora];
    }
    for (int i = thread; i < m.kv_lora; i += THREADS) sums[i] = 0;
    float most = -INFINITY, mass = 0;
    for (int begin = 0; begin <= pos; begin += KV_BLOCK_ROWS) {
        int n = pos + 1 - begin < KV_BLOCK_ROWS ? pos + 1 - begin : KV_BLOCK_ROWS;
        BLOCK kv(m, blocks[begin / KV_BLOCK_ROWS]);
        __syncthreads();
        for (int j = thread / WARP; j < n; j += WARPS) {
            float sum = 0;
            for (int i = thread % WARP; i < width; i += WARP) sum = fmaf(q[i], kv(j, i), sum);
            sum = warp_sum(sum);
            if (thread % WARP == 0) scores[j] = sum * m.scale;
        }
        __syncthreads();
        float highest = most;
        for (int j = 0; j < n; j++) highest = fmaxf(highest, scores[j]);
        float keep = expf(most - highest);
        most = highest;
        __syncthreads();
        if (thread < n) scores[thread] = expf(scores[thread] - most);
        __syncthreads();
        mass *= keep;
        for (int j = 0; j < n; j++) mass += scores[j];
        for (int i = thread; i < m.kv_lora; i += THREADS) {
            float sum = sums[i] * keep;
            for (int j = 0; j < n; j++) sum = fmaf(scores[j], kv(j, i), sum);
            sums[i] = sum;
        }
    }
    for (int i = thread; i < m.kv_lora; i += THREADS) m.out[first + i] = sums[i] / mass;
}

template <typename BLOCK> static void run_blocks(struct device *d, const struct mla &m)
{
    size_t shared = (size_t) (2 * m.kv_lora + m.rope + KV_BLOCK_ROWS) * sizeof(float);
    device_allow(d, (const void *) attend<BLOCK>, (int) shared, "mla");
    dim3 grid((unsigned) m.n_heads, (unsigned) m.n_rows);
    attend<BLOCK><<<grid, THREADS, shared, d->stream>>>(m);
}

static void run_exact(struct device *d, const struct mla &m)
{
    if (m.kv.fp8) run_blocks<fp8_block>(d, m);
    else if (d->precision == PRECISION_F32) run_blocks<plain_block<float>>(d, m);
    else run_blocks<plain_block<__nv_bfloat16>>(d, m);
}

void cuda_mla(struct device *d, const struct attention_shape *a, const float *q_abs,
              const float *q_pe, int q_stride, int q_head_stride, const struct step_inputs *in,
              const struct kv_layer *kv, float *out, int n_rows)
{
    if (n_rows == 0) return;
    struct mla m = {a->n_heads, a->kv_lora, a->rope, n_rows, a->softmax_scale, q_abs, q_pe,
                    (size_t) q_stride, (size_t) q_head_stride, *in, *kv, out,
                    d->scratch.mla, 1, kv_block_fp8(a->kv_lora, a->rope)};
    if (d->precision == PRECISION_F32 || !mla_mma_takes(a->kv_lora, a->rope)) run_exact(d, m);
    else if (d->hopper) mla_wgmma_run(d, m);
    else mla_mma_run(d, m);
    device_launched(d, "mla");
}
