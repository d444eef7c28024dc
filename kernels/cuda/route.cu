// The router (noaux_tc): sigmoid scores of all experts, then the choice, row by row. All f32.
#include "kernels/cuda/overlap.cuh"

#include "kernels/cuda/reduce.cuh"

enum {
    SCORE_THREADS = 256,
    SCORE_EACH = 8,       // vectors of an expert's weights that a thread has while it waits
    SCORE_ROWS = 4,       // of one block, which reads an expert's weights once for all of them
    MMA_WARPS = 8,        // of a block: each takes a part of k
    MMA_EXPERTS = 32,     // of a block: two tiles of 16
    MMA_K = 16,           // of k that a warp takes at a time: four values a thread, two products
    MMA_ROWS_MAX = 64,    // of a block
    SPLIT_K = 512,        // at least, of k in a block
    SPLIT_BLOCKS = 132,   // blocks beyond which k is not split over blocks
    CHOOSE_THREADS = 256, // of a row: all of them add scores, one warp chooses
    FEW_ROWS = 4,         // to which tensor cores are of no use: a block an expert and row
    FAST_THREADS = 128,   // of the choice in registers: a warp a row
};

// A block takes one expert and SCORE_ROWS rows. A row's sum has one order whatever its place.
static __global__ void __launch_bounds__(SCORE_THREADS)
score(const float *x, const float *weight, int n_experts, int hidden, float *sums_out, int n_rows)
{
    int expert = blockIdx.x, row0 = blockIdx.y * SCORE_ROWS;
    const float *w = weight + (size_t) expert * hidden;
    float sums[SCORE_ROWS] = {};
#pragma unroll 4
    for (int i = threadIdx.x; i < hidden; i += SCORE_THREADS) {
        float value = w[i];
#pragma unroll
        for (int r = 0; r < SCORE_ROWS; r++) {
            if (row0 + r < n_rows) {
                sums[r] = fmaf(x[(size_t) (row0 + r) * hidden + i], value, sums[r]);
            }
        }
    }
    for (int r = 0; r < SCORE_ROWS && row0 + r < n_rows; r++) {
        float sum = block_sum<SCORE_THREADS>(sums[r]);
        if (threadIdx.x == 0) sums_out[(size_t) (row0 + r) * n_experts + expert] = sum;
    }
}

// The same for a row a block, four values at a time.
static __global__ void __launch_bounds__(SCORE_THREADS)
score_row(const float *x, const float *weight, int n_experts, int hidden, float *sums_out)
{
    const float4 *w = (const float4 *) (weight + (size_t) blockIdx.x * hidden);
    const float4 *in = (const float4 *) (x + (size_t) blockIdx.y * hidden);
    int n = hidden / 4;
    float4 a[SCORE_EACH], b[SCORE_EACH];
    float sum = 0;
    auto add = [&](float4 weights, float4 values) {
        sum = fmaf(weights.x, values.x, fmaf(weights.y, values.y, sum));
        sum = fmaf(weights.z, values.z, fmaf(weights.w, values.w, sum));
    };
    overlap_next();
#pragma unroll
    for (int j = 0; j < SCORE_EACH; j++) {
        int i = threadIdx.x + j * SCORE_THREADS;
        a[j] = i < n ? w[i] : float4 {};
    }
    overlap_wait();
#pragma unroll
    for (int j = 0; j < SCORE_EACH; j++) {
        int i = threadIdx.x + j * SCORE_THREADS;
        b[j] = i < n ? in[i] : float4 {};
    }
#pragma unroll
    for (int j = 0; j < SCORE_EACH; j++) add(a[j], b[j]);
    for (int i = threadIdx.x + SCORE_EACH * SCORE_THREADS; i < n; i += SCORE_THREADS) {
        add(w[i], in[i]);
    }
    sum = block_sum<SCORE_THREADS>(sum);
    if (threadIdx.x == 0) sums_out[(size_t) blockIdx.y * n_experts + blockIdx.x] = sum;
}

// --- on tensor cores. An f32 is the sum of two tf32 to 2^-22 of it; of their four products the
// three largest are added, the small ones first.

