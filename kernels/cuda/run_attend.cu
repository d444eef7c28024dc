// Causal attention over expanded keys and values: 128 queries of a head a block, 128 keys at a time
// (two stages, by the copy engine), two warpgroups with 64 queries each. A warpgroup's tensor cores
// multiply the next keys' scores and these keys' sums while it takes exponentials.
#include "kernels/cuda/mla_run.cuh"

enum {
    QUERIES = 128,
    CHUNK = 128 * CHUNK_ROW_BYTES, // bytes: queries and keys are 128 both
    KEY_CHUNKS = (RUN_HEAD + RUN_ROPE) / CHUNK_COLUMNS,
    ROPE_CHUNK = RUN_HEAD / CHUNK_COLUMNS,
    VALUE_CHUNKS = RUN_HEAD / CHUNK_COLUMNS,
    STAGES = 2,
    COMPUTERS = 2 * WARPGROUP,
    THREADS = COMPUTERS + WARPGROUP,
    QUERIES_THERE = 1,
};

struct shared {
    char q[KEY_CHUNKS * CHUNK];
    char keys[STAGES][KEY_CHUNKS * CHUNK];
    char values[STAGES][VALUE_CHUNKS * CHUNK];
    uint64_t keys_full[STAGES], keys_empty[STAGES], values_full[STAGES], values_empty[STAGES];
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Tiles of keys that queries [first, first + QUERIES) see.
static __device__ __forceinline__ int tiles_of(const struct run &r, int first)
{
    int last = first + QUERIES < r.n ? first + QUERIES : r.n;
    return (r.pos + last - 1) / RUN_KEYS + 1;
}

static __device__ __forceinline__ void bring(struct shared *s, const CUtensorMap *expanded,
                                             const CUtensorMap *pool, const struct run &r,
                                             int head, int tiles)
{
    int used = (r.pos + r.n - 1) / KV_BLOCK_ROWS;
    for (int tile = 0; tile < tiles; tile++) {
        int stage = tile % STAGES, rows[2];
        for (int half = 0; half < 2; half++) {
            rows[half] = r.blocks[tile * 2 + half < used ? tile * 2 + half : used];
            if (rows[half] < 0 || rows[half] >= r.n_blocks) __trap();
        }
        uint32_t parity = (uint32_t) (tile / STAGES + 1) % 2;
        int row = head * r.padded + tile * RUN_KEYS;
        char *to = s->keys[stage];
        bar_wait(&s->keys_empty[stage], parity);
        bar_expect(&s->keys_full[stage], KEY_CHUNKS * CHUNK);
        for (int c = 0; c < ROPE_CHUNK; c++) {
            box_load(to + c * CHUNK, expanded, c * CHUNK_COLUMNS, row, &s->keys_full[stage]);
        }
        for (int half = 0; half < 2; half++) {
            box_load(to + ROPE_CHUNK * CHUNK + half * CHUNK / 2, pool, RUN_LORA,
                     rows[half] * KV_BLOCK_ROWS, &s->keys_full[stage]);
        }
        row += r.n_heads * r.padded;
        bar_wait(&s->values_empty[stage], parity);
        bar_expect(&s->values_full[stage], VALUE_CHUNKS * CHUNK);
        for (int c = 0; c < VALUE_CHUNKS; c++) {
            box_load(s->values[stage] + c * CHUNK, expanded, c * CHUNK_COLUMNS, row,
                     &s->values_full[stage]);
        }
    }
}

static __device__ __forceinline__ void load_queries(char *q, const struct run &r, int head,
                                                    int first)
{
    constexpr int PIECES = KEY_CHUNKS * CHUNK_COLUMNS / 8;
    for (int i = threadIdx.x; i < QUERIES * PIECES; i += COMPUTERS) {
        int row = i / PIECES, piece = i % PIECES;
        uint4 values = make_uint4(0, 0, 0, 0);
        if (first + row < r.n) {
            const float4 *from = (const float4 *) (r.q + (size_t) (first + row) * r.q_stride +
                                                   (size_t) head * r.q_head_stride) + piece * 2;
            values = pack_bf16(__ldg(from), __ldg(from + 1));
        }
        *(uint4 *) (q + chunk_place(row, piece, QUERIES)) = values;
    }
}

static __device__ __forceinline__ void score(float (&scores)[64], const char *q, const char *keys)
{
    products_begin();
#pragma unroll
    for (int c = 0; c < KEY_CHUNKS; c++) {
        uint64_t a = side_along(q + c * CHUNK), b = side_along(keys + c * CHUNK);
#pragma unroll
        for (int k = 0; k < CHUNK_COLUMNS / 16; k++) {
            product<0>(scores, a + (uint64_t) (k * 2), b + (uint64_t) (k * 2), c + k > 0);
        }
    }
    products_commit();
}

static __device__ __forceinline__ void add_values(float (&sums)[64],
                                                  const uint32_t (&weights)[8][4],
                                                  const char *values)
{
    products_begin();
#pragma unroll
    for (int k = 0; k < RUN_KEYS / 16; k++) {
        product<1>(sums, weights[k], side_across(values + k * 16 * CHUNK_ROW_BYTES, CHUNK));
    }
    products_commit();
}

struct softmax {
    float most[2], mass[2]; // of the thread's two queries; masses of its own columns
};

// Scores become weights, not yet rounded, and join the masses; sums so far shrink by `keep`.
// `seen`: how many keys of the tile the thread's first query sees, its second one 8 more.
static __device__ __forceinline__ void soften(float (&scores)[64], struct softmax &x,
                                              float (&keep)[2], float scale, int seen)
{
    int t = threadIdx.x % 4;
    if (__any_sync(~0u, seen < RUN_KEYS)) {
#pragma unroll
        for (int i = 0; i < 64; i++) {
            if (i / 4 * 8 + t * 2 + i % 2 >= seen + i % 4 / 2 * 8) scores[i] = -INFINITY;
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float most = x.most[r];
#pragma unroll
        for (int i = 0; i < 64; i += 4) {
            most = fmaxf(most, fmaxf(scores[i + r * 2], scores[i + r * 2 + 1]));
        }
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        keep[r] = exp2_fast((x.most[r] - most) * scale);
        x.most[r] = most;
        float offset = most * scale, sum = 0;
#pragma unroll
        for (int i = 0; i < 64; i += 4) {
            scores[i + r * 2] = exp2_fast(fmaf(scores[i + r * 2], scale, -offset));
            scores[i + r * 2 + 1] = exp2_fast(fmaf(scores[i + r * 2 + 1], scale, -offset));
            sum += scores[i + r * 2] + scores[i + r * 2 + 1];
        }
        x.mass[r] = fmaf(x.mass[r], keep[r], sum);
    }
}

// Rounds the weights, as the left side of products.
static __device__ __forceinline__ void take_weights(const float (&scores)[64],
                                                    uint32_t (&weights)[8][4])
{
#pragma unroll
    for (int i = 0; i < 32; i++) {
        weights[i / 4][i % 4] = pack_bf16(scores[i * 2], scores[i * 2 + 1]);
    }
}

static __device__ __forceinline__ void shrink(float (&sums)[64], float keep0, float keep1)
{
    if (!__any_sync(~0u, keep0 != 1 || keep1 != 1)) return;
#pragma unroll
    for (int i = 0; i < 64; i++) sums[i] *= i % 4 < 2 ? keep0 : keep1;
}

static __device__ __forceinline__ void attend(struct shared *s, const struct run &r, int head,
                                              int first, int tiles)
{
    int thread = threadIdx.x % WARPGROUP, group = threadIdx.x / WARPGROUP;
    int row = first + group * 64 + thread / WARP * 16 + thread % WARP / 4;
    int seen = r.pos + row + 1; // keys that the thread's first query sees
    bool signals = thread % WARP == 0;
    const char *q = s->q + group * 64 * CHUNK_ROW_BYTES;
    float scale = r.scale * 1.44269504f, sums[64], scores[64], keep[2];
    uint32_t weights[8][4];
    struct softmax x = {{-INFINITY, -INFINITY}, {}};
#pragma unroll
    for (int i = 0; i < 64; i++) sums[i] = 0;
    bar_wait(&s->keys_full[0], 0);
    score(scores, q, s->keys[0]);
    products_wait<0>();
    products_hold(scores);
    if (signals) bar_arrive(&s->keys_empty[0]);
    soften(scores, x, keep, scale, seen);
    take_weights(scores, weights);
    for (int tile = 0; tile + 1 < tiles; tile++) {
        int stage = tile % STAGES, next = (tile + 1) % STAGES;
        bar_wait(&s->keys_full[next], (uint32_t) ((tile + 1) / STAGES % 2));
        score(scores, q, s->keys[next]);
        bar_wait(&s->values_full[stage], (uint32_t) (tile / STAGES % 2));
        add_values(sums, weights, s->values[stage]);
        products_wait<1>();
        products_hold(scores);
        if (signals) bar_arrive(&s->keys_empty[next]);
        soften(scores, x, keep, scale, seen - (tile + 1) * RUN_KEYS);
        products_wait<0>();
        products_hold(sums);
        if (signals) bar_arrive(&s->values_empty[stage]);
        shrink(sums, keep[0], keep[1]);
        take_weights(scores, weights);
    }
    bar_wait(&s->values_full[(tiles - 1) % STAGES], (uint32_t) ((tiles - 1) / STAGES % 2));
    add_values(sums, weights, s->values[(tiles - 1) % STAGES]);
    products_wait<0>();
    products_hold(sums);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float mass = x.mass[h];
        mass += __shfl_xor_sync(~0u, mass, 1);
        mass += __shfl_xor_sync(~0u, mass, 2);
        if (row + h * 8 >= r.n) continue;
        float by = 1.0f / mass;
        float *to = r.out + (size_t) (row + h * 8) * r.out_stride + (size_t) head * RUN_HEAD +
                    thread % 4 * 2;
#pragma unroll
        for (int n = 0; n < 16; n++) {
            *(float2 *) (to + n * 8) =
                make_float2(sums[n * 4 + h * 2] * by, sums[n * 4 + h * 2 + 1] * by);
        }
    }
}

#endif

// Grid: tiles of queries, the last first since they see most keys; heads.
static __global__ void __launch_bounds__(THREADS, 1)
attend_run(const __grid_constant__ CUtensorMap expanded, const __grid_constant__ CUtensorMap pool,
           const __grid_constant__ struct run r)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ char dynamic[];
    struct shared *s = (struct shared *) hopper_shared(dynamic);
    int first = (int) (gridDim.x - 1 - blockIdx.x) * QUERIES, head = blockIdx.y;
    int tiles = tiles_of(r, first);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            bar_init(&s->keys_full[i], 1);
            bar_init(&s->values_full[i], 1);
            bar_init(&s->keys_empty[i], COMPUTERS / WARP);
            bar_init(&s->values_empty[i], COMPUTERS / WARP);
        }
        bar_init_end();
    }
    __syncthreads();
    if (threadIdx.x >= COMPUTERS) {
        registers_give<24>();
        if (threadIdx.x == COMPUTERS) bring(s, &expanded, &pool, r, head, tiles);
    } else {
        registers_take<240>();
        load_queries(s->q, r, head, first);
        stored_for_engines();
        group_sync(QUERIES_THERE, COMPUTERS);
        attend(s, r, head, first, tiles);
    }
#else
    __trap();
#endif
}

void run_attend(struct device *d, const struct run *r, const struct kv_layer *kv,
                const char *expanded)
{
    CUtensorMap pool = hopper_map(d, kv->pool, (uint64_t) kv->n_blocks * KV_BLOCK_ROWS,
                                  RUN_LORA + RUN_ROPE, KV_BLOCK_ROWS);
    CUtensorMap map = hopper_map(d, expanded, (uint64_t) r->n_heads * 2 * (uint64_t) r->padded,
                                 RUN_HEAD, RUN_KEYS);
    int bytes = (int) sizeof(struct shared) + 1024;
    device_note(d, cudaFuncSetAttribute(attend_run, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        bytes), "mla_run");
    dim3 grid((unsigned) ceil_div((uint64_t) r->n, QUERIES), (unsigned) r->n_heads);
    attend_run<<<grid, THREADS, bytes, d->stream>>>(map, pool, *r);
    device_launched(d, "mla_run");
}
