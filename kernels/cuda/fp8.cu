// Rows in FP8, and the product of many of them with one matrix. A block of threads: two warpgroups
// that multiply and one whose first thread brings tiles, some stages ahead, across the tiles of the
// output that the block takes in turn.
#include "kernels/cuda/fp8.cuh"

enum {
    QUANTISE_THREADS = 256,
    FP8_ROWS_MIN = 256,    // fewer tokens, and so decode steps, stay in bf16
    FP8_THREADS = 384,
    FP8_CONSUMERS = 256,   // of these
    TILE_N = SCALE_BLOCK,  // outputs
    PRODUCER_REGISTERS = 24,
    CONSUMER_REGISTERS = 240,
};

// --- rows

static size_t scale_pitch(int n_rows)
{
    return ceil_div((uint64_t) n_rows, FP8_ROWS_ALIGN) * FP8_ROWS_ALIGN;
}

uint64_t fp8_bytes(size_t pitch, int n_rows)
{
    return pitch * (uint64_t) n_rows + pitch / SCALE_BLOCK * scale_pitch(n_rows) * sizeof(float);
}

struct fp8_rows fp8_lay(void *base, size_t pitch, int n_rows)
{
    uint8_t *rows = (uint8_t *) base;
    return {rows, (float *) (rows + pitch * (size_t) n_rows), pitch, scale_pitch(n_rows)};
}

bool fp8_takes(const struct device *d, enum dtype dtype, int n_rows)
{
    return dtype == DTYPE_F8_E4M3 && d->precision == PRECISION_BF16 && n_rows >= FP8_ROWS_MIN;
}

// A warp a block of inputs. Grid: blocks of inputs by 8, rows.
static __global__ void __launch_bounds__(QUANTISE_THREADS)
quantise(struct gemm_rows r, struct fp8_rows to, bool aligned)
{
    int lane = threadIdx.x % WARP, row = blockIdx.y;
    size_t block = (size_t) blockIdx.x * (QUANTISE_THREADS / WARP) + threadIdx.x / WARP;
    if (block * SCALE_BLOCK >= to.pitch) return;
    int k = (int) block * SCALE_BLOCK + lane * 4 - r.phases[0];
    const float *from = r.x + (size_t) row * r.x_stride;
    float v[4];
    if (aligned && k + 3 < r.k) {
        float4 all = __ldg((const float4 *) (from + k));
        v[0] = all.x, v[1] = all.y, v[2] = all.z, v[3] = all.w;
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = k + i >= 0 && k + i < r.k ? from[k + i] : 0.0f;
    }
    float largest = fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3])));
#pragma unroll
    for (int i = WARP / 2; i > 0; i /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, i));
    }
    float factor, scale = fp8_scale(largest, &factor);
    ((uint32_t *) (to.rows + (size_t) row * to.pitch + block * SCALE_BLOCK))[lane] =
        fp8_pack(v[0] * factor, v[1] * factor, v[2] * factor, v[3] * factor);
    if (lane == 0) to.scales[block * to.scale_pitch + row] = scale;
}

void fp8_quantise(struct device *d, const struct gemm_rows *r, const struct fp8_rows *to)
{
    bool aligned = (uintptr_t) r->x % 16 == 0 && r->x_stride % 4 == 0 && r->phases[0] == 0;
    dim3 grid((unsigned) ceil_div(to->pitch / SCALE_BLOCK, QUANTISE_THREADS / WARP),
              (unsigned) r->n_rows);
    quantise<<<grid, QUANTISE_THREADS, 0, d->stream>>>(*r, *to, aligned);
    device_launched(d, "gemm");
}

// --- the product

struct fp8_call {
    CUtensorMap w, x;
    const float *w_scales, *x_scales;
    size_t x_scale_pitch, out_stride;
    int n, row_phase, n_rows, blocks;
    int token_tiles, tiles;
    bool fours; // outputs may be written four at a time
    float *out;
};