struct halves {
    uint32_t high[4], low[4];
};

static __device__ __forceinline__ uint32_t to_tf32(float value)
{
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    return bits;
}

static __device__ __forceinline__ struct halves halves_of(const float *from)
{
    float4 v = *(const float4 *) from;
    float values[4] = {v.x, v.y, v.z, v.w};
    struct halves h;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        h.high[i] = to_tf32(values[i]);
        h.low[i] = to_tf32(values[i] - __uint_as_float(h.high[i]));
    }
    return h;
}

// c (16, 8) += a (16, 8) b (8, 8)
static __device__ __forceinline__ void mma_tf32(float *c, uint32_t a0, uint32_t a1, uint32_t a2,
                                                uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// `low`: which of the two operands gives its low half: 1 the weights, 2 the rows, 0 none.
template <int low>
static __device__ __forceinline__ void add_product(float *c, const struct halves *a,
                                                   const struct halves *b)
{
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t *top = low == 1 ? a[0].low : a[0].high;
        const uint32_t *bottom = low == 1 ? a[1].low : a[1].high;
        const uint32_t *rows = low == 2 ? b->low : b->high;
        mma_tf32(c, top[i], bottom[i], top[i + 1], bottom[i + 1], rows[i], rows[i + 1]);
    }
}

// Sums of MMA_EXPERTS experts and 8 * TILES rows over a part of k, in the order of k inside a warp,
// then by a tree over the warps. Grid: experts, rows, parts of k. sums (parts, n_rows, n_experts).
// A thread reads four consecutive values of a row, which the products take as columns t and t + 4
// of k: the order of k inside a product is free as long as both operands have the same.
template <int TILES> static __global__ void __launch_bounds__(MMA_WARPS * WARP)
score_mma(const float *x, const float *weight, int n_experts, int hidden, float *sums, int n_rows)
{
    __shared__ float others[MMA_WARPS / 2][2 * TILES * 4][WARP];
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int expert0 = blockIdx.x * MMA_EXPERTS, row0 = blockIdx.y * 8 * TILES;
    int pieces = hidden / MMA_K;
    int parts = gridDim.z * MMA_WARPS, part = blockIdx.z * MMA_WARPS + warp;
    int begin = (int) ((int64_t) pieces * part / parts) * MMA_K;
    int end = (int) ((int64_t) pieces * (part + 1) / parts) * MMA_K;
    const float *w[4], *rows[TILES];
    for (int i = 0; i < 4; i++) {
        int expert = min(expert0 + g + 8 * i, n_experts - 1);
        w[i] = weight + (size_t) expert * hidden + 4 * t;
    }
    for (int i = 0; i < TILES; i++) {
        rows[i] = x + (size_t) min(row0 + 8 * i + g, n_rows - 1) * hidden + 4 * t;
    }
    float c[2][TILES][4] = {};
    overlap_next();
    overlap_wait();
#pragma unroll 2
    for (int k = begin; k < end; k += MMA_K) {
        struct halves a[4];
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = halves_of(w[i] + k);
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            struct halves b = halves_of(rows[i] + k);
#pragma unroll
            for (int m = 0; m < 2; m++) {
                add_product<1>(c[m][i], a + 2 * m, &b);
                add_product<2>(c[m][i], a + 2 * m, &b);
                add_product<0>(c[m][i], a + 2 * m, &b);
            }
        }
    }
    float *mine = &c[0][0][0];
    for (int half = MMA_WARPS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (warp >= half && warp < 2 * half) {
#pragma unroll
            for (int i = 0; i < 2 * TILES * 4; i++) others[warp - half][i][lane] = mine[i];
        }
        __syncthreads();
        if (warp < half) {
#pragma unroll
            for (int i = 0; i < 2 * TILES * 4; i++) mine[i] += others[warp][i][lane];
        }
    }
    if (warp > 0) return;
    sums += (size_t) blockIdx.z * n_rows * n_experts;
