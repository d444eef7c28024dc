// A block takes 64 heads of a row and a part of its KV, a KV block of 64 tokens at a time (two
// stages, by the copy engine). Two warpgroups have half of the 512 columns of the sum each. The
// first one also makes scores and their softmax, two tiles in turns: the tensor cores multiply the
// second one's scores while it takes the first one's exponentials, then the first one's sums while
// it takes the second one's; so a stage is free for half of the time, in which it is filled anew.
// Weights stay in the first group's registers; the second one has them through shared memory.
#include "kernels/cuda/mla_wgmma.cuh"

#include "kernels/cuda/mla_tiles.cuh"

enum { ADD_HEADS = 8 };

// The named barriers.
enum { WEIGHTS_THERE = 1, WEIGHTS_READ, FIRST_GROUP, SECOND_GROUP, MASSES_THERE, QUERIES_THERE };

struct place {
    float *sums, *stats; // (slots, n_heads, LORA), (slots, n_heads, 2: maximum, mass)
    struct row_parts *rows; // (n_rows)
    int groups, n_sm;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

static __device__ __forceinline__ void load_queries(char *q, const struct mla &m, int row,
                                                    int head0)
{
    constexpr int PIECES = LORA / 4, ROUND = 16; // loads of a round are on their way at once
    for (int i0 = threadIdx.x; i0 < HEADS * PIECES; i0 += COMPUTERS * ROUND) {
        float4 x[ROUND];
#pragma unroll
        for (int j = 0; j < ROUND; j++) { // a warp reads whole lines
            int i = i0 + j * COMPUTERS, head = head0 + i / PIECES;
            x[j] = make_float4(0, 0, 0, 0);
            if (head >= m.n_heads) continue;
            x[j] = __ldcg((const float4 *) (m.q_abs + ((size_t) row * m.n_heads + head) * LORA) +
                          i % PIECES);
        }
#pragma unroll
        for (int j = 0; j < ROUND; j++) {
            int i = i0 + j * COMPUTERS, at = i % PIECES;
            *(uint2 *) (q + chunk_place(i / PIECES, at / 2, HEADS) + at % 2 * 8) =
                make_uint2(pack_bf16(x[j].x, x[j].y), pack_bf16(x[j].z, x[j].w));
        }
    }
#pragma unroll
    for (int i = threadIdx.x; i < HEADS * CUDA_MLA_ROPE / 2; i += COMPUTERS) {
        int local = i / (CUDA_MLA_ROPE / 2), pair = i % (CUDA_MLA_ROPE / 2), head = head0 + local;
        uint32_t values = 0;
        if (head < m.n_heads) {
            const float *from = m.q_pe + (size_t) row * m.q_stride +
                                (size_t) head * m.q_head_stride + pair * 2;
            values = pack_bf16(from[0], from[1]);
        }
        *(uint32_t *) (q + chunk_place(local, LORA / 8 + pair / 4, HEADS) + pair % 4 * 4) = values;
    }
}

// Of both groups that compute.
static __device__ __forceinline__ void bring_queries(struct shared *s, const struct mla &m, int row,
                                                     int head0)
{
    overlap_wait();
    load_queries(s->q, m, row, head0);
    stored_for_engines();
    group_sync(QUERIES_THERE, COMPUTERS);
}

// Scores of tile i: (64 heads, 64 tokens).
static __device__ __forceinline__ void score(float (&scores)[32], struct shared *s, int i)
{
    int stage = i % STAGES;
    uint32_t parity = (uint32_t) (i / STAGES % 2), q = unknown(shared_at(s->q));
    uint32_t kv = unknown(shared_at(s->kv[stage]));
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
        int c = chunk_at(j);
        bar_wait(&s->full[stage][c], parity);
        products_begin();
#pragma unroll
        for (int k = 0; k < CHUNK_COLUMNS / 16; k++) {
            int at = c * CHUNK + k * 32;
            product<0>(scores, side_along(q + at), side_along(kv + at), j + k > 0);
        }
    }
    products_commit();
}

// sums += weights times the first half of the stage's latents.
static __device__ __forceinline__ void add_first(float (&sums)[128],
                                                 const uint32_t (&weights)[4][4], const char *kv)
{
    uint32_t at = unknown(shared_at(kv));
    products_begin();
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) {
        product<1>(sums, weights[k], side_across(at + k * 16 * CHUNK_ROW_BYTES, CHUNK));
    }
    products_commit();
}

