// The work of a product is its tiles of 128 outputs times the blocks of 128 inputs of each; blocks
// of threads, one a multiprocessor, take equal shares of that list, so that a share may begin and
// end inside a tile. Whoever ends a tile last adds the parts that its shares left, in their order.
//
// In a block of threads one warp brings weights, which it begins before the kernel in front has
// ended; one, or four that round them on their way, bring rows; two warpgroups multiply. They widen
// a stage's weights while the tensor cores work on those of the stage before.
#include "kernels/cuda/skinny.cuh"

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/skinny_rows.cuh"
#include "kernels/cuda/tma.cuh"
#include "kernels/cuda/wgmma.cuh"

enum {
    SKINNY_ROWS_MAX = 64,
    // So few rows with fewer weights are left to a kernel whose blocks find room beside others and
    // which takes two matrices at once.
    SKINNY_FEW = 16,
    SKINNY_LARGE = 48000000,
    CONSUMERS = 256,              // threads that multiply
    ROUNDERS = 4,                 // warps that round rows
    TILE_N = SCALE_BLOCK,         // outputs
    W_BYTES = TILE_N * TMA_ROW,   // of a stage
    STAGED_BYTES = 212 * 1024,
    // Stages of weights asked for at once. More keep memory no busier, but what is asked for after
    // them (rows, parts) waits behind them.
    FLIGHT = 3,
    WHOLE_UNITS = 2,  // so much longer a share may be for leaving one part, not two
};

struct skinny_call {
    CUtensorMap w, x; // x: rows in bf16, unless the product rounds them
    struct gemm_rows rows;
    const float *scales;
    const uint8_t *nans;
    int n, row_phase, n_rows, blocks, units;
    float *out, *partial;
    size_t out_stride;
    int32_t *counters;
};

// N: rows of x. ROUNDS: they are f32.
template <int N, bool ROUNDS> struct skinny_shape {
    static constexpr int HALF_BYTES = N * TMA_ROW; // of a block's 128 inputs
    static constexpr int X_BYTES = 2 * HALF_BYTES;
    static constexpr int X_STAGES = N > 16 ? 4 : 8;
    // What is not needed for rows lets weights come while others compute.
    static constexpr int STAGES = (STAGED_BYTES - X_STAGES * X_BYTES) / W_BYTES;
    static constexpr int ROWS_AT = STAGES * W_BYTES;
    static constexpr int BYTES = ROWS_AT + X_STAGES * X_BYTES + 1024; // aligned to 1024
    static constexpr int THREADS = CONSUMERS + WARP + (ROUNDS ? ROUNDERS : 1) * WARP;
    // A block of stream_rows has to find registers beside this one: at most 128 a thread here.
    static constexpr int BOUND = ROUNDS ? THREADS : 512;
    static constexpr int PART = N / 8 * CONSUMERS;            // float4 of a part
    static constexpr int BESIDE = N > 32 ? 2 : 128 / N;       // parts that are read at once
    static constexpr int SHARE_MIN = N > 8 ? N / 8 : 1; // units worth a block of threads
    static_assert(FLIGHT < STAGES, "what has landed is still known");
};

// What the threads of a block meet at: a stage's weights or rows have come, all have read them.
template <typename S> struct skinny_bars {
    uint64_t weights[S::STAGES], weights_read[S::STAGES];
    uint64_t rows[S::X_STAGES], rows_read[S::X_STAGES];
};

bool skinny_takes(const struct device *d, const struct mat *w, int n_rows)
{
    bool large = (int64_t) w->n * w->k >= SKINNY_LARGE;
    return d->hopper && w->nans != nullptr && n_rows <= SKINNY_ROWS_MAX &&
           (n_rows > SKINNY_FEW || large);
}

// --- the product

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

