// The work of a product is its tiles of 128 outputs times the blocks of 128 inputs of each; blocks
// of threads, one a multiprocessor, take equal shares of that list, so that a share may begin and
// end inside a tile. Whoever ends a tile last adds the parts that its shares left, in their order.
#include "kernels/cuda/skinny.cuh"

#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/tma.cuh"
#include "kernels/cuda/wgmma.cuh"

enum {
    SKINNY_ROWS_MAX = 64,
    SKINNY_FEW = 16,              // so few rows save the kernel that rounds them
    SKINNY_LARGE = 48000000,      // weights for which that does not matter
    CONSUMERS = 256,              // threads that multiply
    SKINNY_THREADS = CONSUMERS + WARP,
    TILE_N = SCALE_BLOCK,         // outputs
    W_BYTES = TILE_N * TMA_ROW,   // of a stage
    STAGED_BYTES = 196 * 1024,
};

struct skinny_call {
    CUtensorMap w, x;
    const float *scales;
    const uint8_t *nans;
    int n, row_phase, n_rows, blocks, units;
    float *out, *partial;
    size_t out_stride;
    int32_t *counters;
};

// N: rows of x.
template <int N> struct skinny_shape {
    static constexpr int HALF_BYTES = N * TMA_ROW; // of a block's 128 inputs
    static constexpr int STAGE_BYTES = W_BYTES + 2 * HALF_BYTES;
    static constexpr int STAGES = STAGED_BYTES / STAGE_BYTES;
    static constexpr int BYTES = STAGES * STAGE_BYTES + 1024; // aligned to 1024
    static constexpr int FLOATS = N / 2 * CONSUMERS;          // of a part
    static constexpr int SHARE_MIN = N / 8; // blocks of inputs that are worth a block of threads
};

bool skinny_takes(const struct device *d, const struct mat *w, int n_rows)
{
    bool large = (int64_t) w->n * w->k >= SKINNY_LARGE;
    return d->hopper && w->nans != nullptr && n_rows <= SKINNY_ROWS_MAX &&
           (n_rows > SKINNY_FEW || large);
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

static __device__ __forceinline__ int share_begin(int share, int units, int shares)
{
    return share * units / shares;
}

// Which share has this unit of work.
static __device__ __forceinline__ int share_of(int unit, int units, int shares)
{
    return ((unit + 1) * shares - 1) / units;
}

static __device__ __forceinline__ void consumers_sync()
{
    asm volatile("bar.sync 1, %0;" ::"n"((int) CONSUMERS) : "memory");
}

template <int N>
static __device__ __forceinline__ void produce(const struct skinny_call &c, char *shared,
                                               uint64_t *full, uint64_t *empty)
{
    using S = skinny_shape<N>;
    struct ring<S::STAGES> at;
    int begin = share_begin(blockIdx.x, c.units, gridDim.x);
    int end = share_begin(blockIdx.x + 1, c.units, gridDim.x);
    auto bring_weights = [&](int unit) {
        char *to = shared + at.stage * S::STAGE_BYTES;
        bar_expect(&full[at.stage], S::STAGE_BYTES);
        tma_load(to, &c.w, unit % c.blocks * TMA_ROW, unit / c.blocks * TILE_N - c.row_phase, 0,
                 &full[at.stage]);
    };
    auto bring_rows = [&](int unit) {
        char *to = shared + at.stage * S::STAGE_BYTES + W_BYTES;
        int byte = unit % c.blocks * 2 * TMA_ROW;
        tma_load(to, &c.x, byte, 0, 0, &full[at.stage]);
        tma_load(to + S::HALF_BYTES, &c.x, byte + TMA_ROW, 0, 0, &full[at.stage]);
    };
    int first = begin + S::STAGES < end ? begin + S::STAGES : end;
    for (int unit = begin; unit < first; unit++, at.next()) bring_weights(unit);
    overlap_wait();
    at = {};
    for (int unit = begin; unit < first; unit++, at.next()) bring_rows(unit);
    for (int unit = first; unit < end; unit++, at.next()) {
        bar_wait(&empty[at.stage], at.parity ^ 1);
        bring_weights(unit);
        bring_rows(unit);
    }
}

// A thread's outputs: register i of N / 2 is row (i / 4 * 8 + t * 2 + i % 2) of x and output
// g + i % 4 / 2 * 8 of its warp's 16.
template <int N>
static __device__ __forceinline__ void store(const struct skinny_call &c, int tile,
                                             const float (&sum)[N / 2])
{
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int n0 = tile * TILE_N - c.row_phase + warp * 16 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int n = n0 + half * 8;
        if (n < 0 || n >= c.n) continue;
        bool nan = c.nans[n];
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
            int row = i / 2 * 8 + lane % 4 * 2 + i % 2;
            float value = sum[i / 2 * 4 + half * 2 + i % 2];
            if (row < c.n_rows) c.out[(size_t) row * c.out_stride + n] = nan ? NAN : value;
        }
    }
}

