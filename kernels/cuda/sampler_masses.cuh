// The sampler's arithmetic (kernels/sampler_mass.h) on the device, operation by operation as there,
// so that nothing is fused that the host does not fuse; and how its kernels read logits: a warp
// takes blocks of SAMPLER_BLOCK, a lane 4 logits of each.
#ifndef PENSTOCK_KERNELS_CUDA_SAMPLER_MASSES_CUH
#define PENSTOCK_KERNELS_CUDA_SAMPLER_MASSES_CUH

#include "kernels/cuda/device.cuh"

#include "kernels/cuda/sampler.h"

enum {
    THREADS = 256, WARPS = THREADS / WARP,
    LANE_LOGITS = 4, BLOCKS = SAMPLER_CHUNK / SAMPLER_BLOCK, // blocks of a chunk
};

static_assert(SAMPLER_BLOCK == WARP * LANE_LOGITS, "a warp reads a block at once");
static_assert(SAMPLER_CHUNK == THREADS * LANE_LOGITS, "a walk's threads share a chunk");

static const uint32_t NAN_KEY = 0xffffffffu; // of no other logit: the largest of a block with NaN

// --- sampler_mass.h on the device

static inline __device__ uint32_t key_on(float l)
{
    uint32_t bits = __float_as_uint(l);
    bits = bits == 0x80000000u ? 0 : bits;
    return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

static inline __device__ uint64_t entry_on(float l, int32_t id)
{
    return (uint64_t) ~key_on(l) << 32 | (uint32_t) id;
}

static inline __device__ float key_logit_on(uint32_t key)
{
    return __uint_as_float(key >> 31 != 0 ? key & 0x7fffffffu : ~key);
}

static inline __device__ float entry_logit_on(uint64_t entry)
{
    return key_logit_on(~(uint32_t) (entry >> 32));
}

static inline __device__ float exponent_on(const struct softmax *s, float l)
{
    float t = __fmul_rn(__fsub_rn(l, s->max), s->scale);
    return t < 0 ? t : 0;
}

static __constant__ int32_t mass_table[8] = MASS_TABLE;

static inline __device__ uint32_t plain_on(const float *table, float l, float scale, float grid,
                                           float least)
{
    l = l > least ? l : least;
    float on_grid = __fmaf_rn(l, scale, grid), eighths = __fsub_rn(on_grid, grid);
    float f = __fmaf_rn(l, scale, -eighths);
    uint32_t bits = __float_as_uint(on_grid);
    bits = (bits << 20) + __float_as_uint(table[bits & 7]);
    float power = __fmaf_rn(__fmaf_rn(__fmaf_rn(f, MASS_C3, MASS_C2), f, MASS_C1), f, 1.0f);
    return __float2uint_rn(__fmul_rn(power, __uint_as_float(bits)));
}

static inline __device__ uint32_t mass_on(const float *table, const struct softmax *s, float l)
{
    if (s->plain) return plain_on(table, l, s->scale, s->grid, s->least);
    return plain_on(table, exponent_on(s, l), 1, MASS_GRID, MASS_LEAST);
}

// softmax_scaled, of the logit with that key.
static inline __device__ struct softmax softmax_on(uint32_t key, float scale)
{
    struct softmax s = {};
    s.max = key_logit_on(key);
    s.scale = scale;
    double offset = ceil(__dmul_rn(__dmul_rn((double) s.max, (double) scale), 8)) / 8;
    if (!(scale < INFINITY && fabs(offset) <= (double) MASS_OFFSET_MAX)) return s;
    s.plain = true;
    s.offset = (float) offset;
    s.grid = __fsub_rn(MASS_GRID, s.offset);
    s.least = __fdiv_rn(__fadd_rn(s.offset, MASS_LEAST), scale);
    return s;
}

// A copy of the table that all lanes look into at once, each at its own place.
static inline __device__ void put_table(float *table)
{
    if (threadIdx.x < 8) table[threadIdx.x] = __int_as_float(mass_table[threadIdx.x]);
    __syncthreads();
}

// --- reading

// Index of a lane's logit j in its block: vectors where rows are aligned.
static inline __device__ int place_of(bool aligned, int lane, int j)
{
    return aligned ? lane * LANE_LOGITS + j : j * WARP + lane;
}

// A lane's logits of the block from `begin` on; -inf beyond n, a multiple of 4 where rows are
// aligned.
static inline __device__ void read_block(const float *l, int n, int begin, int lane, bool aligned,
                                         float x[LANE_LOGITS])
{
    if (aligned) {
        float4 v = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
        int i = begin + lane * LANE_LOGITS;
        if (i < n) v = *(const float4 *) (l + i);
        x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
        return;
    }
    for (int j = 0; j < LANE_LOGITS; j++) {
        int i = begin + place_of(aligned, lane, j);
        x[j] = i < n ? l[i] : -INFINITY;
    }
}

// N blocks, one behind the other.
template <int N>
static inline __device__ void read_blocks(const float *l, int n, int begin, int lane, bool aligned,
                                          float x[N][LANE_LOGITS])
{
#pragma unroll
    for (int b = 0; b < N; b++) {
        read_block(l, n, begin + b * SAMPLER_BLOCK, lane, aligned, x[b]);
    }
}

// The key of a block's largest logit from a lane's 4 of it.
static inline __device__ uint32_t largest_on(const float x[LANE_LOGITS])
{
    float most = x[0];
    bool good = x[0] == x[0];
    for (int j = 1; j < LANE_LOGITS; j++) {
        most = fmaxf(most, x[j]);
        good = good && x[j] == x[j];
    }
    return __reduce_max_sync(~0u, good ? key_on(most) : NAN_KEY);
}

static inline bool is_aligned(const struct sampler_view *v)
{
    return (uintptr_t) v->logits % sizeof(float4) == 0 && v->vocab_n % LANE_LOGITS == 0;
}

static inline __device__ uint64_t warp_sum(uint64_t x)
{
    for (int i = WARP / 2; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i);
    return x;
}

// Sums up to and with this lane.
static inline __device__ uint64_t warp_prefix(uint64_t x, int lane)
{
    for (int i = 1; i < WARP; i *= 2) {
        uint64_t before = __shfl_up_sync(~0u, x, i);
        if (lane >= i) x += before;
    }
    return x;
}

static inline __device__ const float *row_of(const struct sampler_view &v, int row)
{
    return v.logits + (size_t) row * v.vocab_n;
}

static inline __device__ int count_of(int n, int width) { return (n + width - 1) / width; }

#endif