#pragma unroll
    for (int i = 0; i < 2 * TILES * 4; i++) {
        int m = i / (TILES * 4), tile = i / 4 % TILES, j = i % 4;
        int expert = expert0 + 16 * m + g + j / 2 * 8, row = row0 + 8 * tile + 2 * t + j % 2;
        if (expert < n_experts && row < n_rows) sums[(size_t) row * n_experts + expert] = mine[i];
    }
}

// --- the choice. A key orders as its float does; 0 is below all of them: closed.

static __device__ __forceinline__ uint32_t key_of(float value)
{
    uint32_t bits = __float_as_uint(value + 0.0f); // one zero
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ __forceinline__ float value_of(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// The largest key of a lane's share, and the first place that has it.
struct best {
    uint32_t key;
    int at;
};

static __device__ struct best best_of_lane(const uint32_t *keys, int n)
{
    struct best b = {};
    for (int i = threadIdx.x; i < n; i += WARP) {
        uint32_t key = keys[i];
        if (key > b.key) {
            b.key = key;
            b.at = i;
        }
    }
    return b;
}

// The first place of the largest key over the warp; -1 if all are closed.
static __device__ __forceinline__ int first_largest(struct best b)
{
    uint32_t key = __reduce_max_sync(~0u, b.key);
    uint32_t at = __reduce_min_sync(~0u, b.key == key ? (uint32_t) b.at : UINT32_MAX);
    return key == 0 ? -1 : (int) at;
}

// The two largest of a group, added; over the warp.
static __device__ float group_score(const uint32_t *keys, int size)
{
    uint32_t first = 0, second = 0;
    for (int i = threadIdx.x; i < size; i += WARP) {
        uint32_t key = keys[i];
        second = max(second, min(first, key));
        first = max(first, key);
    }
    uint32_t largest = __reduce_max_sync(~0u, first);
    if (size == 1) return value_of(largest);
    unsigned owners = __ballot_sync(~0u, first == largest);
    if (threadIdx.x == __ffs(owners) - 1) first = second;
    return value_of(largest) + value_of(__reduce_max_sync(~0u, first));
}

// Closes the experts of all but the best groups.
static __device__ void keep_groups(const struct router *r, uint32_t *keys, uint32_t *groups)
{
    int size = r->n_experts / r->n_groups;
#pragma unroll 4
    for (int g = 0; g < r->n_groups; g++) {
        float score = group_score(keys + (size_t) g * size, size);
        if (threadIdx.x == 0) groups[g] = key_of(score);
    }
    __syncwarp();
    for (int kept = 0; kept < r->n_groups_kept; kept++) {
        int g = first_largest(best_of_lane(groups, r->n_groups));
        __syncwarp();
        if (threadIdx.x == 0) groups[g] = 0;
        __syncwarp();
    }
    for (int i = threadIdx.x; i < r->n_experts; i += WARP) {
        if (groups[i / size] != 0) keys[i] = 0;
    }
    __syncwarp();
}

// A block a row. sums (parts, rows, n_experts): parts of a score's sum, added in order. Shared:
// scores, keys (n_experts), groups (n_groups), then taken (n_experts) bytes.
static __global__ void __launch_bounds__(CHOOSE_THREADS)
choose(struct router r, const float *sums, int parts, int32_t *all_chosen, float *all_weights)
{
    extern __shared__ float scores[];
    uint32_t *keys = (uint32_t *) (scores + r.n_experts), *groups = keys + r.n_experts;
    uint8_t *taken = (uint8_t *) (groups + r.n_groups);
    size_t part = (size_t) gridDim.x * r.n_experts;
    sums += (size_t) blockIdx.x * r.n_experts;
    int32_t *chosen = all_chosen + (size_t) blockIdx.x * r.n_chosen;
    float *weights = all_weights + (size_t) blockIdx.x * r.n_chosen;
    overlap_next();
    overlap_wait();
    for (int i = threadIdx.x; i < r.n_experts; i += CHOOSE_THREADS) {
        float sum = 0;
#pragma unroll 16
        for (int p = 0; p < parts; p++) sum += sums[p * part + i];
        scores[i] = 1.0f / (1.0f + expf(-sum));
        float c = scores[i] + r.bias[i];
        keys[i] = key_of(isnan(c) ? -INFINITY : c); // broken input still gets distinct experts
        taken[i] = 0;
    }
    __syncthreads();
    if (threadIdx.x >= WARP) return;
    if (r.n_groups_kept < r.n_groups) keep_groups(&r, keys, groups);
    struct best mine = best_of_lane(keys, r.n_experts);
    float sum = 0;
    for (int k = 0; k < r.n_chosen; k++) {
        int best = first_largest(mine);
        for (int i = 0; best < 0; i++) { // the kept groups are used up: all others tie
            if (!taken[i]) best = i;
        }
        sum += scores[best];
        __syncwarp();
        if (threadIdx.x == best % WARP) {
            keys[best] = 0;
            taken[best] = 1;
            chosen[k] = best;
            mine = best_of_lane(keys, r.n_experts);
        }
        __syncwarp();
    }
    for (int k = threadIdx.x; k < r.n_chosen; k += WARP) {
        float weight = scores[chosen[k]];
        if (r.normalize) weight /= sum + 1e-20f;
        weights[k] = weight * r.scaling;
    }
}

// The same choice in registers, for groups of whole lanes: EACH experts a lane, which follow each
// other, so that of equal values the lowest lane has the first. 0 stands for what is not open.
template <int EACH>
static __global__ void __launch_bounds__(FAST_THREADS)
choose_fast(struct router r, const float *sums, int parts, int32_t *all_chosen, float *all_weights,
            int n_rows)
{
    int row = blockIdx.x * (FAST_THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    overlap_next();
    if (row >= n_rows) return; // a whole warp
    size_t part = (size_t) n_rows * r.n_experts;
    const float *from = sums + (size_t) row * r.n_experts + lane * EACH;
    float score[EACH] = {}, bias[EACH];
    uint32_t key[EACH], first = 0, second = 0;
    float best = -INFINITY, next = -INFINITY;
#pragma unroll
    for (int i = 0; i < EACH; i++) bias[i] = r.bias[lane * EACH + i];
    overlap_wait();
#pragma unroll 2
    for (int p = 0; p < parts; p++) {
#pragma unroll
        for (int i = 0; i < EACH; i++) score[i] += from[p * part + i];
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        score[i] = 1.0f / (1.0f + expf(-score[i]));
        float biased = score[i] + bias[i];
        if (isnan(biased)) biased = -INFINITY; // broken input still gets distinct experts
        key[i] = key_of(biased);
        if (key[i] > first) {
            second = first;
            first = key[i];
            next = best;
            best = biased;
        } else if (key[i] > second) {
            second = key[i];
            next = biased;
        }
    }
    int lanes = WARP / r.n_groups;
    for (int i = 1; i < lanes; i *= 2) { // the two largest of the group
        float other = __shfl_xor_sync(~0u, best, i), other_next = __shfl_xor_sync(~0u, next, i);
        float low = fminf(best, other);
        best = fmaxf(best, other);
        next = fmaxf(low, fmaxf(next, other_next));
    }
    float group = r.n_experts / r.n_groups > 1 ? best + next : best;
    int mine = lane / lanes, before = 0; // groups that go first
    for (int g = 0; g < r.n_groups; g++) {
        float other = __shfl_sync(~0u, group, g * lanes);
        before += other > group || (other == group && g < mine);
    }
    bool open = before < r.n_groups_kept;
#pragma unroll
    for (int i = 0; i < EACH; i++) key[i] = open ? key[i] : 0;
    float sum = 0, weight = 0;
    int32_t chosen = 0;
    for (int k = 0; k < r.n_chosen; k++) {
        uint32_t most = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++) most = max(most, key[i]);
        uint32_t all = __reduce_max_sync(~0u, most);
        int owner = __ffs((int) __ballot_sync(~0u, most == all)) - 1, at = 0;
        float value = 0;
        bool found = lane != owner;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            bool take = !found && key[i] == all;
            found = found || take;
            if (!take) continue;
            value = score[i];
            at = i;
            key[i] = 0;
        }
        value = __shfl_sync(~0u, value, owner);
        at = __shfl_sync(~0u, lane * EACH + at, owner);
        sum += value;
        if (lane == k) {
            weight = value;
            chosen = at;
        }
    }
    if (lane >= r.n_chosen) return;
    if (r.normalize) weight /= sum + 1e-20f;
    all_chosen[(size_t) row * r.n_chosen + lane] = chosen;
    all_weights[(size_t) row * r.n_chosen + lane] = weight * r.scaling;
}

// Whether choose_fast is for it: groups of whole lanes, and enough experts in those that are kept.
static bool is_fast(const struct router *r, int each)
{
    int size = r->n_experts / r->n_groups;
    return r->n_experts == each * WARP && r->n_groups <= WARP && WARP % r->n_groups == 0 &&
           r->n_groups_kept * size >= r->n_chosen && r->n_chosen <= WARP;
}

static int n_parts(const struct router *r, int blocks)
{
    int parts = SPLIT_BLOCKS / blocks, most = r->hidden / SPLIT_K;
    if (parts > most) parts = most;
    return parts < 1 ? 1 : parts;
}

// Puts the sums on the stream; returns how many parts they are in and where.
static int put_scores(struct device *d, const struct router *r, const float *x, float **sums,
                      int n_rows)
{
    *sums = d->scratch.scores;
    // In exact mode a row's sum may not depend on how many there are.
    if (d->precision == PRECISION_F32 || r->hidden % MMA_K != 0) {
        dim3 grid((unsigned) r->n_experts, (unsigned) ceil_div(n_rows, SCORE_ROWS));
        score<<<grid, SCORE_THREADS, 0, d->stream>>>(x, r->weight, r->n_experts, r->hidden, *sums,
                                                     n_rows);
        device_launched(d, "route");
        return 1;
    }
    if (n_rows <= FEW_ROWS) {
        dim3 few((unsigned) r->n_experts, (unsigned) n_rows);
        overlap_launch(d, "route", true, score_row, few, SCORE_THREADS, 0, x, r->weight,
                       r->n_experts, r->hidden, *sums);
        return 1;
    }
    int width = n_rows <= 8 ? 8 : n_rows <= 32 ? 32 : MMA_ROWS_MAX;
    dim3 grid((unsigned) ceil_div(r->n_experts, MMA_EXPERTS), (unsigned) ceil_div(n_rows, width));
    int parts = n_parts(r, (int) (grid.x * grid.y));
    uint64_t room = (uint64_t) CUDA_SPLIT_BLOCKS * CUDA_TILE_FLOATS;
    if ((uint64_t) parts * n_rows * r->n_experts > room) parts = 1;
    if (parts > 1) *sums = d->scratch.partial;
    grid.z = (unsigned) parts;
    auto kernel = width == 8 ? score_mma<1> : width == 32 ? score_mma<4> : score_mma<8>;
    overlap_launch(d, "route", true, kernel, grid, MMA_WARPS * WARP, 0, x, r->weight, r->n_experts,
                   r->hidden, *sums, n_rows);
    return parts;
}

void cuda_route(struct device *d, const struct router *r, const void *x, int32_t *chosen,
                float *weights, int n_rows)
{
    check(r->n_experts <= MODEL_EXPERTS_MAX && r->n_chosen <= r->n_experts);
    check(n_rows <= d->shape.max_rows && r->n_experts <= d->shape.n_experts);
    if (n_rows == 0) return;
    float *sums;
    int parts = put_scores(d, r, (const float *) x, &sums, n_rows);
    size_t shared = (size_t) r->n_experts * 9 + (size_t) r->n_groups * 4;
    dim3 blocks((unsigned) ceil_div(n_rows, FAST_THREADS / WARP));
    const float *from = sums;
    if (is_fast(r, 8) || is_fast(r, 12)) {
        overlap_launch(d, "route", true, is_fast(r, 8) ? choose_fast<8> : choose_fast<12>, blocks,
                       FAST_THREADS, 0, *r, from, parts, chosen, weights, n_rows);
    } else {
        overlap_launch(d, "route", true, choose, dim3((unsigned) n_rows), CHOOSE_THREADS, shared,
                       *r, from, parts, chosen, weights);
    }
}