// Leaves a part of a tile; the last one to do so adds them all.
template <int N>
static __device__ __forceinline__ void join(const struct skinny_call &c, int tile,
                                            float (&sum)[N / 2])
{
    using S = skinny_shape<N>;
    __shared__ bool last;
    int shares = gridDim.x, first = share_of(tile * c.blocks, c.units, shares);
    int parts = share_of((tile + 1) * c.blocks - 1, c.units, shares) - first + 1;
    // A share has at most two parts: of the tile it begins in, and of the one it ends in. So each
    // of a tile but the first begins in it.
    int before = share_begin(first, c.units, shares) < tile * c.blocks;
    float *parts_at = c.partial + threadIdx.x + (size_t) first * 2 * S::FLOATS;
    auto part = [&](int p) {
        return parts_at + (size_t) (p * 2 + (p == 0 ? before : 0)) * S::FLOATS;
    };
    float *mine = part((int) blockIdx.x - first);
#pragma unroll
    for (int i = 0; i < N / 2; i++) __stcg(mine + i * CONSUMERS, sum[i]);
    __threadfence();
    consumers_sync();
    if (threadIdx.x == 0) {
        last = atomicAdd(&c.counters[tile], 1) == parts - 1;
        if (last) c.counters[tile] = 0; // for the next launch
    }
    consumers_sync();
    if (!last) return;
    __threadfence();
    enum { BESIDE = 4, FEW = 8 }; // parts and sums that are read at once
#pragma unroll
    for (int i0 = 0; i0 < N / 2; i0 += FEW) {
        float add[FEW] = {};
        for (int p0 = 0; p0 < parts; p0 += BESIDE) {
            float v[BESIDE][FEW];
#pragma unroll
            for (int p = 0; p < BESIDE; p++) {
                const float *from = part(p0 + p) + i0 * CONSUMERS;
#pragma unroll
                for (int i = 0; i < FEW; i++) {
                    v[p][i] = p0 + p < parts ? __ldcg(from + i * CONSUMERS) : 0.0f;
                }
            }
#pragma unroll
            for (int i = 0; i < BESIDE * FEW; i++) add[i % FEW] += v[i / FEW][i % FEW];
        }
#pragma unroll
        for (int i = 0; i < FEW; i++) sum[i0 + i] = add[i];
    }
    store<N>(c, tile, sum);
}