// A tile's rows from token n on become zeros, in a half of the latents: their weights are 0, but
// what lies there may be no number.
static __device__ __forceinline__ void clear_rows(char *half, int n, int group)
{
    int bytes = (TILE - n) * CHUNK_ROW_BYTES;
    for (int c = 0; c < HALF_CHUNKS; c++) {
        char *chunk = half + c * CHUNK + n * CHUNK_ROW_BYTES;
        for (int i = threadIdx.x % WARPGROUP * 16; i < bytes; i += WARPGROUP * 16) {
            *(uint4 *) (chunk + i) = make_uint4(0, 0, 0, 0);
        }
    }
    stored_for_engines();
    group_sync(group, WARPGROUP);
}

struct softmax {
    float most[2], mass[2]; // of the thread's two heads; masses of its own columns
};

// Scores become weights, not yet rounded; sums so far shrink by `keep`. `n`: tokens that count.
static __device__ __forceinline__ void soften(float (&scores)[32], struct softmax &x,
                                              float (&keep)[2], float scale, int n)
{
    int t = threadIdx.x % 4;
    if (n < TILE) {
#pragma unroll
        for (int i = 0; i < 32; i++) {
            if (i / 4 * 8 + t * 2 + i % 2 >= n) scores[i] = -INFINITY;
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float most = x.most[r];
#pragma unroll
        for (int i = 0; i < 32; i += 4) {
            most = fmaxf(most, fmaxf(scores[i + r * 2], scores[i + r * 2 + 1]));
        }
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        keep[r] = exp2_fast((x.most[r] - most) * scale);
        x.most[r] = most;
        float offset = most * scale;
#pragma unroll
        for (int i = 0; i < 32; i += 4) {
            scores[i + r * 2] = exp2_fast(fmaf(scores[i + r * 2], scale, -offset));
            scores[i + r * 2 + 1] = exp2_fast(fmaf(scores[i + r * 2 + 1], scale, -offset));
        }
    }
}

// Rounds the weights, as the left side of products and into shared memory, and adds to the masses.
static __device__ __forceinline__ void put_weights(const float (&scores)[32],
                                                   uint32_t (&weights)[4][4], struct softmax &x,
                                                   const float (&keep)[2], struct shared *s)
{
    int thread = threadIdx.x % WARPGROUP, t = thread % 4;
    int head = thread / WARP * 16 + thread % WARP / 4;
    uint32_t to = unknown(shared_at(s->weights) + (uint32_t) (t * 4));
    float sums[2] = {};
#pragma unroll
    for (int n = 0; n < 8; n++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t pair = pack_bf16(scores[n * 4 + r * 2], scores[n * 4 + r * 2 + 1]);
            sums[r] += low_bf16(pair) + high_bf16(pair);
            weights[n / 2][n % 2 * 2 + r] = pair;
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + chunk_place(head + r * 8, n, HEADS)),
                         "r"(pair) : "memory");
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        x.mass[r] = fmaf(x.mass[r], keep[r], sums[r]);
        if (t == 0) s->keep[head + r * 8] = keep[r];
    }
    stored_for_engines();
    group_arrive(WEIGHTS_THERE, COMPUTERS);
}

static __device__ __forceinline__ void shrink(float (&sums)[128], float keep0, float keep1)
{
    if (!__any_sync(~0u, keep0 != 1 || keep1 != 1)) return;
#pragma unroll
    for (int i = 0; i < 128; i++) sums[i] *= i % 4 < 2 ? keep0 : keep1;
}

// Leaves the warpgroup's half of the sums where they go.
static __device__ __forceinline__ void leave(const float (&sums)[128], const struct mla &m,
                                             const struct place &p, const struct part &part,
                                             int head0, int half, const float *factor)
{
    int thread = threadIdx.x % WARPGROUP;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int local = thread / WARP * 16 + thread % WARP / 4 + r * 8, head = head0 + local;
        if (head >= m.n_heads) continue;
        float *to = part.slot < 0 ? m.out + ((size_t) part.row * m.n_heads + head) * LORA
                                  : p.sums + ((size_t) part.slot * m.n_heads + head) * LORA;
        to += half * (LORA / 2) + thread % 4 * 2;
        float by = factor[local];
#pragma unroll
        for (int n = 0; n < 32; n++) {
            *(float2 *) (to + n * 8) =
                make_float2(sums[n * 4 + r * 2] * by, sums[n * 4 + r * 2 + 1] * by);
        }
    }
}