// HALVES: 64 tokens that a warpgroup takes, one after the other.
template <int HALVES> struct fp8_shape {
    static constexpr int STAGES = HALVES == 1 ? 6 : 4;
    static constexpr int TOKENS = 128 * HALVES;
    static constexpr int X_BYTES = TOKENS * TMA_ROW;
    static constexpr int W_BYTES = TILE_N * TMA_ROW;
    static constexpr int SCALE_BYTES = TOKENS * 4;
    static constexpr int STAGE_BYTES = X_BYTES + W_BYTES;
    static constexpr int BYTES = STAGES * (STAGE_BYTES + SCALE_BYTES) + 1024; // aligned to 1024
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <int HALVES>
static __device__ __forceinline__ void produce(const struct fp8_call &c, char *shared,
                                               uint64_t *full, uint64_t *empty)
{
    using S = fp8_shape<HALVES>;
    char *scales = shared + S::STAGES * S::STAGE_BYTES;
    struct ring<S::STAGES> at;
    for (int tile = blockIdx.x; tile < c.tiles; tile += gridDim.x) {
        int token0 = tile % c.token_tiles * S::TOKENS;
        int row0 = tile / c.token_tiles * TILE_N - c.row_phase;
        const float *from = c.x_scales + token0;
        for (int block = 0; block < c.blocks; block++, at.next()) {
            bar_wait(&empty[at.stage], at.parity ^ 1);
            bar_expect(&full[at.stage], S::STAGE_BYTES + S::SCALE_BYTES);
            char *to = shared + at.stage * S::STAGE_BYTES;
            tma_load(to, &c.x, block * TMA_ROW, token0, 0, &full[at.stage]);
            tma_load(to + S::X_BYTES, &c.w, block * TMA_ROW, row0, 0, &full[at.stage]);
            bulk_load(scales + at.stage * S::SCALE_BYTES, from + block * c.x_scale_pitch,
                      S::SCALE_BYTES, &full[at.stage]);
        }
    }
}

// A warpgroup's sums of a tile: the thread's first token, the tile's first output.
template <int HALVES>
static __device__ __forceinline__ void store(const struct fp8_call &c,
                                             const float (&total)[HALVES][64], int token, int n)
{
    bool whole = c.fours && n >= 0 && n + TILE_N <= c.n &&
                 token / 64 * 64 + HALVES * 64 <= c.n_rows; // for all of the warpgroup
    int first = n + fp8_fours_at();
#pragma unroll
    for (int i = 0; i < HALVES * 16; i++) {
        int h = i / 16, half = i / 8 % 2, row = token + h * 64 + half * 8;
        const float *of = &total[h][i % 8 * 8 + half * 2];
        float4 v = fp8_fours(make_float2(of[0], of[1]), make_float2(of[4], of[5]));
        if (!whole && row >= c.n_rows) continue;
        fp8_put(c.out + (size_t) row * c.out_stride, first + i % 8 * 16, c.n, whole, v);
    }
}

// The lane's scale of weights, of 32 blocks from `block` on of a tile: asked for 32 blocks ahead.
static __device__ __forceinline__ float scale_ahead(const struct fp8_call &c, int tile, int block)
{
    block += (int) threadIdx.x % WARP;
    if (tile >= c.tiles || block >= c.blocks) return 0;
    return __ldg(c.w_scales + (size_t) (tile / c.token_tiles) * c.blocks + block);
}

// Between the last sum of a block and the first product of the next one lies nothing that waits:
// then two warpgroups are enough to keep the tensor cores busy. So places are counted along, scales
// are there before, and whether the next stage is full was asked before the sums.
template <int HALVES>
static __device__ __forceinline__ void consume(const struct fp8_call &c, const char *shared,
                                               uint64_t *full, uint64_t *empty)
{
    using S = fp8_shape<HALVES>;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int group = __shfl_sync(~0u, warp / 4, 0);
    int local = group * HALVES * 64 + warp % 4 * 16 + lane / 4; // the thread's first token
    const char *scales = shared + S::STAGES * S::STAGE_BYTES + local * sizeof(float);
    uint32_t rows = (uint32_t) wgmma_descriptor(shared + group * HALVES * 64 * TMA_ROW);
    uint32_t weights = (uint32_t) wgmma_descriptor(shared + S::X_BYTES);
    uint32_t is_full = shared_at(full), is_empty = shared_at(empty);
    struct ring<S::STAGES> at;
    bool ready = false;
    float held = 0, ahead = scale_ahead(c, blockIdx.x, 0);
    for (int tile = blockIdx.x; tile < c.tiles; tile += gridDim.x) {
        float total[HALVES][64] = {};
        for (int block = 0; block < c.blocks; block++) {
            uint32_t stage = (uint32_t) at.stage * (S::STAGE_BYTES / DESCRIPTOR_BYTES);
            const float *x_scales = (const float *) (scales + at.stage * S::SCALE_BYTES);
            if (!ready) bar_wait_at(is_full + at.stage * 8, at.parity);
            float acc[64], s[HALVES][2];
            fp8_begin(acc, rows + stage, weights + stage);
            if (block % WARP == 0) {
                bool more = block + WARP < c.blocks;
                held = ahead;
                ahead = scale_ahead(c, more ? tile : tile + gridDim.x, more ? block + WARP : 0);
            }
            float w_scale = __shfl_sync(~0u, held, block % WARP);
#pragma unroll
            for (int i = 0; i < HALVES * 2; i++) s[i / 2][i % 2] = x_scales[i / 2 * 64 + i % 2 * 8];
#pragma unroll
            for (int h = 0; h < HALVES; h++) {
                fp8_end(acc);
                if (h == HALVES - 1) {
                    bar_arrive_at(is_empty + at.stage * 8, lane == 0);
                    at.next();
                    ready = bar_passed_at(is_full + at.stage * 8, at.parity);
                }
                float s0 = s[h][0] * w_scale, s1 = s[h][1] * w_scale;
#pragma unroll
                for (int i = 0; i < 64; i++) {
                    total[h][i] = fmaf(acc[i], i / 2 % 2 == 0 ? s0 : s1, total[h][i]);
                }
                if (h + 1 < HALVES) {
                    fp8_begin(acc, rows + stage + (h + 1) * 64 * TMA_ROW / DESCRIPTOR_BYTES,
                              weights + stage);
                }
            }
        }
        store<HALVES>(c, total, tile % c.token_tiles * S::TOKENS + local,
                      tile / c.token_tiles * TILE_N - c.row_phase);
    }
}

#endif

// Blocks take tiles in turn, all tokens of 128 outputs before the next.
template <int HALVES>
static __global__ void __launch_bounds__(FP8_THREADS, 1)
fp8_product(const __grid_constant__ struct fp8_call c)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    constexpr int STAGES = fp8_shape<HALVES>::STAGES;
    extern __shared__ char dynamic[];
    __shared__ uint64_t full[STAGES], empty[STAGES];
    char *shared = wgmma_shared(dynamic);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            bar_init(&full[i], 1);
            bar_init(&empty[i], FP8_CONSUMERS / WARP);
        }
        bar_init_end();
    }
    __syncthreads();
    if (threadIdx.x >= FP8_CONSUMERS) {
        fewer_registers<PRODUCER_REGISTERS>();
        if (threadIdx.x == FP8_CONSUMERS) produce<HALVES>(c, shared, full, empty);
    } else {
        more_registers<CONSUMER_REGISTERS>();
        consume<HALVES>(c, shared, full, empty);
    }