// Weights are read once: they leave the second level cache first.
template <typename S>
static __device__ __forceinline__ void bring_weights(const struct skinny_call &c, char *shared,
                                                     skinny_bars<S> &bars)
{
    struct ring<S::STAGES> at, landed;
    int begin = share_begin(blockIdx.x, c.units, gridDim.x);
    int end = share_begin(blockIdx.x + 1, c.units, gridDim.x);
    uint64_t once = read_once();
    for (int unit = begin; unit < end; unit++, at.next()) {
        bar_wait(&bars.weights_read[at.stage], at.parity ^ 1);
        if (unit >= begin + FLIGHT) {
            bar_wait(&bars.weights[landed.stage], landed.parity);
            landed.next();
        }
        bar_expect(&bars.weights[at.stage], W_BYTES);
        tma_load(shared + at.stage * W_BYTES, &c.w, unit % c.blocks * TMA_ROW,
                 unit / c.blocks * TILE_N - c.row_phase, 0, &bars.weights[at.stage], once);
    }
}

template <typename S>
static __device__ __forceinline__ void bring_rows(const struct skinny_call &c, char *shared,
                                                  skinny_bars<S> &bars)
{
    struct ring<S::X_STAGES> at;
    int begin = share_begin(blockIdx.x, c.units, gridDim.x);
    int end = share_begin(blockIdx.x + 1, c.units, gridDim.x);
    overlap_wait();
    for (int unit = begin; unit < end; unit++, at.next()) {
        uint64_t *bar = &bars.rows[at.stage];
        char *to = shared + S::ROWS_AT + at.stage * S::X_BYTES;
        int byte = unit % c.blocks * 2 * TMA_ROW;
        bar_wait(&bars.rows_read[at.stage], at.parity ^ 1);
        bar_expect(bar, S::X_BYTES);
        tma_load(to, &c.x, byte, 0, 0, bar);
        tma_load(to + S::HALF_BYTES, &c.x, byte + TMA_ROW, 0, 0, bar);
    }
}

// The same for rows of f32, each warp every ROUNDERS-th unit. Rows beyond the last are left as they
// are: no sum but their own sees them.
template <typename S, int N>
static __device__ __forceinline__ void round_rows(const struct skinny_call &c, char *shared,
                                                  skinny_bars<S> &bars)
{
    struct ring<S::X_STAGES> at;
    int warp = threadIdx.x / WARP - CONSUMERS / WARP - 1, lane = threadIdx.x % WARP;
    int unit = share_begin(blockIdx.x, c.units, gridDim.x) + warp;
    int end = share_begin(blockIdx.x + 1, c.units, gridDim.x);
    int t = lane / 8, step = lane % 8, piece = step % 4 * 2;
    char *base = shared + S::ROWS_AT + step / 4 * S::HALF_BYTES + t * 4;
    float4 v[N];
    auto load = [&](int from) {
        int k = from % c.blocks * SCALE_BLOCK + lane * 4 - c.rows.phases[0];
#pragma unroll
        for (int row = 0; row < N; row++) {
            if (row >= c.n_rows) break;
            v[row] = four_inputs<true>(c.rows.x + row * c.rows.x_stride, k, c.rows.k);
        }
    };
    overlap_wait();
    if (unit < end) load(unit);
    for (int i = 0; i < warp; i++) at.next();
    for (; unit < end; unit += ROUNDERS) {
        char *to = base + at.stage * S::X_BYTES;
        bar_wait(&bars.rows_read[at.stage], at.parity ^ 1);
#pragma unroll
        for (int row = 0; row < N; row++, to += TMA_ROW) {
            if (row >= c.n_rows) break;
            *(uint32_t *) (to + (piece ^ row % 8) * 16) = pack_bf16(v[row].x, v[row].z);
            *(uint32_t *) (to + ((piece + 1) ^ row % 8) * 16) = pack_bf16(v[row].y, v[row].w);
        }
        if (unit + ROUNDERS < end) load(unit + ROUNDERS);
        stored_for_engines();
        __syncwarp();
        if (lane == 0) bar_arrive(&bars.rows[at.stage]);
        for (int i = 0; i < ROUNDERS; i++) at.next();
    }
}

// A tile of outputs as a thread of those that multiply sees it: its rows of weights are g and g + 8
// of its warp's 16; register i of N / 2 is row (i / 4 * 8 + t * 2 + i % 2) of x and output
// g + i % 4 / 2 * 8.
struct skinny_tile {
    int at;
    bool nan[2];
};

