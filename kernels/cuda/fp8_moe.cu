// Weights are the 64 rows of wgmma's first operand, an expert's pairs the second: as many columns,
// in steps of 32, as the tile has pairs. A block of threads takes tiles of 256 rows of weights in
// turn. The producers' warpgroup brings weights by the copy engine; pairs' rows lie anywhere, so
// its threads copy those themselves, two stages behind which they tell that a stage is complete.
#include "kernels/cuda/fp8_moe.cuh"

enum {
    CONSUMERS = 256, // threads that multiply
    PRODUCERS = 128,
    MOE_THREADS = CONSUMERS + PRODUCERS,
    MOE_STAGES = 4,
    LAG = 2,                               // stages that are on their way
    BOX_ROWS = SCALE_BLOCK,                // of weights, two of them a tile
    BOX_BYTES = BOX_ROWS * TMA_ROW,
    TOKEN_BYTES = FP8_MOE_PAIRS * TMA_ROW,
    STAGE_BYTES = 2 * BOX_BYTES + TOKEN_BYTES,
    SCALE_BYTES = FP8_MOE_PAIRS * 4,
    ACT_PITCH = TMA_ROW + 16,              // of a tile's act in shared memory: no bank conflicts
    ROUND_TOKENS = PRODUCERS * 16 / TMA_ROW,
    ROUNDS = FP8_MOE_PAIRS / ROUND_TOKENS,
    ACT_AT = MOE_STAGES * (STAGE_BYTES + SCALE_BYTES),
    LARGEST_AT = ACT_AT + FP8_MOE_PAIRS * ACT_PITCH, // (warps, pairs) f32, then (pairs) of factors
    MOE_BYTES = LARGEST_AT + (CONSUMERS / WARP + 1) * FP8_MOE_PAIRS * 4 + 1024,
    PRODUCER_REGISTERS = 56,
    CONSUMER_REGISTERS = 224,
};

struct moe_call {
    CUtensorMap w[2];            // gate and up; or down in both
    const float *scales[2];
    size_t scales_step[2];       // bytes from one expert's scales to the next
    struct cuda_moe_scratch room;
    struct fp8_rows x, act;
    int row_phase, blocks, cols; // cols: tiles of a list's tile
    int first_block, row_blocks; // of down: where the panel begins, blocks of rows
    int panel;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

static __device__ __forceinline__ void consumers_sync()
{
    asm volatile("bar.sync 1, %0;" ::"n"((int) CONSUMERS) : "memory");
}

static __device__ __forceinline__ void copy_async_float(void *shared, const float *from)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_at(shared)), "l"(from)
                 : "memory");
}

// Which block of its matrix' rows a box of a tile is.
template <bool DOWN>
static __device__ __forceinline__ int row_block(const struct moe_call &c, int col, int box)
{
    return DOWN ? c.first_block + col * 2 + box : col;
}

static __device__ __forceinline__ void complete(uint64_t *full)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    bar_arrive(full);
}