#else
    __trap();
#endif
}

template <int HALVES> static void launch(struct device *d, struct fp8_call &c,
                                         const struct mat *w, const struct fp8_rows *x)
{
    using S = fp8_shape<HALVES>;
    struct tma_tensor weights = {w->rows, (uint64_t) c.blocks * SCALE_BLOCK, w->n, 1, 0, TILE_N};
    struct tma_tensor rows = {x->rows, x->pitch, c.n_rows, 1, 0, S::TOKENS};
    c.w = tma_map(d, &weights);
    c.x = tma_map(d, &rows);
    c.token_tiles = (int) ceil_div((uint64_t) c.n_rows, S::TOKENS);
    c.tiles = c.token_tiles * (int) ceil_div((uint64_t) (c.row_phase + c.n), TILE_N);
    device_allow(d, (const void *) fp8_product<HALVES>, S::BYTES, "gemm");
    int blocks = c.tiles < d->n_sm ? c.tiles : d->n_sm;
    fp8_product<HALVES><<<blocks, FP8_THREADS, S::BYTES, d->stream>>>(c);
    device_launched(d, "gemm");
}

void fp8_gemm(struct device *d, const struct mat *w, const struct fp8_rows *x, int n_rows,
              float *out, size_t out_stride)
{
    if (!d->hopper) {
        fp8_mma_gemm(d, w, x, n_rows, out, out_stride);
        return;
    }
    struct fp8_call c = {};
    c.w_scales = w->scales;
    c.x_scales = x->scales;
    c.x_scale_pitch = x->scale_pitch;
    c.out = out;
    c.out_stride = out_stride;
    c.n = w->n;
    c.row_phase = w->row_phase;
    c.n_rows = n_rows;
    c.blocks = mat_blocks(w->col_phase, w->k);
    c.fours = fp8_by_fours(w, out, out_stride);
    // Waves of blocks in units of 128 tokens. Tiles of as many take an eighth longer for them: they
    // read weights twice as often.
    uint64_t wide = ceil_div((uint64_t) (c.row_phase + c.n), TILE_N), sm = (uint64_t) d->n_sm;
    uint64_t small = ceil_div(wide * ceil_div((uint64_t) n_rows, 128), sm);
    uint64_t large = ceil_div(wide * ceil_div((uint64_t) n_rows, 256), sm) * 2;
    if (small * 9 < large * 8) launch<1>(d, c, w, x);
    else launch<2>(d, c, w, x);
}