static __device__ __forceinline__ int output_of(const struct skinny_call &c, int tile, int half)
{
    int row = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4 + half * 8;
    return tile * TILE_N - c.row_phase + row;
}

template <int N>
static __device__ __forceinline__ void store(const struct skinny_call &c,
                                             const struct skinny_tile &tile,
                                             const float (&sum)[N / 2])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int n = output_of(c, tile.at, half);
        if (n < 0 || n >= c.n) continue;
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
            int row = i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
            float value = tile.nan[half] ? NAN : sum[i / 2 * 4 + half * 2 + i % 2];
            if (row < c.n_rows) c.out[(size_t) row * c.out_stride + n] = value;
        }
    }
}

// sum = the parts of a tile, in their order; part(p): where this thread's float4 of one begin. OWN:
// `sum` is the part `mine`, which is not read.
template <typename S, int N, bool OWN, typename PART>
static __device__ __forceinline__ void add_parts(int parts, int mine, const PART &part,
                                                 float (&sum)[N / 2])
{
    float all[N / 2] = {};
    for (int p0 = 0; p0 < parts; p0 += S::BESIDE) {
        float4 v[S::BESIDE][N / 8];
#pragma unroll
        for (int p = 0; p < S::BESIDE; p++) {
            bool there = p0 + p < parts && !(OWN && p0 + p == mine);
            const float4 *from = part(p0 + p);
#pragma unroll
            for (int i = 0; i < N / 8; i++) {
                v[p][i] = there ? __ldcg(from + i * CONSUMERS) : float4 {};
            }
        }
#pragma unroll
        for (int p = 0; p < S::BESIDE; p++) {
            bool own = OWN && p0 + p == mine;
#pragma unroll
            for (int i = 0; i < N / 8; i++) {
                all[i * 4] += own ? sum[i * 4] : v[p][i].x;
                all[i * 4 + 1] += own ? sum[i * 4 + 1] : v[p][i].y;
                all[i * 4 + 2] += own ? sum[i * 4 + 2] : v[p][i].z;
                all[i * 4 + 3] += own ? sum[i * 4 + 3] : v[p][i].w;
            }
        }
    }
    memcpy(sum, all, sizeof all);
}

// Leaves a part of a tile; the last one to do so adds them all.
template <typename S, int N>
static __device__ __forceinline__ void join(const struct skinny_call &c,
                                            const struct skinny_tile &tile, float (&sum)[N / 2])
{
    __shared__ bool last;
    int shares = gridDim.x, first = share_of(tile.at * c.blocks, c.units, shares);
    int parts = share_of((tile.at + 1) * c.blocks - 1, c.units, shares) - first + 1;
    // A share has at most two parts: of the tile it begins in, and of the one it ends in. So each
    // of a tile but the first begins in it.
    int before = share_begin(first, c.units, shares) < tile.at * c.blocks;
    float4 *parts_at = (float4 *) c.partial + threadIdx.x + (size_t) first * 2 * S::PART;
    auto part = [&](int p) {
        return parts_at + (size_t) (p * 2 + (p == 0 ? before : 0)) * S::PART;
    };
    int index = (int) blockIdx.x - first;
    float4 *mine = part(index);
#pragma unroll
    for (int i = 0; i < N / 8; i++) {
        float4 v = make_float4(sum[i * 4], sum[i * 4 + 1], sum[i * 4 + 2], sum[i * 4 + 3]);
        __stcg(mine + i * CONSUMERS, v);
    }
    consumers_sync();
    if (threadIdx.x == 0) {
        int32_t *counter = &c.counters[tile.at], others;
        asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;"
                     : "=r"(others) : "l"(counter) : "memory");
        last = others == parts - 1;
        if (last) *counter = 0; // for the next launch
    }
    consumers_sync();
    if (!last) return;
    add_parts<S, N, (N > 32)>(parts, index, part, sum); // large parts: one less to read is felt
    store<N>(c, tile, sum);
}