template <bool DOWN>
static __device__ __forceinline__ void produce(const struct moe_call &c, char *shared,
                                               uint64_t *full, uint64_t *empty)
{
    int thread = threadIdx.x - CONSUMERS, piece = thread % 8, token0 = thread / 8;
    char *scales = shared + MOE_STAGES * STAGE_BYTES;
    // A round's tokens are ROUND_TOKENS apart: the swizzle is the same in all of them.
    int to = 2 * BOX_BYTES + token0 * TMA_ROW + (piece ^ token0 % 8) * 16;
    struct ring<MOE_STAGES> at, behind; // behind: whose copies end next
    int issued = 0, n = *c.room.n_tiles * c.cols;
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        struct cuda_tile tile = c.room.tiles[i / c.cols];
        int col = i % c.cols, rows = tile.n - token0;
        uint32_t from[ROUNDS];
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            int pair = tile.pair + token0 + r * ROUND_TOKENS;
            from[r] = 0;
            if (r * ROUND_TOKENS < rows) from[r] = DOWN ? pair : c.room.pair_row[pair];
        }
        int mine = tile.pair + thread; // whose scale this thread brings
        bool scaled = thread < tile.n;
        if (scaled && !DOWN) mine = c.room.pair_row[mine];
        for (int block = 0; block < c.blocks; block++, at.next()) {
            bar_wait(&empty[at.stage], at.parity ^ 1);
            char *stage = shared + at.stage * STAGE_BYTES;
            if (thread == 0) {
                bar_expect(&full[at.stage], 2 * BOX_BYTES);
#pragma unroll
                for (int box = 0; box < 2; box++) {
                    int row = row_block<DOWN>(c, col, box) * BOX_ROWS - c.row_phase;
                    tma_load(stage + box * BOX_BYTES, &c.w[box], block * TMA_ROW, row, tile.expert,
                             &full[at.stage]);
                }
            }
            const uint8_t *x = c.x.rows + block * TMA_ROW + piece * 16;
#pragma unroll
            for (int r = 0; r < ROUNDS; r++) {
                if (r * ROUND_TOKENS < rows) {
                    copy_async(stage + to + r * ROUND_TOKENS * TMA_ROW,
                               x + (size_t) from[r] * c.x.pitch);
                }
            }
            if (scaled) {
                copy_async_float(scales + at.stage * SCALE_BYTES + thread * 4,
                                 c.x.scales + block * c.x.scale_pitch + mine);
            }
            copy_commit();
            if (++issued <= LAG) continue;
            copy_wait<LAG>();
            complete(&full[behind.stage]);
            behind.next();
        }
    }
    copy_wait<0>();
    for (int i = 0; i < LAG && i < issued; i++, behind.next()) complete(&full[behind.stage]);
}

// What the products of one tile leave in a thread: of each box, row g + 8 * (i % 4 / 2) of its
// warp's 16 and pair i / 4 * 8 + t * 2 + i % 2.
template <int N> struct sums {
    float of[2][N / 2];
};

template <bool DOWN, int N>
static __device__ __forceinline__ void multiply(const struct moe_call &c, int expert, int col,
                                                const char *shared, uint64_t *full,
                                                uint64_t *empty, struct ring<MOE_STAGES> &at,
                                                struct sums<N> &sum)
{
    int lane = threadIdx.x % WARP, group = threadIdx.x / 128;
    const float *w_scales[2];
    float next[2];
#pragma unroll
    for (int box = 0; box < 2; box++) {
        int row = row_block<DOWN>(c, col, box);
        if (DOWN && row >= c.row_blocks) row = c.row_blocks - 1; // beyond the edge
        w_scales[box] = (const float *) ((const char *) c.scales[box] +
                                         c.scales_step[box] * expert) + (size_t) row * c.blocks;
        next[box] = __ldg(w_scales[box]);
#pragma unroll
        for (int i = 0; i < N / 2; i++) sum.of[box][i] = 0;
    }
    for (int block = 0; block < c.blocks; block++, at.next()) {
        float w_scale[2] = {next[0], next[1]};
        if (block + 1 < c.blocks) {
            next[0] = __ldg(w_scales[0] + block + 1);
            next[1] = __ldg(w_scales[1] + block + 1);
        }
        const char *stage = shared + at.stage * STAGE_BYTES;
        const float2 *x_scales = (const float2 *) (shared + MOE_STAGES * STAGE_BYTES +
                                                   at.stage * SCALE_BYTES) + lane % 4;
        bar_wait(&full[at.stage], at.parity);
#pragma unroll
        for (int box = 0; box < 2; box++) {
            float acc[N / 2];
            fp8_block(acc, stage + box * BOX_BYTES + group * 64 * TMA_ROW, stage + 2 * BOX_BYTES);
#pragma unroll
            for (int i = 0; i < N / 2; i += 4) {
                float2 x_scale = x_scales[i];
                float s0 = x_scale.x * w_scale[box], s1 = x_scale.y * w_scale[box];
                sum.of[box][i] = fmaf(acc[i], s0, sum.of[box][i]);
                sum.of[box][i + 1] = fmaf(acc[i + 1], s1, sum.of[box][i + 1]);
                sum.of[box][i + 2] = fmaf(acc[i + 2], s0, sum.of[box][i + 2]);
                sum.of[box][i + 3] = fmaf(acc[i + 3], s1, sum.of[box][i + 3]);
            }
        }
        __syncwarp();
        if (lane == 0) bar_arrive(&empty[at.stage]);
    }
}

