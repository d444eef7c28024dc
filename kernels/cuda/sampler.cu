// What the sampler asks of a device where several ranks meet between the rounds
// (kernels/sampler_ops.h). A warp takes a chunk of a row; all sums are of integers, so that their
// order does not matter.
#include "kernels/cuda/sampler_choose.cuh"
#include "kernels/cuda/sampler_lists.cuh"

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
    read_blocks<BLOCKS>(row_of(v, row), v.vocab_n, begin, lane, aligned, x);
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
        uint32_t key = largest_on(x[b]);
        if (lane == b) mine = key;
    }
    if (lane < BLOCKS && begin + lane * SAMPLER_BLOCK < v.vocab_n) to[lane] = mine;
}

static __global__ void __launch_bounds__(THREADS)
select_lists(const __grid_constant__ struct sampler_view v,
             const __grid_constant__ struct sampler_heads h, bool aligned, uint64_t *words)
{
    __shared__ struct selection s;
    int row = blockIdx.x, want = h.want[row];
    if (threadIdx.x == 0) v.parts.totals[row] = v.parts.done[row] = 0;
    if (want == 0) return;
    uint64_t *to = words + h.to[row];
    uint32_t most;
    enum sampler_head head = select_list(&s, v, row, want, aligned, &most);
    for (int i = threadIdx.x; i < want; i += THREADS) {
        to[1 + i] = head == HEAD_GOOD ? s.entries[i] : ENTRY_NONE;
    }
    if (threadIdx.x == 0) to[0] = (uint64_t) head;
}

// --- sums and walks

// A job by the blocks with the same y; the last of them writes the word.
static __global__ void __launch_bounds__(THREADS)
sum_masses(const __grid_constant__ struct sampler_view v,
           const __grid_constant__ struct sampler_jobs jobs, bool kept, bool aligned,
           uint64_t *words)
{
    const struct sampler_job &job = jobs.job[blockIdx.y];
    __shared__ float table[8];
    __shared__ unsigned long long sums[WARPS];
    int lane = threadIdx.x % WARP, chunk = blockIdx.x * WARPS + threadIdx.x / WARP;
    int begin = chunk * SAMPLER_CHUNK;
    bool all = job.above == -INFINITY;
    put_table(table);
    uint64_t sum = 0;
    if (begin < v.vocab_n) {
        float x[BLOCKS][LANE_LOGITS];
        read_blocks<BLOCKS>(row_of(v, job.row), v.vocab_n, begin, lane, aligned, x);
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
#pragma unroll
            for (int j = 0; j < LANE_LOGITS; j++) {
                int i = begin + b * SAMPLER_BLOCK + place_of(aligned, lane, j);
                bool in = all || x[b][j] > job.above || (x[b][j] == job.above && i < job.at);
                sum += in ? mass_on(table, &job.softmax, x[b][j]) : 0;
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

extern "C" const struct sampler_ops cuda_sampler = {
    sampler_heads_on, sampler_masses_on, sampler_walks_on, sampler_choose_on};