// Two pairs of bf16 from four e4m3: of the even bytes and of the odd ones.
static __device__ __forceinline__ void widen_four(uint32_t bytes, uint32_t &even, uint32_t &odd)
{
    uint32_t low = ((bytes << 4) & 0x07f007f0u) | ((bytes << 8) & 0x80008000u);
    uint32_t high = ((bytes >> 4) & 0x07f007f0u) | (bytes & 0x80008000u);
    even = bf16_pair_times(low, E4M3_UP);
    odd = bf16_pair_times(high, E4M3_UP);
}

// The fragments of four of a stage's eight instructions.
static __device__ __forceinline__ void widen_half(const char *weights, int half,
                                                  uint32_t (&a)[4][4])
{
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const char *row = weights + (threadIdx.x / WARP * 16 + g) * TMA_ROW;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        uint4 w = *(const uint4 *) (row + r * 8 * TMA_ROW + ((t * 2 + half) ^ g) * 16);
        widen_four(w.x, a[0][r], a[0][r + 2]);
        widen_four(w.y, a[1][r], a[1][r + 2]);
        widen_four(w.z, a[2][r], a[2][r + 2]);
        widen_four(w.w, a[3][r], a[3][r + 2]);
    }
}

// Puts the half's products on the tensor cores, which read `a` until they are waited for.
template <int N>
static __device__ __forceinline__ void multiply_half(const char *rows, int half,
                                                     const uint32_t (&a)[4][4],
                                                     float (&sum)[N / 2])
{
    uint64_t b = wgmma_descriptor(rows + half * N * TMA_ROW);
    products_begin();
#pragma unroll
    for (int s = 0; s < 4; s++) wgmma_step(sum, a[s], b + s * 2, half + s > 0);
    products_commit();
}

// While one half of a stage is multiplied, the next one is widened.
template <typename S, int N>
static __device__ __forceinline__ void consume(const struct skinny_call &c, const char *shared,
                                               skinny_bars<S> &bars)
{
    struct ring<S::STAGES> at;
    struct ring<S::X_STAGES> x_at;
    int unit = share_begin(blockIdx.x, c.units, gridDim.x), begin, stop;
    int end = share_begin(blockIdx.x + 1, c.units, gridDim.x);
    struct skinny_tile tile;
    uint32_t first[4][4], second[4][4];
    float total[N / 2], sum[N / 2];
    auto enter = [&]() { // the tile of `unit`
        tile.at = unit / c.blocks;
        begin = unit;
        stop = (tile.at + 1) * c.blocks < end ? (tile.at + 1) * c.blocks : end;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int n = output_of(c, tile.at, half);
            tile.nan[half] = n >= 0 && n < c.n && __ldg(c.nans + n);
        }
#pragma unroll
        for (int i = 0; i < N / 2; i++) total[i] = 0;
    };
    enter();
    float next = __ldg(c.scales + unit); // (tiles, blocks): a unit each
    bar_wait(&bars.weights[0], 0);
    widen_half(shared, 0, first);
    overlap_wait();
    while (unit < end) {
        const char *rows = shared + S::ROWS_AT + x_at.stage * S::X_BYTES;
        float scale = next;
        bar_wait(&bars.rows[x_at.stage], x_at.parity);
        wgmma_fence(sum);
        multiply_half<N>(rows, 0, first, sum);
        widen_half(shared + at.stage * W_BYTES, 1, second);
        multiply_half<N>(rows, 1, second, sum);
        __syncwarp();
        if (threadIdx.x % WARP == 0) bar_arrive(&bars.weights_read[at.stage]);
        at.next();
        if (++unit < end) {
            next = __ldg(c.scales + unit);
            bar_wait(&bars.weights[at.stage], at.parity);
            products_wait<1>();
            widen_half(shared + at.stage * W_BYTES, 0, first);
        }
        products_wait<0>();
        wgmma_fence(sum);
        if (threadIdx.x % WARP == 0) bar_arrive(&bars.rows_read[x_at.stage]);
        x_at.next();
#pragma unroll
        for (int i = 0; i < N / 2; i++) total[i] = fmaf(sum[i], scale, total[i]);
        if (unit < stop) continue;
        bool whole = begin == tile.at * c.blocks && stop == begin + c.blocks;
        if (whole) store<N>(c, tile, total);
        else join<S, N>(c, tile, total);
        if (unit < end) enter();
    }
}