// Weights of tile i, whose scores are there, go to both groups; sums so far shrink.
static __device__ __forceinline__ void hand_over(float (&scores)[32], uint32_t (&weights)[4][4],
                                                 float (&sums)[128], struct softmax &x,
                                                 const float (&keep)[2], struct shared *s, int i)
{
    shrink(sums, keep[0], keep[1]);
    if (i > 0) group_sync(WEIGHTS_READ, COMPUTERS);
    put_weights(scores, weights, x, keep, s);
}

// Tile i, whose scores `even` are being multiplied, and the scores of tile i + 1, which become
// weights. `n`: tokens of that one that count.
static __device__ __forceinline__ void two_tiles(float (&even)[32], float (&odd)[32],
                                                 uint32_t (&weights)[4][4], float (&sums)[128],
                                                 struct softmax &x, float (&keep)[2],
                                                 struct shared *s, int i, float scale, int n)
{
    score(odd, s, i + 1);
    products_wait<1>();
    products_hold(even);
    soften(even, x, keep, scale, TILE);
    hand_over(even, weights, sums, x, keep, s, i);
    add_first(sums, weights, s->kv[0]);
    products_wait<1>();
    products_hold(odd);
    if (n < TILE) clear_rows(s->kv[1], n, FIRST_GROUP);
    soften(odd, x, keep, scale, n);
    products_wait<0>();
    products_hold(sums);
    if (threadIdx.x % WARP == 0) bar_arrive(&s->empty[0][0]);
}

static __device__ __forceinline__ void first_group(struct shared *s, const struct mla &m,
                                                   const struct place &p, const struct part &part,
                                                   int head0)
{
    int thread = threadIdx.x, tiles = part.end - part.begin, i = 0;
    int last = m.in.pos[part.row] + 1 - (part.end - 1) * TILE; // tokens of the last tile
    if (last > TILE) last = TILE;
    bool signals = thread % WARP == 0;
    float scale = m.scale * 1.44269504f, sums[128], even[32], odd[32], keep[2];
    uint32_t weights[4][4];
    struct softmax x = {{-INFINITY, -INFINITY}, {}};
#pragma unroll
    for (int j = 0; j < 128; j++) sums[j] = 0;
    score(even, s, 0);
    if (tiles > 1) {
        two_tiles(even, odd, weights, sums, x, keep, s, 0, scale, tiles == 2 ? last : TILE);
        for (i = 1; i + 2 < tiles; i += 2) { // the scores of tile i are weights by now
            hand_over(odd, weights, sums, x, keep, s, i);
            add_first(sums, weights, s->kv[1]);
            score(even, s, i + 1);
            products_wait<1>();
            products_hold(sums);
            if (signals) bar_arrive(&s->empty[1][0]);
            two_tiles(even, odd, weights, sums, x, keep, s, i + 1, scale,
                      tiles == i + 3 ? last : TILE);
        }
        hand_over(odd, weights, sums, x, keep, s, i);
        add_first(sums, weights, s->kv[1]);
        if (++i < tiles) {
            score(even, s, i);
            products_wait<0>();
            products_hold(even);
        }
        products_wait<0>();
        products_hold(sums);
    } else {
        products_wait<0>();
        products_hold(even);
    }
    if (i < tiles) {
        if (last < TILE) clear_rows(s->kv[0], last, FIRST_GROUP);
        soften(even, x, keep, scale, last);
        hand_over(even, weights, sums, x, keep, s, i);
        add_first(sums, weights, s->kv[0]);
    }
    products_wait<0>();
    products_hold(sums);
    for (int r = 0; r < 2; r++) {
        float mass = x.mass[r];
        mass += __shfl_xor_sync(~0u, mass, 1);
        mass += __shfl_xor_sync(~0u, mass, 2);
        int local = thread / WARP * 16 + thread % WARP / 4 + r * 8, head = head0 + local;
        if (thread % 4 != 0) continue;
        s->factor[local] = part.slot < 0 ? 1.0f / mass : 1.0f;
        if (part.slot >= 0 && head < m.n_heads) {
            float *stats = p.stats + ((size_t) part.slot * m.n_heads + head) * 2;
            stats[0] = x.most[r] * scale;
            stats[1] = mass;
        }
    }
    group_sync(MASSES_THERE, COMPUTERS);
    leave(sums, m, p, part, head0, 0, s->factor);
}

