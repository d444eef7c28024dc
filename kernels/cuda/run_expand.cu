// Keys and values of a sequence from its latents: one product for both, 128 tokens times the 256
// columns of a head, whose weights are widened beforehand and lie as the product reads them.
// Latents and weights come by the copy engine, 64 of the 512 inputs a stage; two warpgroups have 64
// tokens each, and their results leave through shared memory while the next tile is multiplied. A
// block goes on from tile to tile.
#include "kernels/cuda/mla_run.cuh"

#include <cuda_fp8.h>

enum {
    WIDEN_THREADS = 256,
    WIDEN_BLOCKS = 8, // of a head
    HALF = KV_BLOCK_ROWS * CHUNK_ROW_BYTES, // bytes of 64 rows of a chunk
    STAGE = 6 * HALF, // latents, weights of keys and values
    STAGES = 3,
    STEPS = RUN_LORA / CHUNK_COLUMNS,
    COMPUTERS = 2 * WARPGROUP,
    THREADS = COMPUTERS + WARPGROUP,
    FIRST_BARRIER = 1, // of the first warpgroup
};

// --- weights

template <int SIZE>
static __device__ __forceinline__ float widen(const uint8_t *from, int i)
{
    if (SIZE == 1) {
        __nv_fp8_e4m3 x;
        x.__x = from[i];
        return (float) x;
    }
    if (SIZE == 2) return __bfloat162float(((const __nv_bfloat16 *) from)[i]);
    return ((const float *) from)[i];
}

// Element (row, column) of the matrix, scaled.
template <int SIZE>
static __device__ __forceinline__ float weight(const struct mat &m, int row, int column)
{
    int blocks = mat_blocks(m.col_phase, m.k), at = m.col_phase + column;
    float x = widen<SIZE>(m.rows + (size_t) row * blocks * SCALE_BLOCK * SIZE, at);
    if (SIZE == 1) {
        x *= m.scales[(size_t) ((m.row_phase + row) / SCALE_BLOCK) * blocks + at / SCALE_BLOCK];
    }
    return x;
}

// to (n_heads, 2 * RUN_HEAD, RUN_LORA), of which a head's first or last RUN_HEAD rows are written:
// TURN: the matrices (RUN_LORA, RUN_HEAD) turned; else as they are. Grid: 64 inputs, heads.
template <int SIZE, bool TURN> static __global__ void __launch_bounds__(WIDEN_THREADS)
widen_heads(const __grid_constant__ struct mats mats, __nv_bfloat16 *to)
{
    constexpr int INPUTS = RUN_LORA / WIDEN_BLOCKS;
    __shared__ __nv_bfloat16 turned[INPUTS][RUN_HEAD + 2]; // so that a column is in all banks
    const struct mat &m = mats.at[blockIdx.y];
    int input0 = blockIdx.x * INPUTS;
    to += (size_t) blockIdx.y * 2 * RUN_HEAD * RUN_LORA + input0;
    for (int i = threadIdx.x; TURN && i < INPUTS * RUN_HEAD; i += WIDEN_THREADS) {
        int input = i / RUN_HEAD, output = i % RUN_HEAD;
        turned[input][output] = __float2bfloat16_rn(weight<SIZE>(m, input0 + input, output));
    }
    __syncthreads();
    for (int i = threadIdx.x; i < INPUTS * RUN_HEAD / 2; i += WIDEN_THREADS) {
        int output = i / (INPUTS / 2), input = i % (INPUTS / 2) * 2;
        __nv_bfloat162 pair;
        if (TURN) {
            pair.x = turned[input][output];
            pair.y = turned[input + 1][output];
        } else {
            pair = __floats2bfloat162_rn(weight<SIZE>(m, output, input0 + input),
                                         weight<SIZE>(m, output, input0 + input + 1));
        }
        *(__nv_bfloat162 *) (to + (size_t) output * RUN_LORA + input) = pair;
    }
}

template <bool TURN> static void widen_all(struct device *d, const struct matrix *m, int n_heads,
                                           __nv_bfloat16 *to)
{
    struct mats mats;
    for (int i = 0; i < n_heads; i++) mats.at[i] = mat_view(m + i);
    dim3 grid(WIDEN_BLOCKS, (unsigned) n_heads);
    if (m->dtype == DTYPE_F8_E4M3) {
        widen_heads<1, TURN><<<grid, WIDEN_THREADS, 0, d->stream>>>(mats, to);
    } else if (m->dtype == DTYPE_BF16) {
        widen_heads<2, TURN><<<grid, WIDEN_THREADS, 0, d->stream>>>(mats, to);
    } else {
        widen_heads<4, TURN><<<grid, WIDEN_THREADS, 0, d->stream>>>(mats, to);
    }
    device_launched(d, "mla_run");
}

void run_widen(struct device *d, const struct matrix *uk, const struct matrix *uv, int n_heads,
               char *to)
{
    __nv_bfloat16 *keys = (__nv_bfloat16 *) to, *values = keys + RUN_HEAD * RUN_LORA;
    widen_all<true>(d, uk, n_heads, keys);
    widen_all<false>(d, uv, n_heads, values);
}

// --- keys and values

struct maps {
    CUtensorMap pool, weights, expanded;
};

