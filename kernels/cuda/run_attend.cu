// Causal attention over expanded keys and values: 128 queries of a head a block, 128 keys at a time
// (two stages, by the copy engine), two warpgroups with 64 queries each. A warpgroup's tensor cores
// multiply the next keys' scores and these keys' sums while it takes exponentials. Blocks go on
// from job to job, which they draw from a counter: by then the next job's keys are on their way.
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
    JOBS = 2,          // drawn ahead
    FIRST_BARRIER = 1, // of the first warpgroup
};

struct shared {
    char q[KEY_CHUNKS * CHUNK];
    char keys[STAGES][KEY_CHUNKS * CHUNK];
    char values[STAGES][VALUE_CHUNKS * CHUNK];
    uint64_t keys_full[STAGES], keys_empty[STAGES], values_full[STAGES], values_empty[STAGES];
    uint64_t jobs_full[JOBS], jobs_empty[JOBS];
    int32_t jobs[JOBS];
};

// 128 queries of a head and the tiles of keys that they see. A head's jobs follow each other, the
// longest first.
struct job {
    int head, first, tiles;
};

// Which blocks have drawn jobs, and which have seen the last one; zeros between launches.
struct draw {
    int32_t *drawn, *done;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

static __device__ __forceinline__ int jobs_of(const struct run &r)
{
    return (r.n + QUERIES - 1) / QUERIES * r.n_heads;
}

static __device__ __forceinline__ struct job job_at(const struct run &r, int i)
{
    int each = (r.n + QUERIES - 1) / QUERIES, first = (each - 1 - i % each) * QUERIES;
    int last = first + QUERIES < r.n ? first + QUERIES : r.n;
    return {i / each, first, (r.pos + last - 1) / RUN_KEYS + 1};
}

// Tile `tile` of a job, the block's `i`th.
static __device__ __forceinline__ void bring_tile(struct shared *s, const CUtensorMap *expanded,
                                                  const CUtensorMap *pool, const struct run &r,
                                                  int head, int tile, int i)
{
    int used = (r.pos + r.n - 1) / KV_BLOCK_ROWS, stage = i % STAGES, rows[2];
    for (int half = 0; half < 2; half++) {
        rows[half] = run_block(r, tile * 2 + half < used ? tile * 2 + half : used);
    }
    uint32_t parity = (uint32_t) (i / STAGES + 1) % 2;
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

static __device__ __forceinline__ void bring(struct shared *s, const CUtensorMap *expanded,
                                             const CUtensorMap *pool, const struct run &r,
                                             const struct draw &d)
{
    int n_jobs = jobs_of(r), next = blockIdx.x, i = 0;
    for (int drawn = 0;; drawn++) {
        int at = drawn % JOBS;
        bar_wait(&s->jobs_empty[at], (uint32_t) (drawn / JOBS + 1) % 2);
        s->jobs[at] = next;
        bar_arrive(&s->jobs_full[at]);
        if (next >= n_jobs) break;
        struct job j = job_at(r, next);
        for (int tile = 0; tile < j.tiles; tile++, i++) {
            bring_tile(s, expanded, pool, r, j.head, tile, i);
        }
        next = (int) gridDim.x + atomicAdd(d.drawn, 1);
    }
    if (atomicAdd(d.done, 1) == (int) gridDim.x - 1) { // nobody draws any more
        *d.drawn = 0;
        *d.done = 0;
    }
}

// The warpgroup's half of the job's queries.
static __device__ __forceinline__ void load_queries(char *q, const struct run &r, int head,
                                                    int first)
{
    constexpr int PIECES = KEY_CHUNKS * CHUNK_COLUMNS / 8, ROUND = 12;
    for (int i0 = threadIdx.x % WARPGROUP; i0 < QUERIES / 2 * PIECES; i0 += WARPGROUP * ROUND) {
        float4 x[ROUND][2];
#pragma unroll
        for (int j = 0; j < ROUND; j++) {
            int i = i0 + j * WARPGROUP, row = i / PIECES, piece = i % PIECES;
            x[j][0] = x[j][1] = make_float4(0, 0, 0, 0);
            if (first + row >= r.n) continue;
            const float4 *from = (const float4 *) (r.q + (size_t) (first + row) * r.q_stride +
                                                   (size_t) head * r.q_head_stride) + piece * 2;
            x[j][0] = __ldg(from);
            x[j][1] = __ldg(from + 1);
        }
#pragma unroll
        for (int j = 0; j < ROUND; j++) {
            int i = i0 + j * WARPGROUP;
            *(uint4 *) (q + chunk_place(i / PIECES, i % PIECES, QUERIES)) =
                pack_bf16(x[j][0], x[j][1]);
        }
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

// A warpgroup's half of a job whose first tile is the block's `i`th.
static __device__ __forceinline__ void attend(struct shared *s, const struct run &r,
                                              const struct job &job, const char *q, int i)
{
    int thread = threadIdx.x % WARPGROUP, group = threadIdx.x / WARPGROUP, end = i + job.tiles;
    int row = job.first + group * 64 + thread / WARP * 16 + thread % WARP / 4;
    int seen = r.pos + row + 1; // keys that the thread's first query sees, from the next tile on
    bool signals = thread % WARP == 0;
    float scale = r.scale * 1.44269504f, sums[64], scores[64], keep[2];
    uint32_t weights[8][4];
    struct softmax x = {{-INFINITY, -INFINITY}, {}};
#pragma unroll
    for (int j = 0; j < 64; j++) sums[j] = 0;
    bar_wait(&s->keys_full[i % STAGES], (uint32_t) (i / STAGES % 2));
    score(scores, q, s->keys[i % STAGES]);
    products_wait<0>();
    products_hold(scores);
    if (signals) bar_arrive(&s->keys_empty[i % STAGES]);
    soften(scores, x, keep, scale, seen);
    take_weights(scores, weights);
    for (; i + 1 < end; i++) {
        int stage = i % STAGES, next = (i + 1) % STAGES;
        bar_wait(&s->keys_full[next], (uint32_t) ((i + 1) / STAGES % 2));
        score(scores, q, s->keys[next]);
        bar_wait(&s->values_full[stage], (uint32_t) (i / STAGES % 2));
        add_values(sums, weights, s->values[stage]);
        products_wait<1>();
        products_hold(scores);
        if (signals) bar_arrive(&s->keys_empty[next]);
        seen -= RUN_KEYS;
        soften(scores, x, keep, scale, seen);
        products_wait<0>();
        products_hold(sums);
        if (signals) bar_arrive(&s->values_empty[stage]);
        shrink(sums, keep[0], keep[1]);
        take_weights(scores, weights);
    }
    bar_wait(&s->values_full[i % STAGES], (uint32_t) (i / STAGES % 2));
    add_values(sums, weights, s->values[i % STAGES]);
    products_wait<0>();
    products_hold(sums);
    if (signals) bar_arrive(&s->values_empty[i % STAGES]);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float mass = x.mass[h];
        mass += __shfl_xor_sync(~0u, mass, 1);
        mass += __shfl_xor_sync(~0u, mass, 2);
        if (row + h * 8 >= r.n) continue;
        float by = 1.0f / mass;
        float *to = r.out + (size_t) (row + h * 8) * r.out_stride +
                    (size_t) job.head * RUN_HEAD + thread % 4 * 2;
#pragma unroll
        for (int n = 0; n < 16; n++) {
            *(float2 *) (to + n * 8) =
                make_float2(sums[n * 4 + h * 2] * by, sums[n * 4 + h * 2 + 1] * by);
        }
    }
}

static __device__ __forceinline__ void work(struct shared *s, const struct run &r)
{
    int group = threadIdx.x / WARPGROUP, n_jobs = jobs_of(r), i = 0;
    char *q = s->q + group * (QUERIES / 2) * CHUNK_ROW_BYTES;
    for (int drawn = 0;; drawn++) {
        int at = drawn % JOBS;
        bar_wait(&s->jobs_full[at], (uint32_t) (drawn / JOBS % 2));
        int index = s->jobs[at];
        bar_arrive(&s->jobs_empty[at]);
        if (index >= n_jobs) return;
        struct job job = job_at(r, index);
        load_queries(q, r, job.head, job.first + group * (QUERIES / 2));
        stored_for_engines();
        group_sync(FIRST_BARRIER + group, WARPGROUP);
        attend(s, r, job, q, i);
        i += job.tiles;
        group_sync(FIRST_BARRIER + group, WARPGROUP); // all have multiplied by these queries
    }
}

#endif

// Grid: as many blocks as run at once.
static __global__ void __launch_bounds__(THREADS, 1)
attend_run(const __grid_constant__ CUtensorMap expanded, const __grid_constant__ CUtensorMap pool,
           const __grid_constant__ struct run r, const __grid_constant__ struct draw d)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ char dynamic[];
    struct shared *s = (struct shared *) hopper_shared(dynamic);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            bar_init(&s->keys_full[i], 1);
            bar_init(&s->values_full[i], 1);
            bar_init(&s->keys_empty[i], COMPUTERS / WARP);
            bar_init(&s->values_empty[i], COMPUTERS / WARP);
        }
        for (int i = 0; i < JOBS; i++) {
            bar_init(&s->jobs_full[i], 1);
            bar_init(&s->jobs_empty[i], COMPUTERS);
        }
        bar_init_end();
    }
    __syncthreads();
    if (threadIdx.x >= COMPUTERS) {
        registers_give<40>();
        if (threadIdx.x == COMPUTERS) bring(s, &expanded, &pool, r, d);
    } else {
        registers_take<232>();
        work(s, r);
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
    device_allow(d, (const void *) attend_run, bytes, "mla_run");
    int jobs = (int) ceil_div((uint64_t) r->n, QUERIES) * r->n_heads;
    struct draw draw = {d->scratch.counters, d->scratch.counters + 1};
    attend_run<<<jobs < d->n_sm ? jobs : d->n_sm, THREADS, bytes, d->stream>>>(map, pool, *r, draw);
    device_launched(d, "mla_run");
}
