// What the sampler asks of a device (kernels/sampler_ops.h). A warp takes a chunk of a row; all
// sums are of integers, so that their order does not matter, and the masses' arithmetic is written
// out operation by operation, so that nothing is fused that the host does not fuse.
#include "kernels/cuda/device.cuh"

#include "kernels/cuda/sampler.h"

enum {
    THREADS = 256, WARPS = THREADS / WARP,
    LANE_LOGITS = 4, BLOCKS = SAMPLER_CHUNK / SAMPLER_BLOCK, // blocks of a chunk
    ROOM = 4096,       // of the entries that reach the floor
    BLOCK_ROOM = 1024, // of the blocks that have them
    BINS = 256,
};

static_assert(SAMPLER_BLOCK == WARP * LANE_LOGITS, "a warp reads a block at once");
static_assert(SAMPLER_CHUNK == THREADS * LANE_LOGITS, "a walk's threads share a chunk");

static const uint32_t NAN_KEY = 0xffffffffu; // of no other logit: the largest of a block with NaN

// --- sampler_mass.h on the device

static __device__ uint32_t key_on(float l)
{
    uint32_t bits = __float_as_uint(l);
    bits = bits == 0x80000000u ? 0 : bits;
    return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

static __device__ uint64_t entry_on(float l, int32_t id)
{
    return (uint64_t) ~key_on(l) << 32 | (uint32_t) id;
}

static __constant__ int32_t mass_table[8] = MASS_TABLE;

static __device__ uint32_t plain_on(const float *table, float l, float scale, float grid,
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

static __device__ uint32_t mass_on(const float *table, const struct softmax *s, float l)
{
    if (s->plain) return plain_on(table, l, s->scale, s->grid, s->least);
    float t = __fmul_rn(__fsub_rn(l, s->max), s->scale);
    return plain_on(table, t < 0 ? t : 0, 1, MASS_GRID, MASS_LEAST);
}

// softmax_scaled, of the logit with that key.
static __device__ struct softmax softmax_on(uint32_t key, float scale)
{
    struct softmax s = {};
    s.max = __uint_as_float(key >> 31 != 0 ? key & 0x7fffffffu : ~key);
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
static __device__ void put_table(float *table)
{
    if (threadIdx.x < 8) table[threadIdx.x] = __int_as_float(mass_table[threadIdx.x]);
    __syncthreads();
}

// --- reading

// Index of a lane's logit j in its block: vectors where rows are aligned.
static __device__ int place_of(bool aligned, int lane, int j)
{
    return aligned ? lane * LANE_LOGITS + j : j * WARP + lane;
}

// A lane's logits of the block from `begin` on; -inf beyond n.
static __device__ void read_block(const float *l, int n, int begin, int lane, bool aligned,
                                  float x[LANE_LOGITS])
{
    if (aligned && begin + SAMPLER_BLOCK <= n) {
        float4 v = ((const float4 *) (l + begin))[lane];
        x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
        return;
    }
    for (int j = 0; j < LANE_LOGITS; j++) {
        int i = begin + place_of(aligned, lane, j);
        x[j] = i < n ? l[i] : -INFINITY;
    }
}

static __device__ void read_chunk(const float *l, int n, int begin, int lane, bool aligned,
                                  float x[BLOCKS][LANE_LOGITS])
{
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
        read_block(l, n, begin + b * SAMPLER_BLOCK, lane, aligned, x[b]);
    }
}

static bool is_aligned(const struct sampler_view *v)
{
    return (uintptr_t) v->logits % sizeof(float4) == 0 && v->vocab_n % LANE_LOGITS == 0;
}

static __device__ uint64_t warp_sum(uint64_t x)
{
    for (int i = WARP / 2; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i);
    return x;
}

// Sums up to and with this lane.
static __device__ uint64_t warp_prefix(uint64_t x, int lane)
{
    for (int i = 1; i < WARP; i *= 2) {
        uint64_t before = __shfl_up_sync(~0u, x, i);
        if (lane >= i) x += before;
    }
    return x;
}

static __device__ const float *row_of(const struct sampler_view &v, int row)
{
    return v.logits + (size_t) row * v.vocab_n;
}

static __device__ int count_of(int n, int width) { return (n + width - 1) / width; }

// --- the first round

static __global__ void __launch_bounds__(THREADS)
block_maxima(const __grid_constant__ struct sampler_view v,
             const __grid_constant__ struct sampler_heads h, bool aligned)
{
    int row = blockIdx.y, lane = threadIdx.x % WARP;
    int begin = (blockIdx.x * WARPS + threadIdx.x / WARP) * SAMPLER_CHUNK;
    if (h.want[row] == 0 || begin >= v.vocab_n) return;
    uint32_t *to = v.parts.maxima + (size_t) row * count_of(v.vocab_n, SAMPLER_BLOCK) +
                   begin / SAMPLER_BLOCK;
    float x[BLOCKS][LANE_LOGITS];
    uint32_t mine = 0;
    read_chunk(row_of(v, row), v.vocab_n, begin, lane, aligned, x);
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
        float most = x[b][0];
        bool good = x[b][0] == x[b][0];
        for (int j = 1; j < LANE_LOGITS; j++) {
            most = fmaxf(most, x[b][j]);
            good = good && x[b][j] == x[b][j];
        }
        uint32_t key = __reduce_max_sync(~0u, good ? key_on(most) : NAN_KEY);
        if (lane == b) mine = key;
    }
    if (lane < BLOCKS && begin + lane * SAMPLER_BLOCK < v.vocab_n) to[lane] = mine;
}

struct selection {
    uint64_t entries[ROOM];
    uint32_t bins[BINS];
    uint16_t blocks[BLOCK_ROOM];
    uint32_t n_entries, n_blocks, prefix, want, most;
};

// The want-th largest of `keys` (n > want), eight bits at a time: at least `want` blocks reach it.
static __device__ uint32_t largest_key(struct selection *s, const uint32_t *keys, int n, int want)
{
    if (threadIdx.x == 0) {
        s->prefix = 0;
        s->want = want;
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
        s->bins[threadIdx.x] = 0;
        __syncthreads();
        uint32_t prefix = s->prefix, left = s->want;
        for (int i = threadIdx.x; i < n; i += THREADS) {
            bool ours = shift == 24 || keys[i] >> (shift + 8) == prefix;
            if (ours) atomicAdd(&s->bins[keys[i] >> shift & (BINS - 1)], 1);
        }
        __syncthreads();
        // Each thread of one warp has 8 bins, the highest first.
        if (threadIdx.x < WARP) {
            int lane = threadIdx.x, high = BINS - 1 - 8 * lane;
            uint32_t sum = 0;
            for (int j = 0; j < 8; j++) sum += s->bins[high - j];
            uint32_t above = (uint32_t) warp_prefix(sum, lane) - sum;
            if (above < left && left <= above + sum) {
                int bin = high;
                for (; above + s->bins[bin] < left; bin--) above += s->bins[bin];
                s->want = left - above;
                s->prefix = prefix << 8 | (uint32_t) bin;
            }
        }
        __syncthreads();
    }
    return s->prefix;
}

// Ascending; n entries, ENTRY_NONE behind them.
static __device__ void sort_entries(struct selection *s, int n)
{
    int size = 2;
    while (size < n) size *= 2;
    for (int i = n + threadIdx.x; i < size; i += THREADS) s->entries[i] = ENTRY_NONE;
    __syncthreads();
    for (int run = 2; run <= size; run *= 2) {
        for (int step = run / 2; step > 0; step /= 2) {
            for (int i = threadIdx.x; i < size / 2; i += THREADS) {
                int a = 2 * i - i % step, b = a + step;
                uint64_t x = s->entries[a], y = s->entries[b];
                if ((x > y) == ((a & run) == 0)) {
                    s->entries[a] = y;
                    s->entries[b] = x;
                }
            }
            __syncthreads();
        }
    }
}

static __device__ void take_blocks(struct selection *s, const uint32_t *keys, int n, uint32_t floor)
{
    for (int i = threadIdx.x; i < n; i += THREADS) {
        if (keys[i] < floor) continue;
        uint32_t at = atomicAdd(&s->n_blocks, 1);
        if (at < BLOCK_ROOM) s->blocks[at] = (uint16_t) i;
    }
    __syncthreads();
}

static __device__ void take_entries(struct selection *s, const struct sampler_view &v, int row,
                                    bool aligned, uint32_t floor)
{
    int lane = threadIdx.x % WARP, n = s->n_blocks < BLOCK_ROOM ? s->n_blocks : BLOCK_ROOM;
    for (int i = threadIdx.x / WARP; i < n; i += WARPS) {
        int begin = s->blocks[i] * SAMPLER_BLOCK;
        float x[LANE_LOGITS];
        read_block(row_of(v, row), v.vocab_n, begin, lane, aligned, x);
        for (int j = 0; j < LANE_LOGITS; j++) {
            int place = begin + place_of(aligned, lane, j);
            if (place >= v.vocab_n || key_on(x[j]) < floor) continue;
            uint32_t at = atomicAdd(&s->n_entries, 1);
            if (at < ROOM) s->entries[at] = entry_on(x[j], v.vocab_begin + place);
        }
    }
    __syncthreads();
}

static __global__ void __launch_bounds__(THREADS)
select_lists(const __grid_constant__ struct sampler_view v,
             const __grid_constant__ struct sampler_heads h, bool aligned, uint64_t *words)
{
    __shared__ struct selection s;
    int row = blockIdx.x, want = h.want[row], n = count_of(v.vocab_n, SAMPLER_BLOCK);
    if (threadIdx.x == 0) v.parts.totals[row] = v.parts.done[row] = 0;
    if (want == 0) return;
    const uint32_t *keys = v.parts.maxima + (size_t) row * n;
    uint64_t *to = words + h.to[row];
    if (threadIdx.x == 0) s.n_entries = s.n_blocks = s.most = 0;
    __syncthreads();
    uint32_t most = 0;
    for (int i = threadIdx.x; i < n; i += THREADS) most = max(most, keys[i]);
    most = __reduce_max_sync(~0u, most);
    if (threadIdx.x % WARP == 0) atomicMax(&s.most, most);
    __syncthreads();
    most = s.most;
    if (most != NAN_KEY) {
        uint32_t floor = want == 1 ? most : n > want ? largest_key(&s, keys, n, want) : 0;
        take_blocks(&s, keys, n, floor);
        take_entries(&s, v, row, aligned, floor);
    }
    int head = most == NAN_KEY                              ? HEAD_NAN
               : s.n_blocks > BLOCK_ROOM || s.n_entries > ROOM ? HEAD_HOST
                                                             : HEAD_GOOD;
    int found = head == HEAD_GOOD ? (int) s.n_entries : 0;
    if (found > 0) sort_entries(&s, found);
    for (int i = threadIdx.x; i < want; i += THREADS) {
        to[1 + i] = i < found ? s.entries[i] : ENTRY_NONE;
    }
    if (threadIdx.x != 0) return;
    to[0] = (uint64_t) head;
    ((struct softmax *) v.parts.ahead)[row] = softmax_on(most, h.scale[row]);
}

// --- sums and walks

// By all threads of the blocks with the same y; the last of them writes the word.
static __device__ void sum_row(const struct sampler_view &v, const struct sampler_job &job,
                               const struct softmax &softmax, bool kept, bool aligned,
                               uint64_t *words)
{
    __shared__ float table[8];
    __shared__ unsigned long long sums[WARPS];
    int lane = threadIdx.x % WARP, chunk = blockIdx.x * WARPS + threadIdx.x / WARP;
    int begin = chunk * SAMPLER_CHUNK;
    bool all = job.above == -INFINITY;
    put_table(table);
    uint64_t sum = 0;
    if (begin < v.vocab_n) {
        float x[BLOCKS][LANE_LOGITS];
        read_chunk(row_of(v, job.row), v.vocab_n, begin, lane, aligned, x);
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
#pragma unroll
            for (int j = 0; j < LANE_LOGITS; j++) {
                int i = begin + b * SAMPLER_BLOCK + place_of(aligned, lane, j);
                bool in = all || x[b][j] > job.above || (x[b][j] == job.above && i < job.at);
                sum += in ? mass_on(table, &softmax, x[b][j]) : 0;
            }
        }
        sum = warp_sum(sum);
        if (kept && lane == 0) {
            v.parts.chunks[(size_t) job.row * count_of(v.vocab_n, SAMPLER_CHUNK) + chunk] = sum;
        }
    }
    if (lane == 0) sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    unsigned long long total = 0, *to = (unsigned long long *) &v.parts.totals[blockIdx.y];
    for (int w = 0; w < WARPS; w++) total += sums[w];
    atomicAdd(to, total);
    __threadfence();
    if (atomicInc(&v.parts.done[blockIdx.y], gridDim.x - 1) != gridDim.x - 1) return;
    __threadfence();
    words[job.to] = atomicExch(to, 0ull);
}

