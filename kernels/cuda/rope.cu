// Rotary positions, and a row's latent and rope key into the paged pool. Angles in double, so that
// far positions lose nothing; pairs (2i, 2i + 1).
#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/kv_fp8.cuh"
#include "kernels/cuda/norm.cuh"

#include <cuda_bf16.h>

enum { THREADS = 128, WRITE_EACH = 4 };

static __global__ void angles(const float *inv_freq, float multiplier, int rope,
                              const int32_t *pos, float *cos_sin, int n)
{
    int at = blockIdx.x * THREADS + threadIdx.x, half = rope / 2;
    if (at >= n) return;
    int row = at / half, i = at % half;
    if (pos[row] < 0) return;
    double angle = (double) pos[row] * (double) inv_freq[i], sine, cosine;
    sincos(angle, &sine, &cosine);
    cos_sin[2 * (size_t) at] = (float) (cosine * (double) multiplier);
    cos_sin[2 * (size_t) at + 1] = (float) (sine * (double) multiplier);
}

void cuda_rope_angles(struct device *d, const float *inv_freq, float multiplier, int rope,
                      const int32_t *pos, float *cos_sin, int n_rows)
{
    int n = n_rows * (rope / 2);
    if (n == 0) return;
    angles<<<(n + THREADS - 1) / THREADS, THREADS, 0, d->stream>>>(inv_freq, multiplier, rope, pos,
                                                                  cos_sin, n);
    device_launched(d, "rope_angles");
}

static __device__ float2 turned(float even, float odd, const float *cos_sin)
{
    return make_float2(__fmul_rn(even, cos_sin[0]) - __fmul_rn(odd, cos_sin[1]),
                       __fmul_rn(even, cos_sin[1]) + __fmul_rn(odd, cos_sin[0]));
}

// A pair a thread. Grid: rows, then blocks of a row's pairs.
static __global__ void rotate(float *x, int x_stride, int x_head_stride, int n_heads, int rope,
                              const float *cos_sin)
{
    int half = rope / 2, at = blockIdx.y * THREADS + threadIdx.x;
    overlap_next();
    overlap_wait();
    if (at >= n_heads * half) return;
    const float *turn = cos_sin + (size_t) blockIdx.x * rope + at % half * 2;
    float *pair = x + (size_t) blockIdx.x * x_stride + (size_t) (at / half) * x_head_stride +
                  at % half * 2;
    float2 value = turned(pair[0], pair[1], turn);
    pair[0] = value.x;
    pair[1] = value.y;
}

void cuda_rope(struct device *d, float *x, int x_stride, int x_head_stride, int n_heads, int rope,
               const float *cos_sin, int n_rows)
{
    if (n_rows == 0) return;
    dim3 grid((unsigned) n_rows, (unsigned) ceil_div((uint64_t) n_heads * rope / 2, THREADS));
    overlap_launch(d, "rope", true, rotate, grid, THREADS, 0, x, x_stride, x_head_stride, n_heads,
                   rope, cos_sin);
}

struct kv_write {
    int lora, rope;
    float eps;
    const float *c, *norm, *cos_sin;
    struct step_inputs in;
    struct kv_layer kv;
    struct kv_block block; // of FP8
};

static __device__ void store(float *to, float value) { *to = value; }
static __device__ void store(__nv_bfloat16 *to, float value) { *to = __float2bfloat16_rn(value); }
static __device__ void store_4(float *to, float4 v) { *(float4 *) to = v; }
static __device__ void store_4(__nv_bfloat16 *to, float4 v)
{
    ((__nv_bfloat162 *) to)[0] = __floats2bfloat162_rn(v.x, v.y);
    ((__nv_bfloat162 *) to)[1] = __floats2bfloat162_rn(v.z, v.w);
}

// Which block of the pool has the row's position; -1: it is padding. A position without a block is
// a bug: the kernel traps, and sync tells.
static __device__ __forceinline__ int block_of(const struct kv_write &w, int pos)
{
    int index = pos / KV_BLOCK_ROWS;
    if (pos < 0) return -1;
    if (index >= w.in.max_blocks) __trap();
    int id = w.in.blocks[(size_t) w.in.slot[blockIdx.x] * w.in.max_blocks + index];
    if (id < 0 || id >= w.kv.n_blocks) __trap();
    return id;
}

template <typename T> static __device__ __forceinline__ T *place_of(const struct kv_write &w)
{
    int pos = w.in.pos[blockIdx.x], id = block_of(w, pos);
    if (id < 0) return nullptr;
    return (T *) w.kv.pool +
           ((size_t) id * KV_BLOCK_ROWS + pos % KV_BLOCK_ROWS) * (w.lora + w.rope);
}