// act of a tile's pairs and 128 channels, to memory by way of shared memory.
template <int N>
static __device__ __forceinline__ void store_act(const struct moe_call &c, struct cuda_tile tile,
                                                 int col, struct sums<N> &sum, char *shared)
{
    char *staged = shared + ACT_AT;
    float *largest = (float *) (shared + LARGEST_AT);
    float *factors = largest + CONSUMERS / WARP * FP8_MOE_PAIRS;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        float gate = sum.of[0][i];
        sum.of[0][i] = gate / (1.0f + __expf(-gate)) * sum.of[1][i];
    }
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        int at = i / 2 * 4 + i % 2;
        float most = fmaxf(fabsf(sum.of[0][at]), fabsf(sum.of[0][at + 2]));
#pragma unroll
        for (int lanes = 4; lanes < WARP; lanes *= 2) {
            most = fmaxf(most, __shfl_xor_sync(~0u, most, lanes));
        }
        if (g == 0) largest[warp * FP8_MOE_PAIRS + i / 2 * 8 + t * 2 + i % 2] = most;
    }
    consumers_sync();
    if (threadIdx.x < N) {
        float most = 0;
#pragma unroll
        for (int w = 0; w < CONSUMERS / WARP; w++) {
            most = fmaxf(most, largest[w * FP8_MOE_PAIRS + threadIdx.x]);
        }
        float scale = fp8_scale(most, &factors[threadIdx.x]);
        if ((int) threadIdx.x < tile.n) {
            c.act.scales[col * c.act.scale_pitch + tile.pair + threadIdx.x] = scale;
        }
    }
    consumers_sync();
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        int at = i / 2 * 4 + i % 2, pair = i / 2 * 8 + t * 2 + i % 2;
        float factor = factors[pair];
        uint32_t two = fp8_pack(sum.of[0][at] * factor, sum.of[0][at + 2] * factor, 0, 0);
        char *to = staged + pair * ACT_PITCH + warp * 16 + g;
        to[0] = (char) (two & 0xff);
        to[8] = (char) (two >> 8);
    }
    consumers_sync();
    for (int i = threadIdx.x; i < tile.n * (TMA_ROW / 16); i += CONSUMERS) {
        int pair = i / (TMA_ROW / 16), piece = i % (TMA_ROW / 16);
        *(uint4 *) (c.act.rows + (size_t) (tile.pair + pair) * c.act.pitch + col * TMA_ROW +
                    piece * 16) = *(const uint4 *) (staged + pair * ACT_PITCH + piece * 16);
    }
}

template <int N>
static __device__ __forceinline__ void store_outputs(const struct moe_call &c,
                                                     struct cuda_tile tile, int col,
                                                     const struct sums<N> &sum)
{
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float *out = c.room.outputs + (size_t) (tile.pair + lane % 4 * 2) * c.panel;
#pragma unroll
    for (int box = 0; box < 2; box++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int n = (col * 2 + box) * BOX_ROWS + warp * 16 + lane / 4 + half * 8;
            if (n >= c.panel) continue;
#pragma unroll
            for (int i = 0; i < N / 4; i++) {
                int pair = i / 2 * 8 + i % 2;
                if (pair + lane % 4 * 2 < tile.n) {
                    out[(size_t) pair * c.panel + n] = sum.of[box][i / 2 * 4 + half * 2 + i % 2];
                }
            }
        }
    }
}

template <bool DOWN, int N>
static __device__ __forceinline__ void take(const struct moe_call &c, struct cuda_tile tile,
                                            int col, char *shared, uint64_t *full,
                                            uint64_t *empty, struct ring<MOE_STAGES> &at)
{
    struct sums<N> sum;
    multiply<DOWN, N>(c, tile.expert, col, shared, full, empty, at, sum);
    if constexpr (DOWN) store_outputs<N>(c, tile, col, sum);
    else store_act<N>(c, tile, col, sum, shared);
}