static __global__ void __launch_bounds__(THREADS)
sum_masses(const __grid_constant__ struct sampler_view v,
           const __grid_constant__ struct sampler_jobs jobs, bool kept, bool aligned,
           uint64_t *words)
{
    sum_row(v, jobs.job[blockIdx.y], jobs.job[blockIdx.y].softmax, kept, aligned, words);
}

// Of all logits, where the lists' kernel has put the softmax.
static __global__ void __launch_bounds__(THREADS)
sum_ahead(const __grid_constant__ struct sampler_view v,
          const __grid_constant__ struct sampler_heads h, bool aligned, uint64_t *words)
{
    if (h.scale[blockIdx.y] == 0) return;
    struct sampler_job job;
    job.row = blockIdx.y;
    job.to = h.sum_to[blockIdx.y];
    job.above = -INFINITY;
    job.at = 0;
    sum_row(v, job, ((const struct softmax *) v.parts.ahead)[blockIdx.y], true, aligned, words);
}

static __global__ void __launch_bounds__(THREADS)
walk_rows(const __grid_constant__ struct sampler_view v,
          const __grid_constant__ struct sampler_jobs jobs, uint64_t *words)
{
    __shared__ float table[8];
    __shared__ uint64_t sums[WARPS], left;
    __shared__ int chunk;
    const struct sampler_job &job = jobs.job[blockIdx.x];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int n_chunks = count_of(v.vocab_n, SAMPLER_CHUNK);
    const uint64_t *chunks = v.parts.chunks + (size_t) job.row * n_chunks;
    put_table(table);
    if (warp == 0) {
        uint64_t draw = job.draw;
        for (int c = 0; c < n_chunks; c += WARP) {
            uint64_t mass = c + lane < n_chunks ? chunks[c + lane] : 0;
            uint64_t prefix = warp_prefix(mass, lane);
            uint32_t beyond = __ballot_sync(~0u, prefix > draw);
            if (beyond != 0) {
                if (lane == __ffs((int) beyond) - 1) {
                    chunk = c + lane;
                    left = draw - (prefix - mass);
                }
                break;
            }
            draw -= __shfl_sync(~0u, prefix, WARP - 1);
        }
    }
    __syncthreads();
    const float *l = row_of(v, job.row);
    int begin = chunk * SAMPLER_CHUNK + threadIdx.x * LANE_LOGITS;
    uint32_t mass[LANE_LOGITS];
    uint64_t sum = 0;
    for (int j = 0; j < LANE_LOGITS; j++) {
        float x = begin + j < v.vocab_n ? l[begin + j] : -INFINITY;
        mass[j] = x > job.above ? mass_on(table, &job.softmax, x) : 0;
        sum += mass[j];
    }
    uint64_t prefix = warp_prefix(sum, lane);
    if (lane == WARP - 1) sums[warp] = prefix;
    __syncthreads();
    uint64_t draw = left, before = prefix - sum;
    for (int w = 0; w < warp; w++) before += sums[w];
    if (draw < before || draw >= before + sum) return;
    int j = 0;
    for (draw -= before; draw >= mass[j]; j++) draw -= mass[j];
    uint64_t id = (uint64_t) (v.vocab_begin + begin + j);
    words[job.to] = (id + 1) << 32 | __float_as_uint(l[begin + j]);
}