#endif

template <int N, bool ROUNDS>
static __global__ void __launch_bounds__(skinny_shape<N, ROUNDS>::BOUND, 1)
skinny_product(const __grid_constant__ struct skinny_call c)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    using S = skinny_shape<N, ROUNDS>;
    extern __shared__ char dynamic[];
    __shared__ skinny_bars<S> bars;
    char *shared = wgmma_shared(dynamic);
    int warp = threadIdx.x / WARP - CONSUMERS / WARP, lane = threadIdx.x % WARP;
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::STAGES; i++) {
            bar_init(&bars.weights[i], 1);
            bar_init(&bars.weights_read[i], CONSUMERS / WARP);
        }
        for (int i = 0; i < S::X_STAGES; i++) {
            bar_init(&bars.rows[i], 1);
            bar_init(&bars.rows_read[i], CONSUMERS / WARP);
        }
        bar_init_end();
    }
    __syncthreads();
    overlap_next();
    // Who writes or reads what other kernels do waits for them inside.
    if (warp < 0) {
        consume<S, N>(c, shared, bars);
    } else if (warp == 0) {
        if (lane == 0) bring_weights<S>(c, shared, bars);
    } else if constexpr (ROUNDS) {
        round_rows<S, N>(c, shared, bars);
    } else if (lane == 0) {
        bring_rows<S>(c, shared, bars);
    }
#else
    __trap();
#endif
}

// --- launches

template <int N, bool ROUNDS>
static void launch(struct device *d, struct skinny_call &c, const struct mat *w)
{
    using S = skinny_shape<N, ROUNDS>;
    struct tma_tensor weights = {w->rows, (uint64_t) c.blocks * SCALE_BLOCK, w->n, 1, 0, TILE_N};
    c.w = tma_map(d, &weights);
    int tiles = c.units / c.blocks;
    int shares = (int) smaller(ceil_div((uint64_t) c.units, S::SHARE_MIN), (uint64_t) d->n_sm);
    // Shares that end with their tile, where there are about as many.
    int whole = shares / tiles * tiles;
    if (whole > 0 && c.units / whole <= c.units / shares + WHOLE_UNITS) shares = whole;
    check(shares * 2 * S::PART * 4 <= CUDA_SPLIT_BLOCKS * CUDA_TILE_FLOATS, "%d shares", shares);
    device_allow(d, (const void *) skinny_product<N, ROUNDS>, S::BYTES, "gemm");
    overlap_launch(d, "gemm", true, skinny_product<N, ROUNDS>, dim3((unsigned) shares), S::THREADS,
                   S::BYTES, c);
}

void skinny_gemm(struct device *d, const struct mat *w, const struct gemm_rows *x, void *room,
                 float *out, size_t out_stride)
{
    struct skinny_call c = {};
    int tiles = (int) ceil_div((uint64_t) (w->row_phase + w->n), TILE_N), n_rows = x->n_rows;
    int n = n_rows <= 8 ? 8 : n_rows <= 16 ? 16 : n_rows <= 32 ? 32 : 64;
    c.rows = *x;
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
    bool rounds = n <= ROUNDING_ROWS && skinny_rows_by_vectors(x);
    if (!rounds) {
        struct tma_tensor rows = {room, cuda_input_pitch(x->k) * 2, n_rows, 1, 0, n};
        skinny_rows_stream(d, x, c.blocks, room);
        c.x = tma_map(d, &rows);
    }
    if (n == 8 && rounds) launch<8, true>(d, c, w);
    else if (n == 8) launch<8, false>(d, c, w);
    else if (n == 16 && rounds) launch<16, true>(d, c, w);
    else if (n == 16) launch<16, false>(d, c, w);
    else if (n == 32) launch<32, false>(d, c, w);
    else launch<64, false>(d, c, w);
}