static __device__ __forceinline__ void second_group(struct shared *s, const struct mla &m,
                                                    const struct place &p, const struct part &part,
                                                    int head0)
{
    int thread = threadIdx.x % WARPGROUP, tiles = part.end - part.begin;
    int local = thread / WARP * 16 + thread % WARP / 4;
    int last = m.in.pos[part.row] + 1 - (part.end - 1) * TILE;
    float sums[128];
#pragma unroll
    for (int i = 0; i < 128; i++) sums[i] = 0;
    for (int i = 0; i < tiles; i++) {
        int stage = i % STAGES;
        char *half = s->kv[stage] + HALF_CHUNKS * CHUNK;
        group_sync(WEIGHTS_THERE, COMPUTERS);
        for (int c = HALF_CHUNKS; c < 2 * HALF_CHUNKS; c++) {
            bar_wait(&s->full[stage][c], (uint32_t) (i / STAGES % 2));
        }
        if (i + 1 == tiles && last < TILE) clear_rows(half, last, SECOND_GROUP);
        shrink(sums, s->keep[local], s->keep[local + 8]);
        uint64_t a = side_along(s->weights);
        products_hold(sums);
        products_begin();
#pragma unroll
        for (int k = 0; k < TILE / 16; k++) {
            product<1>(sums, a + (uint64_t) (k * 2),
                       side_across(half + k * 16 * CHUNK_ROW_BYTES, CHUNK), 1);
        }
        products_commit();
        products_wait<0>();
        products_hold(sums);
        if (i + 1 == tiles) break;
        if (thread % WARP == 0) bar_arrive(&s->empty[stage][1]);
        group_arrive(WEIGHTS_READ, COMPUTERS);
    }
    group_sync(MASSES_THERE, COMPUTERS);
    leave(sums, m, p, part, head0, 1, s->factor);
}

#endif

// Grid: groups of heads for each part.
template <bool FP8> static __global__ void __launch_bounds__(THREADS, 1)
attend_wgmma(const __grid_constant__ struct mla m, const __grid_constant__ struct pool_maps maps,
             const __grid_constant__ struct place p)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ char dynamic[];
    struct shared *s = (struct shared *) hopper_shared(dynamic);
    int thread = threadIdx.x, index = blockIdx.x / p.groups;
    overlap_next();
    int head0 = (int) blockIdx.x % p.groups * HEADS;
    if (thread == 0) {
        map_prefetch(&maps.rows);
        if (FP8) map_prefetch(&maps.keys);
        for (int stage = 0; stage < STAGES; stage++) {
            for (int c = 0; c < CHUNKS; c++) {
                bar_init(&s->full[stage][c], FP8 && c < CHUNKS - 1 ? WARPGROUP / WARP : 1);
            }
            for (int i = 0; i < PIECES; i++) bar_init(&s->raw[stage][i], 1);
            for (int half = 0; half < 2; half++) {
                bar_init(&s->empty[stage][half], WARPGROUP / WARP);
            }
        }
        bar_init_end();
    }
    static_assert(sizeof(struct parts_shared) <= sizeof s->q, "queries come later");
    struct part part = parts_find((struct parts_shared *) s->q, m, index, p.groups, p.n_sm, p.rows,
                                  blockIdx.x == 0);
    if (part.row < 0) {
        overlap_wait(); // what is behind counts on it
        return;
    }
    if (m.in.pos[part.row] / KV_BLOCK_ROWS >= m.in.max_blocks) __trap();
    __syncthreads();
    if (thread >= COMPUTERS) {
        int share = head0 / HEADS;
        registers_give<FP8 ? 96 : 24>(); // what the second warpgroup leaves
        if (FP8) bring_fp8(s, &maps, m, part, share, p.groups);
        else if (thread < COMPUTERS + WARP) bring(s, &maps.rows, m, part, share, p.groups);
    } else if (thread < WARPGROUP) {
        registers_take<240>();
        bring_queries(s, m, part.row, head0);
        first_group(s, m, p, part, head0);
    } else {
        if (!FP8) registers_take<240>();
        bring_queries(s, m, part.row, head0);
        second_group(s, m, p, part, head0);
    }
#else
    __trap();
#endif
}