// --- the ops

static unsigned chunk_groups(const struct sampler_view *v)
{
    return (unsigned) ceil_div((uint64_t) v->vocab_n, (uint64_t) SAMPLER_CHUNK * WARPS);
}

static void sampler_heads_on(struct device *d, const struct sampler_view *v,
                             const struct sampler_heads *h, uint64_t *words)
{
    if (h->n == 0) return;
    bool aligned = is_aligned(v);
    dim3 grid(chunk_groups(v), (unsigned) h->n);
    if (grid.x > 0) block_maxima<<<grid, THREADS, 0, d->stream>>>(*v, *h, aligned);
    select_lists<<<(unsigned) h->n, THREADS, 0, d->stream>>>(*v, *h, aligned, words);
    if (grid.x > 0 && h->sums) {
        sum_ahead<<<grid, THREADS, 0, d->stream>>>(*v, *h, aligned, words);
    }
    device_launched(d, "the sampler's lists");
}

static void sampler_masses_on(struct device *d, const struct sampler_view *v,
                              const struct sampler_jobs *j, bool kept, uint64_t *words)
{
    dim3 grid(chunk_groups(v), (unsigned) j->n); // an empty slice has mass 0: the words have it
    if (grid.x == 0 || grid.y == 0) return;
    sum_masses<<<grid, THREADS, 0, d->stream>>>(*v, *j, kept, is_aligned(v), words);
    device_launched(d, "the sampler's masses");
}

static void sampler_walks_on(struct device *d, const struct sampler_view *v,
                             const struct sampler_jobs *j, uint64_t *words)
{
    if (j->n == 0) return;
    walk_rows<<<(unsigned) j->n, THREADS, 0, d->stream>>>(*v, *j, words);
    device_launched(d, "the sampler's walks");
}

extern "C" const struct sampler_ops cuda_sampler = {sampler_heads_on, sampler_masses_on,
                                                    sampler_walks_on};