template <bool DOWN>
static __device__ __forceinline__ void consume(const struct moe_call &c, char *shared,
                                               uint64_t *full, uint64_t *empty)
{
    struct ring<MOE_STAGES> at;
    int n = *c.room.n_tiles * c.cols;
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        struct cuda_tile tile = c.room.tiles[i / c.cols];
        int col = i % c.cols;
        if (tile.n <= 32) take<DOWN, 32>(c, tile, col, shared, full, empty, at);
        else if (tile.n <= 64) take<DOWN, 64>(c, tile, col, shared, full, empty, at);
        else if (tile.n <= 96) take<DOWN, 96>(c, tile, col, shared, full, empty, at);
        else take<DOWN, 128>(c, tile, col, shared, full, empty, at);
    }
}

#endif

template <bool DOWN>
static __global__ void __launch_bounds__(MOE_THREADS, 1)
fp8_experts(const __grid_constant__ struct moe_call c)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ char dynamic[];
    __shared__ uint64_t full[MOE_STAGES], empty[MOE_STAGES];
    char *shared = wgmma_shared(dynamic);
    if (threadIdx.x == 0) {
        for (int i = 0; i < MOE_STAGES; i++) {
            bar_init(&full[i], PRODUCERS + 1); // and the copy engine's
            bar_init(&empty[i], CONSUMERS / WARP);
        }
        bar_init_end();
    }
    __syncthreads();
    if (threadIdx.x >= CONSUMERS) {
        fewer_registers<PRODUCER_REGISTERS>();
        produce<DOWN>(c, shared, full, empty);
    } else {
        more_registers<CONSUMER_REGISTERS>();
        consume<DOWN>(c, shared, full, empty);
    }
#else
    __trap();
#endif
}

static CUtensorMap map_of(struct device *d, const struct mat_row *w, int n_experts)
{
    const struct mat *m = &w->first;
    uint64_t row_bytes = (uint64_t) mat_blocks(m->col_phase, m->k) * SCALE_BLOCK;
    struct tma_tensor t = {m->rows, row_bytes, m->n, n_experts, w->data_step, BOX_ROWS};
    return tma_map(d, &t);
}

template <bool DOWN> static void launch(struct device *d, const struct moe_call &c)
{
    device_allow(d, (const void *) fp8_experts<DOWN>, MOE_BYTES, "moe");
    fp8_experts<DOWN><<<d->n_sm, MOE_THREADS, MOE_BYTES, d->stream>>>(c);
    device_launched(d, "moe");
}

void fp8_gate_up(struct device *d, const struct mat_row *gate, const struct mat_row *up,
                 int n_experts, const struct cuda_moe_scratch *room, const struct fp8_rows *x,
                 const struct fp8_rows *act)
{
    struct moe_call c = {};
    const struct mat_row *both[2] = {gate, up};
    for (int i = 0; i < 2; i++) {
        c.w[i] = map_of(d, both[i], n_experts);
        c.scales[i] = both[i]->first.scales;
        c.scales_step[i] = both[i]->scales_step;
    }
    c.room = *room;
    c.x = *x;
    c.act = *act;
    c.row_phase = gate->first.row_phase;
    c.blocks = mat_blocks(gate->first.col_phase, gate->first.k);
    c.cols = mat_blocks(c.row_phase, gate->first.n);
    launch<false>(d, c);
}

void fp8_down(struct device *d, const struct mat_row *down, int n_experts,
              const struct cuda_moe_scratch *room, const struct fp8_rows *act, int n0, int panel)
{
    struct moe_call c = {};
    check(down->first.row_phase == 0 && n0 % SCALE_BLOCK == 0);
    for (int i = 0; i < 2; i++) {
        c.w[i] = map_of(d, down, n_experts);
        c.scales[i] = down->first.scales;
        c.scales_step[i] = down->scales_step;
    }
    c.room = *room;
    c.x = *act;
    c.first_block = n0 / SCALE_BLOCK;
    c.row_blocks = mat_blocks(0, down->first.n);
    c.blocks = mat_blocks(down->first.col_phase, down->first.k);
    c.cols = (int) ceil_div((uint64_t) panel, 2 * BOX_ROWS);
    c.panel = panel;
    launch<true>(d, c);
}