struct shared {
    char stage[STAGES][STAGE];
    char out[2][4 * HALF]; // of a warpgroup: keys, values
    uint64_t full[STAGES], empty[STAGES];
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

static __device__ __forceinline__ void bring(struct shared *s, const struct maps &maps,
                                             const struct run &r)
{
    int tiles = r.padded / RUN_KEYS, used = (r.pos + r.n - 1) / KV_BLOCK_ROWS, i = 0;
    for (int job = blockIdx.x; job < tiles * r.n_heads; job += gridDim.x) {
        int tile = job % tiles, head = job / tiles, rows[2];
        for (int half = 0; half < 2; half++) {
            rows[half] = run_block(r, tile * 2 + half < used ? tile * 2 + half : used);
        }
        for (int step = 0; step < STEPS; step++, i++) {
            int stage = i % STAGES, column = step * CHUNK_COLUMNS;
            char *to = s->stage[stage];
            uint64_t *full = &s->full[stage];
            bar_wait(&s->empty[stage], (uint32_t) (i / STAGES + 1) % 2);
            bar_expect(full, STAGE);
            for (int half = 0; half < 2; half++) {
                box_load(to + half * HALF, &maps.pool, column, rows[half] * KV_BLOCK_ROWS, full);
            }
            box_load(to + 2 * HALF, &maps.weights, column, head * 2 * RUN_HEAD, full);
        }
    }
}

// Rounds 64 rows of 256 columns into four chunks; zeros from row n on.
static __device__ __forceinline__ void put(char *to, const float (&x)[128], int n)
{
    int thread = threadIdx.x % WARPGROUP, row = thread / WARP * 16 + thread % WARP / 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        bool there = row + r * 8 < n;
#pragma unroll
        for (int i = 0; i < 32; i++) {
            uint32_t pair = pack_bf16(x[i * 4 + r * 2], x[i * 4 + r * 2 + 1]);
            *(uint32_t *) (to + chunk_place(row + r * 8, i, KV_BLOCK_ROWS) + thread % 4 * 4) =
                there ? pair : 0;
        }
    }
}

static __device__ __forceinline__ void multiply(float (&sums)[128], const char *latents,
                                                const char *weights, bool keep)
{
    products_begin();
#pragma unroll
    for (int k = 0; k < CHUNK_COLUMNS / 16; k++) {
        product<0>(sums, side_along(latents) + (uint64_t) (k * 2),
                   side_along(weights) + (uint64_t) (k * 2), keep || k > 0);
    }
    products_commit();
}

static __device__ __forceinline__ void expand(struct shared *s, const struct maps &maps,
                                              const struct run &r)
{
    int group = threadIdx.x / WARPGROUP, thread = threadIdx.x % WARPGROUP;
    int tiles = r.padded / RUN_KEYS, i = 0;
    char *out = s->out[group];
    float sums[128];
#pragma unroll
    for (int j = 0; j < 128; j++) sums[j] = 0;
    for (int job = blockIdx.x; job < tiles * r.n_heads; job += gridDim.x) {
        int token = job % tiles * RUN_KEYS + group * KV_BLOCK_ROWS, head = job / tiles;
#pragma unroll
        for (int step = 0; step < STEPS; step++, i++) { // one stage behind, the last is given back
            int stage = i % STAGES;
            bar_wait(&s->full[stage], (uint32_t) (i / STAGES % 2));
            multiply(sums, s->stage[stage] + group * HALF, s->stage[stage] + 2 * HALF, step > 0);
            products_wait<1>();
            if (step > 0 && thread % WARP == 0) bar_arrive(&s->empty[(i - 1) % STAGES]);
        }
        products_wait<0>();
        products_hold(sums);
        if (thread % WARP == 0) bar_arrive(&s->empty[(i - 1) % STAGES]);
        if (thread == 0) stores_wait();
        group_sync(FIRST_BARRIER + group, WARPGROUP);
        put(out, sums, r.pos + r.n - token);
        stored_for_engines();
        group_sync(FIRST_BARRIER + group, WARPGROUP);
        if (thread != 0) continue;
        for (int part = 0; part < 4; part++) { // values lie behind all heads' keys
            int row = (part / 2 * r.n_heads + head) * r.padded + token;
            box_store(&maps.expanded, part % 2 * CHUNK_COLUMNS, row, out + part * HALF);
        }
        stores_commit();
    }
    if (thread == 0) stores_wait();
}

#endif

static __global__ void __launch_bounds__(THREADS, 1)
expand_heads(const __grid_constant__ struct maps maps, const __grid_constant__ struct run r)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ char dynamic[];
    struct shared *s = (struct shared *) hopper_shared(dynamic);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            bar_init(&s->full[i], 1);
            bar_init(&s->empty[i], COMPUTERS / WARP);
        }
        bar_init_end();
    }
    __syncthreads();
    if (threadIdx.x >= COMPUTERS) {
        registers_give<40>();
        if (threadIdx.x == COMPUTERS) bring(s, maps, r);
    } else {
        registers_take<232>();
        expand(s, maps, r);
    }
#else
    __trap();
#endif
}

void run_expand(struct device *d, const struct run *r, const struct kv_layer *kv, char *widened,
                char *expanded)
{
    struct maps maps;
    uint64_t heads = (uint64_t) r->n_heads;
    maps.pool = hopper_map(d, kv->pool, (uint64_t) kv->n_blocks * KV_BLOCK_ROWS,
                           RUN_LORA + RUN_ROPE, KV_BLOCK_ROWS);
    maps.weights = hopper_map(d, widened, heads * 2 * RUN_HEAD, RUN_LORA, 2 * RUN_HEAD);
    maps.expanded = hopper_map(d, expanded, heads * 2 * (uint64_t) r->padded, RUN_HEAD,
                               KV_BLOCK_ROWS);
    int bytes = (int) sizeof(struct shared) + 1024, jobs = r->padded / RUN_KEYS * r->n_heads;
    device_allow(d, (const void *) expand_heads, bytes, "mla_run");
    expand_heads<<<jobs < d->n_sm ? jobs : d->n_sm, THREADS, bytes, d->stream>>>(maps, *r);
    device_launched(d, "mla_run");
}