template <int N>
static __device__ __forceinline__ void consume(const struct skinny_call &c, const char *shared,
                                               uint64_t *full, uint64_t *empty)
{
    using S = skinny_shape<N>;
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    // The thread's rows of weights, and its 32 of a row's 128 bytes: two pieces.
    int row = threadIdx.x / WARP * 16 + g;
    int piece[2] = {row * TMA_ROW + (t * 2 ^ g) * 16, row * TMA_ROW + ((t * 2 + 1) ^ g) * 16};
    struct ring<S::STAGES> at;
    int unit = share_begin(blockIdx.x, c.units, gridDim.x);
    int end = share_begin(blockIdx.x + 1, c.units, gridDim.x);
    float next = __ldg(c.scales + unit); // (tiles, blocks): a unit each
    while (unit < end) {
        int tile = unit / c.blocks, begin = unit;
        int stop = (tile + 1) * c.blocks < end ? (tile + 1) * c.blocks : end;
        float total[N / 2] = {};
        for (; unit < stop; unit++, at.next()) {
            float scale = next;
            if (unit + 1 < end) next = __ldg(c.scales + unit + 1);
            const char *weights = shared + at.stage * S::STAGE_BYTES;
            bar_wait(&full[at.stage], at.parity);
            uint32_t a[8][4];
            uint4 w[2][2];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                w[r][0] = *(const uint4 *) (weights + piece[0] + r * 8 * TMA_ROW);
                w[r][1] = *(const uint4 *) (weights + piece[1] + r * 8 * TMA_ROW);
            }
#pragma unroll
            for (int octet = 0; octet < 4; octet++) {
#pragma unroll
                for (int r = 0; r < 2; r++) widen_octet<1>(w[r], octet, r, a);
            }
            uint64_t b[2] = {wgmma_descriptor(weights + W_BYTES),
                             wgmma_descriptor(weights + W_BYTES + S::HALF_BYTES)};
            float acc[N / 2];
            wgmma_fence(acc);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int s = 0; s < 8; s++) wgmma_step(acc, a[s], b[s / 4] + s % 4 * 2, s > 0);
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            wgmma_fence(acc);
            if (lane == 0) bar_arrive(&empty[at.stage]);
#pragma unroll
            for (int i = 0; i < N / 2; i++) total[i] = fmaf(acc[i], scale, total[i]);
        }
        if (begin == tile * c.blocks && stop == (tile + 1) * c.blocks) store<N>(c, tile, total);
        else join<N>(c, tile, total);
    }
}

#endif

template <int N>
static __global__ void __launch_bounds__(SKINNY_THREADS, 1)
skinny_product(const __grid_constant__ struct skinny_call c)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    using S = skinny_shape<N>;
    extern __shared__ char dynamic[];
    __shared__ uint64_t full[S::STAGES], empty[S::STAGES];
    char *shared = wgmma_shared(dynamic);
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::STAGES; i++) {
            bar_init(&full[i], 1);
            bar_init(&empty[i], CONSUMERS / WARP);
        }
        bar_init_end();
    }
    __syncthreads();
    overlap_next();
    if (threadIdx.x < CONSUMERS) {
        overlap_wait();
        consume<N>(c, shared, full, empty);
    } else if (threadIdx.x == CONSUMERS) {
        produce<N>(c, shared, full, empty); // which waits, too
    }
#else
    __trap();
#endif
}

template <int N>
static void launch(struct device *d, struct skinny_call &c, const struct mat *w, const void *x,
                   size_t x_pitch)
{
    using S = skinny_shape<N>;
    struct tma_tensor weights = {w->rows, (uint64_t) c.blocks * SCALE_BLOCK, w->n, 1, 0, TILE_N};
    struct tma_tensor rows = {x, x_pitch * 2, c.n_rows, 1, 0, N};
    c.w = tma_map(d, &weights);
    c.x = tma_map(d, &rows);
    int shares = (int) smaller(ceil_div((uint64_t) c.units, S::SHARE_MIN), (uint64_t) d->n_sm);
    check(shares * 2 * S::FLOATS <= CUDA_SPLIT_BLOCKS * CUDA_TILE_FLOATS, "%d parts", shares * 2);
    device_allow(d, (const void *) skinny_product<N>, S::BYTES, "gemm");
    overlap_launch(d, "gemm", true, skinny_product<N>, dim3((unsigned) shares), SKINNY_THREADS,
                   S::BYTES, c);
}

void skinny_gemm(struct device *d, const struct mat *w, const void *x, size_t x_pitch, int n_rows,
                 float *out, size_t out_stride)
{
    struct skinny_call c = {};
    int tiles = (int) ceil_div((uint64_t) (w->row_phase + w->n), TILE_N);
    c.scales = w->scales;
    c.nans = w->nans;
    c.n = w->n;
    c.row_phase = w->row_phase;
    c.n_rows = n_rows;
    c.blocks = mat_blocks(w->col_phase, w->k);
    c.units = tiles * c.blocks;
    c.out = out;
    c.out_stride = out_stride;
    c.partial = d->scratch.partial;
    c.counters = d->scratch.counters;
    check(tiles <= CUDA_COUNTERS && c.units <= INT32_MAX / (d->n_sm + 1), "%d tiles", tiles);
    if (n_rows <= 16) launch<16>(d, c, w, x, x_pitch);
    else if (n_rows <= 32) launch<32>(d, c, w, x, x_pitch);
    else launch<64>(d, c, w, x, x_pitch);
}