// out = the sums of a row's parts, in their order: a warp has a head, or one of SHARES of its
// columns. Grid: eights of those, rows.
template <int SHARES>
static __global__ void __launch_bounds__(ADD_HEADS *WARP)
add_cuts(const __grid_constant__ struct mla m, const __grid_constant__ struct place p)
{
    constexpr int EACH = LORA / WARP / 4 / SHARES;
    int row = blockIdx.y, lane = threadIdx.x % WARP;
    int index = (int) blockIdx.x * ADD_HEADS + (int) threadIdx.x / WARP;
    int head = index / SHARES, first_column = index % SHARES * (LORA / SHARES);
    overlap_next();
    overlap_wait();
    if (m.in.pos[row] < 0 || head >= m.n_heads) return;
    struct row_parts parts = p.rows[row];
    if (parts.n <= 1) return;
    size_t first = (size_t) parts.first * m.n_heads + head;
    const float2 *stats = (const float2 *) p.stats + first;
    float most = -INFINITY;
    for (int i = lane; i < parts.n; i += WARP) {
        most = fmaxf(most, stats[(size_t) i * m.n_heads].x);
    }
    for (int i = WARP / 2; i > 0; i /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, i));
    float4 sums[EACH] = {};
    float mass = 0;
#pragma unroll 8
    for (int i = 0; i < parts.n; i++) {
        float2 stat = stats[(size_t) i * m.n_heads];
        float by = exp2_fast(stat.x - most);
        const float4 *from = (const float4 *) (p.sums + (first + (size_t) i * m.n_heads) * LORA +
                                               first_column);
        mass = fmaf(stat.y, by, mass);
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            float4 x = from[j * WARP + lane];
            sums[j].x = fmaf(x.x, by, sums[j].x);
            sums[j].y = fmaf(x.y, by, sums[j].y);
            sums[j].z = fmaf(x.z, by, sums[j].z);
            sums[j].w = fmaf(x.w, by, sums[j].w);
        }
    }
    float4 *to = (float4 *) (m.out + ((size_t) row * m.n_heads + head) * LORA + first_column);
    float by = 1.0f / mass;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        to[j * WARP + lane] =
            make_float4(sums[j].x * by, sums[j].y * by, sums[j].z * by, sums[j].w * by);
    }
}

template <int SHARES>
static void run_add(struct device *d, const struct mla &m, const struct place &p)
{
    dim3 grid((unsigned) ceil_div((uint64_t) m.n_heads * SHARES, ADD_HEADS), (unsigned) m.n_rows);
    overlap_launch(d, "mla", true, add_cuts<SHARES>, grid, ADD_HEADS * WARP, 0, m, p);
}

static struct pool_maps fp8_maps(struct device *d, const struct kv_layer *kv)
{
    struct tma_tensor latents = {kv->pool, LORA, TILE, kv->n_blocks, KV8_BLOCK, TILE};
    struct tma_tensor keys = {(const char *) kv->pool + KV8_ROPE_AT, CHUNK_ROW_BYTES, TILE,
                              kv->n_blocks, KV8_BLOCK, TILE};
    return {tma_map(d, &latents), tma_map(d, &keys)};
}

void mla_wgmma_run(struct device *d, struct mla m)
{
    struct place p;
    p.groups = (int) ceil_div((uint64_t) m.n_heads, HEADS);
    p.n_sm = d->n_sm < CUDA_MLA_BLOCKS ? d->n_sm : CUDA_MLA_BLOCKS;
    bool cut = m.n_rows <= CUDA_MLA_CUT_ROWS;
    int more = cut ? parts_more(p.n_sm, p.groups) : 0;
    size_t places = (size_t) more * 2 * (size_t) m.n_heads;
    p.sums = m.partial;
    p.stats = p.sums + places * LORA;
    p.rows = (struct row_parts *) (p.stats + places * 2);
    int bytes = (int) sizeof(struct shared) + 1024;
    unsigned blocks = (unsigned) (p.groups * (m.n_rows + more));
    struct pool_maps maps;
    if (m.kv.fp8) {
        maps = fp8_maps(d, &m.kv);
    } else {
        maps.rows = maps.keys = hopper_map(d, m.kv.pool, (uint64_t) m.kv.n_blocks * KV_BLOCK_ROWS,
                                           WIDTH, TILE);
    }
    auto kernel = m.kv.fp8 ? attend_wgmma<true> : attend_wgmma<false>;
    device_allow(d, (const void *) kernel, bytes, "mla");
    overlap_launch(d, "mla", true, kernel, dim3(blocks), THREADS, bytes, m, maps, p);
    if (!cut) return;
    if (m.n_rows <= PARTS_FEW_ROWS) run_add<4>(d, m, p);
    else run_add<1>(d, m, p);
}
