// Keys and values of a sequence from its latents: one product for both, 128 tokens times 256
// columns of a head. Latents and weights come by the copy engine, 64 of the 512 inputs a stage;
// two warpgroups have 64 tokens each, and their results leave through shared memory while the next
// tile is multiplied. A block goes on from tile to tile.
#include "kernels/cuda/mla_run.cuh"

#include <cuda_fp8.h>

enum {
    WIDEN_THREADS = 256,
    WIDEN_BLOCKS = 8, // of a head
    HALF = KV_BLOCK_ROWS * CHUNK_ROW_BYTES, // bytes of 64 rows of a chunk
    STAGE = 6 * HALF, // latents, weights of keys, weights of values
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

// Grid: parts, heads.
template <int SIZE> static __global__ void __launch_bounds__(WIDEN_THREADS)
widen_heads(const __grid_constant__ struct mats mats, __nv_bfloat16 *to)
{
    const struct mat &m = mats.at[blockIdx.y];
    int blocks = mat_blocks(m.col_phase, m.k), pieces = m.n * m.k / 8;
    to += (size_t) blockIdx.y * m.n * m.k;
    for (int i = blockIdx.x * WIDEN_THREADS + threadIdx.x; i < pieces;
         i += WIDEN_BLOCKS * WIDEN_THREADS) {
        int row = i * 8 / m.k, column = i * 8 % m.k;
        const uint8_t *from =
            m.rows + ((size_t) row * blocks * SCALE_BLOCK + m.col_phase + column) * SIZE;
        const float *scales = m.scales + (size_t) ((m.row_phase + row) / SCALE_BLOCK) * blocks;
        float x[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            x[j] = widen<SIZE>(from, j);
            if (SIZE == 1) x[j] *= scales[(m.col_phase + column + j) / SCALE_BLOCK];
        }
        *(uint4 *) (to + (size_t) i * 8) =
            make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]),
                       pack_bf16(x[6], x[7]));
    }
}

void run_widen(struct device *d, const struct matrix *m, int n_heads, char *to)
{
    struct mats mats;
    for (int i = 0; i < n_heads; i++) mats.at[i] = mat_view(m + i);
    dim3 grid(WIDEN_BLOCKS, (unsigned) n_heads);
    __nv_bfloat16 *halves = (__nv_bfloat16 *) to;
    if (m->dtype == DTYPE_F8_E4M3) {
        widen_heads<1><<<grid, WIDEN_THREADS, 0, d->stream>>>(mats, halves);
    } else if (m->dtype == DTYPE_BF16) {
        widen_heads<2><<<grid, WIDEN_THREADS, 0, d->stream>>>(mats, halves);
    } else {
        widen_heads<4><<<grid, WIDEN_THREADS, 0, d->stream>>>(mats, halves);
    }
    device_launched(d, "mla_run");
}

// --- keys and values

struct maps {
    CUtensorMap pool, keys_by, values_by, expanded;
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
            int block = tile * 2 + half < used ? tile * 2 + half : used;
            rows[half] = r.blocks[block];
            if (rows[half] < 0 || rows[half] >= r.n_blocks) __trap();
        }
        for (int step = 0; step < STEPS; step++, i++) {
            int stage = i % STAGES, column = step * CHUNK_COLUMNS;
            char *to = s->stage[stage];
            uint64_t *full = &s->full[stage];
            bar_wait(&s->empty[stage], (uint32_t) (i / STAGES + 1) % 2);
            bar_expect(full, STAGE);
            for (int half = 0; half < 2; half++) {
                box_load(to + half * HALF, &maps.pool, column, rows[half] * KV_BLOCK_ROWS, full);
                box_load(to + (2 + half) * HALF, &maps.keys_by, half * CHUNK_COLUMNS,
                         head * RUN_LORA + column, full);
                box_load(to + (4 + half) * HALF, &maps.values_by, column,
                         head * RUN_HEAD + half * KV_BLOCK_ROWS, full);
            }
        }
    }
}

// Rounds 64 rows of 128 columns into two halves of chunks; zeros from row n on.
static __device__ __forceinline__ void put(char *to, const float (&x)[64], int n)
{
    int thread = threadIdx.x % WARPGROUP, row = thread / WARP * 16 + thread % WARP / 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        bool there = row + r * 8 < n;
#pragma unroll
        for (int i = 0; i < 16; i++) {
            uint32_t pair = pack_bf16(x[i * 4 + r * 2], x[i * 4 + r * 2 + 1]);
            *(uint32_t *) (to + chunk_place(row + r * 8, i, KV_BLOCK_ROWS) + thread % 4 * 4) =
                there ? pair : 0;
        }
    }
}

static __device__ __forceinline__ void expand(struct shared *s, const struct maps &maps,
                                              const struct run &r)
{
    int group = threadIdx.x / WARPGROUP, thread = threadIdx.x % WARPGROUP;
    int tiles = r.padded / RUN_KEYS, i = 0;
    char *out = s->out[group];
    float keys[64], values[64];
    for (int job = blockIdx.x; job < tiles * r.n_heads; job += gridDim.x) {
        int token = job % tiles * RUN_KEYS + group * KV_BLOCK_ROWS, head = job / tiles;
#pragma unroll
        for (int j = 0; j < 64; j++) keys[j] = values[j] = 0;
        for (int step = 0; step < STEPS; step++, i++) {
            int stage = i % STAGES;
            const char *at = s->stage[stage];
            bar_wait(&s->full[stage], (uint32_t) (i / STAGES % 2));
            uint64_t a = side_along(at + group * HALF), by_values = side_along(at + 4 * HALF);
            products_hold(keys);
            products_hold(values);
            products_begin();
#pragma unroll
            for (int k = 0; k < CHUNK_COLUMNS / 16; k++) {
                uint64_t left = a + (uint64_t) (k * 2);
                product<1>(keys, left, side_across(at + 2 * HALF + k * 16 * CHUNK_ROW_BYTES, HALF),
                           1);
                product<0>(values, left, by_values + (uint64_t) (k * 2), 1);
            }
            products_commit();
            products_wait<0>();
            products_hold(keys);
            products_hold(values);
            if (thread % WARP == 0) bar_arrive(&s->empty[stage]);
        }
        if (thread == 0) stores_wait();
        group_sync(FIRST_BARRIER + group, WARPGROUP);
        put(out, keys, r.pos + r.n - token);
        put(out + 2 * HALF, values, r.pos + r.n - token);
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
    maps.keys_by = hopper_map(d, widened, heads * RUN_LORA, RUN_HEAD, KV_BLOCK_ROWS);
    maps.values_by = hopper_map(d, widened + heads * cuda_widened_head() / 2, heads * RUN_HEAD,
                                RUN_LORA, KV_BLOCK_ROWS);
    maps.expanded = hopper_map(d, expanded, heads * 2 * (uint64_t) r->padded, RUN_HEAD,
                               KV_BLOCK_ROWS);
    int bytes = (int) sizeof(struct shared) + 1024, jobs = r->padded / RUN_KEYS * r->n_heads;
    device_note(d, cudaFuncSetAttribute(expand_heads, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        bytes), "mla_run");
    expand_heads<<<jobs < d->n_sm ? jobs : d->n_sm, THREADS, bytes, d->stream>>>(maps, *r);
    device_launched(d, "mla_run");
}