template <typename T>
static __device__ __forceinline__ void write_rope(const struct kv_write &w, const float *c, T *to)
{
    const float *turn = w.cos_sin + (size_t) blockIdx.x * w.rope;
    for (int i = threadIdx.x * 2; i < w.rope; i += THREADS * 2) {
        float2 value = turned(c[w.lora + i], c[w.lora + i + 1], turn + i);
        store(to + i, value.x);
        store(to + i + 1, value.y);
    }
}

// One block a row.
template <typename T> static __global__ void write_rows(struct kv_write w)
{
    const float *c = w.c + (size_t) blockIdx.x * (w.lora + w.rope);
    T *to = place_of<T>(w);
    overlap_next();
    overlap_wait();
    if (to == nullptr) return;
    float sum = 0;
    for (int i = threadIdx.x; i < w.lora; i += THREADS) sum = fmaf(c[i], c[i], sum);
    float scale = 1.0f / sqrtf(block_sum<THREADS>(sum) / (float) w.lora + w.eps);
    for (int i = threadIdx.x; i < w.lora; i += THREADS) store(to + i, c[i] * scale * w.norm[i]);
    write_rope(w, c, to + w.lora);
}

// The same where a thread has WRITE_EACH values of the latent.
template <typename T> static __device__ __forceinline__ void write_row(const struct kv_write &w)
{
    const float *c = w.c + (size_t) blockIdx.x * (w.lora + w.rope);
    overlap_next();
    float4 by = ((const float4 *) w.norm)[threadIdx.x];
    T *to = place_of<T>(w);
    overlap_wait();
    float4 v = ((const float4 *) c)[threadIdx.x];
    float sum = fmaf(v.x, v.x, v.y * v.y) + fmaf(v.z, v.z, v.w * v.w);
    float scale = 1.0f / sqrtf(block_sum<THREADS>(sum) / (float) w.lora + w.eps);
    if (to == nullptr) return;
    store_4(to + threadIdx.x * WRITE_EACH,
            make_float4(v.x * scale * by.x, v.y * scale * by.y, v.z * scale * by.z,
                        v.w * scale * by.w));
    write_rope(w, c, to + w.lora);
}

// Values [i, i + 4) of n; zeros behind them. `whole`: it is one load.
static __device__ __forceinline__ float4 four_of(const float *x, int i, int n, bool whole)
{
    if (whole && i < n) return *(const float4 *) (x + i);
    return make_float4(i < n ? x[i] : 0, i + 1 < n ? x[i + 1] : 0, i + 2 < n ? x[i + 2] : 0,
                       i + 3 < n ? x[i + 3] : 0);
}

static __device__ __forceinline__ float squares(float4 v)
{
    return fmaf(v.x, v.x, v.y * v.y) + fmaf(v.z, v.z, v.w * v.w);
}

static __device__ __forceinline__ uint32_t most_bits(float4 v)
{
    return max(max(__float_as_uint(fabsf(v.x)), __float_as_uint(fabsf(v.y))),
               max(__float_as_uint(fabsf(v.z)), __float_as_uint(fabsf(v.w))));
}

struct fp8; // as a type of KV

// A row of any shape into FP8: a warp has a scale's values at a time, four a thread.
template <> __device__ __forceinline__ void write_row<struct fp8>(const struct kv_write &w)
{
    constexpr int WARPS = THREADS / WARP;
    static_assert(KV_SCALE_VALUES == WARP * WRITE_EACH, "a warp has a scale's values");
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    bool whole = w.lora % WRITE_EACH == 0 && w.rope % WRITE_EACH == 0;
    const float *c = w.c + (size_t) blockIdx.x * (w.lora + w.rope);
    overlap_next();
    float4 norm = four_of(w.norm, threadIdx.x * WRITE_EACH, w.lora, whole);
    int pos = w.in.pos[blockIdx.x], id = block_of(w, pos), at = pos % KV_BLOCK_ROWS;
    overlap_wait();
    float4 v = four_of(c, threadIdx.x * WRITE_EACH, w.lora, whole);
    float sum = squares(v);
    for (int k = warp + WARPS; k < w.block.n_scales; k += WARPS) {
        sum += squares(four_of(c, (k * WARP + lane) * WRITE_EACH, w.lora, whole));
    }
    float by = 1.0f / sqrtf(block_sum<THREADS>(sum) / (float) w.lora + w.eps);
    if (id < 0) return;
    char *block = (char *) w.kv.pool + (size_t) id * w.block.bytes;
    uint8_t *latent = (uint8_t *) block + (size_t) at * w.lora;
    float *scales = (float *) (block + w.block.scales) + (size_t) at * w.block.n_scales;
    for (int k = warp; k < w.block.n_scales; k += WARPS) {
        int i = (k * WARP + lane) * WRITE_EACH;
        if (k != warp) {
            v = four_of(c, i, w.lora, whole);
            norm = four_of(w.norm, i, w.lora, whole);
        }
        v = make_float4(v.x * by * norm.x, v.y * by * norm.y, v.z * by * norm.z, v.w * by * norm.w);
        float factor, scale = kv_scale(__reduce_max_sync(~0u, most_bits(v)), &factor);
        uint32_t codes = fp8_pack(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
        if (whole && i < w.lora) *(uint32_t *) (latent + i) = codes;
        for (int j = 0; !whole && j < WRITE_EACH && i + j < w.lora; j++) {
            latent[i + j] = (uint8_t) (codes >> 8 * j);
        }
        if (lane == 0) scales[k] = scale;
    }
    write_rope(w, c, (__nv_bfloat16 *) (block + w.block.rope) + (size_t) at * w.rope);
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
write_vectors(const __grid_constant__ struct kv_write w)
{
    write_row<T>(w);
}

// That and the norm of the other latent: a block each. Grid: rows, these two.
template <typename T>
static __global__ void __launch_bounds__(THREADS)
write_latents(const __grid_constant__ struct kv_write w, const __grid_constant__ struct norm n)
{
    if (blockIdx.y == 0) norm_row<THREADS, false>(n, blockIdx.x);
    else write_row<T>(w);
}

static bool in_whole_vectors(const struct kv_write &w)
{
    return w.lora == THREADS * WRITE_EACH && w.rope % WRITE_EACH == 0;
}

template <typename T> static void (*kernel_of(const struct kv_write &w))(struct kv_write)
{
    return in_whole_vectors(w) ? write_vectors<T> : write_rows<T>;
}

static void run_write(struct device *d, const struct kv_write &w, int n_rows,
                      void (*kernel)(struct kv_write))
{
    dim3 rows((unsigned) n_rows);
    overlap_launch(d, "kv_write", true, kernel, rows, THREADS, 0, w);
}

static struct kv_write kv_write_of(const struct attention_shape *a, const float *c,
                                   const float *norm, const float *cos_sin,
                                   const struct step_inputs *in, const struct kv_layer *kv)
{
    return {a->kv_lora, a->rope, a->norm_eps, c, norm, cos_sin, *in, *kv,
            kv_block_fp8(a->kv_lora, a->rope)};
}

void cuda_kv_write(struct device *d, const struct attention_shape *a, const float *c,
                   const float *norm, const float *cos_sin, const struct step_inputs *in,
                   const struct kv_layer *kv, int n_rows)
{
    if (n_rows == 0) return;
    struct kv_write w = kv_write_of(a, c, norm, cos_sin, in, kv);
    if (kv->fp8) run_write(d, w, n_rows, write_vectors<struct fp8>);
    else if (d->precision == PRECISION_F32) run_write(d, w, n_rows, kernel_of<float>(w));
    else run_write(d, w, n_rows, kernel_of<__nv_bfloat16>(w));
}

void cuda_latents(struct device *d, const struct attention_shape *a, const float *q_a,
                  const float *q_norm, int q_lora, void *q_out, const float *c, const float *norm,
                  const float *cos_sin, const struct step_inputs *in, const struct kv_layer *kv,
                  int n_rows)
{
    struct kv_write w = kv_write_of(a, c, norm, cos_sin, in, kv);
    struct norm n = {q_a, q_norm, q_lora, q_lora, a->norm_eps, (float *) q_out, NULL, NULL};
    static_assert((int) THREADS == (int) NORM_FEW, "a row's norm is what rmsnorm makes it");
    if (n_rows == 0) return;
    if (!in_whole_vectors(w) || !norm_fits(n, THREADS)) {
        cuda_rmsnorm(d, q_a, q_lora, q_norm, a->norm_eps, q_out, q_lora, n_rows);
        cuda_kv_write(d, a, c, norm, cos_sin, in, kv, n_rows);
        return;
    }
    auto kernel = kv->fp8                          ? write_latents<struct fp8>
                  : d->precision == PRECISION_F32 ? write_latents<float>
                                                  : write_latents<__nv_bfloat16>;
    overlap_launch(d, "latents", true, kernel, dim3((unsigned) n_rows, 2), THREADS, 0, w, n);
}
