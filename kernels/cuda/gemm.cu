// Matrix products: which kernel takes a call, and how it is cut into blocks.
#include "kernels/cuda/gemm.cuh"

#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/skinny.cuh"
#include "kernels/cuda/wgmma.cuh"

enum {
    FULL_BLOCKS = 264,    // enough without a split
    SPLIT_STEPS_MIN = 2,  // fewer steps of the inner loop are not worth a block
    ROUND_THREADS = 256,
    ROUNDING_ROWS = 16,   // up to so many tokens are rounded by the product itself
    NARROW_ROWS = 32,     // up to so many tokens mma.sync serves as well as wgmma
};

// --- rows in bf16

// Grid: columns, rows, heads.
static __global__ void round_rows(struct gemm_rows r, enum input_order order, __nv_bfloat16 *to,
                                  int pitch)
{
    overlap_next();
    overlap_wait();
    int row = blockIdx.y, head = blockIdx.z, at = blockIdx.x * ROUND_THREADS + threadIdx.x;
    int k = at / SCALE_BLOCK * SCALE_BLOCK + input_at(order, at % SCALE_BLOCK) - r.phases[head];
    if (at >= pitch) return;
    const float *from = r.x + (size_t) row * r.x_stride + (size_t) head * r.x_head_stride;
    to += ((size_t) head * r.n_rows + row) * pitch;
    to[at] = __float2bfloat16_rn(k >= 0 && k < r.k ? from[k] : 0.0f);
}

void gemm_round(struct device *d, const struct gemm_rows *r, int n_heads, enum input_order order,
                void *to)
{
    int pitch = (int) cuda_input_pitch(r->k);
    dim3 grid((unsigned) ceil_div(pitch, ROUND_THREADS), (unsigned) r->n_rows, (unsigned) n_heads);
    bool overlaps = d->hopper && order == INPUT_STREAMED;
    if (overlaps && !d->round_carved) {
        // A multiprocessor runs it beside skinny_product only with the same shares.
        device_note(d, cudaFuncSetAttribute(round_rows,
                                            cudaFuncAttributePreferredSharedMemoryCarveout,
                                            cudaSharedmemCarveoutMaxShared), "gemm");
        d->round_carved = true;
    }
    overlap_launch(d, "gemm", overlaps, round_rows, grid, ROUND_THREADS, 0, *r, order,
                   (__nv_bfloat16 *) to, pitch);
}

// --- kernels

struct call {
    int n_heads, splits, n_rows;
    const __nv_bfloat16 *x; // (n_heads, n_rows, x_pitch)
    size_t x_pitch;
    const float *exact_x;   // what the exact kernel reads instead
    size_t exact_stride, exact_head_stride;
    enum dtype dtype;
    int size;
    bool round;  // the exact kernel's x, to bf16
    bool rounds; // the kernel reads f32, and there is no x in bf16
    float *out;
    size_t out_stride, out_head_stride;
    float *partial;
    int32_t *counters;
};

static __device__ void store(const struct mat &m, const struct call &c, int head, int token, int n,
                             float value)
{
    if (token >= c.n_rows || n >= m.n) return;
    if (m.nans != nullptr && m.nans[n]) value = NAN;
    c.out[(size_t) token * c.out_stride + (size_t) head * c.out_head_stride + n] = value;
}

// The last block of a tile adds what all its splits left, in their order.
template <typename S>
static __device__ void finish_split(const struct mat &m, const struct call &c, int head, int split,
                                    int token0, int n0, const char *shared)
{
    constexpr int FLOATS = S::TOKENS * S::ROWS;
    static_assert(FLOATS <= CUDA_TILE_FLOATS || S::TOKENS == 128, "scratch has room");
    __shared__ bool last;
    int tile = ((int) head * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    float *parts = c.partial + (size_t) tile * c.splits * FLOATS;
    for (int i = threadIdx.x; i < FLOATS; i += MMA_THREADS) {
        parts[(size_t) split * FLOATS + i] = tile_sum<S>(shared, i / S::ROWS, i % S::ROWS);
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        int before = atomicAdd(&c.counters[tile], 1);
        last = before == c.splits - 1;
        if (last) c.counters[tile] = 0; // for the next launch
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (int i = threadIdx.x; i < FLOATS; i += MMA_THREADS) {
        float sum = 0;
        for (int s = 0; s < c.splits; s++) sum += __ldcg(parts + (size_t) s * FLOATS + i);
        store(m, c, head, token0 + i / S::ROWS, n0 + i % S::ROWS, sum);
    }
}

template <typename S>
static __device__ __forceinline__ void take_tokens(int32_t *token_rows, int token0, int n_rows)
{
    if (threadIdx.x < S::TOKENS) {
        int token = token0 + threadIdx.x;
        token_rows[threadIdx.x] = token < n_rows ? token : -1;
    }
    __syncthreads();
}

template <typename S>
static __device__ __forceinline__ void finish(const struct mat &m, const struct call &c, int head,
                                              int split, int token0, int n0, const char *shared)
{
    if (c.splits > 1) {
        finish_split<S>(m, c, head, split, token0, n0, shared);
        return;
    }
    for (int i = threadIdx.x; i < S::TOKENS * S::ROWS; i += MMA_THREADS) {
        store(m, c, head, token0 + i / S::ROWS, n0 + i % S::ROWS,
              tile_sum<S>(shared, i / S::ROWS, i % S::ROWS));
    }
}

// Where the head's rows are, as the kernel for rows of type X wants them.
static __device__ const __nv_bfloat16 *rows_of(const struct call &c, int head, __nv_bfloat16)
{
    return c.x + (size_t) head * c.n_rows * c.x_pitch;
}

static __device__ const float *rows_of(const struct call &c, int head, float)
{
    return c.exact_x + (size_t) head * c.exact_head_stride;
}

// Grid: tiles of tokens, tiles of outputs, heads times splits.
template <int NT, int WM, int SIZE, typename X>
static __global__ void __launch_bounds__(MMA_THREADS, 2)
mma_gemm(const __grid_constant__ struct mats w, const __grid_constant__ struct call c)
{
    using S = mma_shape<NT, WM, SIZE>;
    __shared__ __align__(16) char shared[S::BYTES];
    __shared__ int32_t token_rows[S::TOKENS];
    int head = blockIdx.z / c.splits, split = blockIdx.z % c.splits;
    struct mat m = w.at[head];
    int token0 = blockIdx.x * S::TOKENS, n0 = blockIdx.y * S::ROWS;
    take_tokens<S>(token_rows, token0, c.n_rows);
    int blocks = mat_blocks(m.col_phase, m.k);
    int begin = blocks * split / c.splits, end = blocks * (split + 1) / c.splits;
    mma_tile<NT, WM, SIZE>(m, n0 + (int) threadIdx.x / WARP % WM * 16, rows_of(c, head, X()),
                           sizeof(X) == sizeof(float) ? c.exact_stride : c.x_pitch, token_rows,
                           begin, end, shared);
    finish<S>(m, c, head, split, token0, n0, shared);
}

// The same on Hopper.
template <int N, int SIZE>
static __global__ void __launch_bounds__(MMA_THREADS, N > 32 ? 1 : 2)
wgmma_gemm(const __grid_constant__ struct mats w, const __grid_constant__ struct call c)
{
    using S = wgmma_shape<N, SIZE>;
    extern __shared__ char dynamic[];
    __shared__ int32_t token_rows[S::TOKENS];
    char *shared = wgmma_shared(dynamic);
    int head = blockIdx.z / c.splits, split = blockIdx.z % c.splits;
    struct mat m = w.at[head];
    int token0 = blockIdx.x * S::TOKENS, n0 = blockIdx.y * S::ROWS;
    take_tokens<S>(token_rows, token0, c.n_rows);
    int blocks = mat_blocks(m.col_phase, m.k);
    int begin = blocks * split / c.splits, end = blocks * (split + 1) / c.splits;
    wgmma_tile<N, SIZE>(m, n0 + (int) threadIdx.x / 128 * 64,
                        c.x + (size_t) head * c.n_rows * c.x_pitch, c.x_pitch, token_rows, begin,
                        end, shared);
    finish<S>(m, c, head, split, token0, n0, shared);
}

// Grid: tiles of outputs, tiles of rows, heads.
static __global__ void __launch_bounds__(EXACT_THREADS)
exact_gemm(const __grid_constant__ struct mats w, const __grid_constant__ struct call c)
{
    __shared__ int32_t rows[EXACT_ROWS];
    struct mat m = w.at[blockIdx.z];
    int row0 = blockIdx.y * EXACT_ROWS, n0 = blockIdx.x * EXACT_N;
    if (threadIdx.x < EXACT_ROWS) {
        int row = row0 + threadIdx.x;
        rows[threadIdx.x] = row < c.n_rows ? row : c.n_rows - 1;
    }
    __syncthreads();
    float out[4];
    exact_tile(m, c.dtype, c.size, n0, c.exact_x + blockIdx.z * c.exact_head_stride,
               c.exact_stride, rows, c.round, out);
    for (int i = 0; i < 4; i++) {
        store(m, c, blockIdx.z, row0 + threadIdx.x / 16, n0 + threadIdx.x % 16 * 4 + i, out[i]);
    }
}

// --- launches

// The grid, with inputs split where there are few tiles (`may`: there is room for the parts).
template <typename S>
static dim3 grid_of(const struct mat &m, struct call &c, bool may)
{
    dim3 grid((unsigned) ceil_div(c.n_rows, S::TOKENS), (unsigned) ceil_div(m.n, S::ROWS));
    int tiles = (int) grid.x * (int) grid.y * c.n_heads;
    int steps = (int) ceil_div(mat_blocks(m.col_phase, m.k), S::WK);
    int most = steps / SPLIT_STEPS_MIN;
    c.splits = tiles >= FULL_BLOCKS || !may ? 1 : FULL_BLOCKS / tiles; // in one wave
    if (c.splits > most) c.splits = most > 0 ? most : 1;
    grid.z = (unsigned) (c.n_heads * c.splits);
    return grid;
}

template <int NT, int SIZE>
static void launch(struct device *d, const struct mats &w, struct call &c)
{
    constexpr int WM = NT < 4 ? 4 : NT; // keeps the reads of x well below those of weights
    dim3 grid = grid_of<mma_shape<NT, WM, SIZE>>(w.at[0], c, true);
    if (!c.rounds) mma_gemm<NT, WM, SIZE, __nv_bfloat16><<<grid, MMA_THREADS, 0, d->stream>>>(w, c);
    if constexpr (NT * 8 <= ROUNDING_ROWS) {
        if (c.rounds) mma_gemm<NT, WM, SIZE, float><<<grid, MMA_THREADS, 0, d->stream>>>(w, c);
    }
}

template <int N, int SIZE>
static void launch_wide(struct device *d, const struct mats &w, struct call &c)
{
    using S = wgmma_shape<N, SIZE>;
    dim3 grid = grid_of<S>(w.at[0], c, N < 128);
    device_allow(d, (const void *) wgmma_gemm<N, SIZE>, S::BYTES, "gemm");
    wgmma_gemm<N, SIZE><<<grid, MMA_THREADS, S::BYTES, d->stream>>>(w, c);
}

static bool is_wide(const struct device *d, int n_rows)
{
    return d->hopper && n_rows > NARROW_ROWS;
}

template <int SIZE> static void launch_mma(struct device *d, const struct mats &w, struct call &c)
{
    bool wide = is_wide(d, c.n_rows);
    if (c.n_rows <= 8) launch<1, SIZE>(d, w, c);
    else if (c.n_rows <= 16) launch<2, SIZE>(d, w, c);
    else if (c.n_rows <= NARROW_ROWS) launch<4, SIZE>(d, w, c);
    else if (wide && c.n_rows <= 128) launch_wide<64, SIZE>(d, w, c);
    else if (wide) launch_wide<128, SIZE>(d, w, c);
    else launch<8, SIZE>(d, w, c);
}

// Whether the rows are few and lie as rounding_feed wants them.
static bool may_round(const struct call &c, int k, const int *phases)
{
    bool aligned = (uintptr_t) c.exact_x % 16 == 0 && c.exact_stride % 4 == 0 &&
                   c.exact_head_stride % 4 == 0 && k % 8 == 0;
    for (int h = 0; h < c.n_heads; h++) aligned = aligned && phases[h] == 0;
    return aligned && c.n_rows <= ROUNDING_ROWS;
}

// Many rows with one FP8 matrix, as many at once as the scratch holds, in even parts.
static void run_fp8(struct device *d, const struct mat *w, struct call c, struct gemm_rows rows)
{
    size_t pitch = (size_t) mat_blocks(w->col_phase, w->k) * SCALE_BLOCK;
    int parts = 1, n_rows = c.n_rows, most;
    do most = (int) ceil_div(ceil_div(n_rows, parts++), FP8_ROWS_ALIGN) * FP8_ROWS_ALIGN;
    while (fp8_bytes(pitch, most < n_rows ? most : n_rows) > d->scratch.input_bytes);
    for (int done = 0; done < n_rows; done += most) {
        rows.n_rows = n_rows - done < most ? n_rows - done : most;
        struct fp8_rows x = fp8_lay(d->scratch.input, pitch, rows.n_rows);
        fp8_quantise(d, &rows, &x);
        fp8_gemm(d, w, &x, rows.n_rows, c.out, c.out_stride);
        rows.x += (size_t) rows.n_rows * rows.x_stride;
        c.out += (size_t) rows.n_rows * c.out_stride;
    }
}

// Up to CUDA_HEADS_MAX heads.
static void run_heads(struct device *d, const struct matrix *w, struct call c,
                      struct gemm_rows rows)
{
    struct mats mats;
    for (int h = 0; h < c.n_heads; h++) {
        mats.at[h] = mat_view(&w[h]);
        rows.phases[h] = mats.at[h].col_phase;
        check(w[h].n == w->n && w[h].k == w->k && w[h].dtype == w->dtype, "heads differ");
    }
    int n_rows = c.n_rows;
    if (!gemm_tensor_cores(d, w->dtype)) {
        dim3 grid((unsigned) ceil_div(w->n, EXACT_N), (unsigned) ceil_div(n_rows, EXACT_ROWS),
                  (unsigned) c.n_heads);
        exact_gemm<<<grid, EXACT_THREADS, 0, d->stream>>>(mats, c);
        device_launched(d, "gemm");
        return;
    }
    if (c.n_heads == 1 && fp8_takes(d, w->dtype, n_rows)) {
        run_fp8(d, &mats.at[0], c, rows);
        return;
    }
    if (c.n_heads == 1 && skinny_takes(d, &mats.at[0], n_rows)) {
        size_t pitch = cuda_input_pitch(w->k);
        rows.n_rows = n_rows;
        gemm_round(d, &rows, 1, INPUT_STREAMED, d->scratch.input);
        skinny_gemm(d, &mats.at[0], d->scratch.input, pitch, n_rows, c.out, c.out_stride);
        return;
    }
    c.x_pitch = cuda_input_pitch(w->k);
    uint64_t row_bytes = c.x_pitch * sizeof(__nv_bfloat16) * (uint64_t) c.n_heads;
    int most = (int) (d->scratch.input_bytes / row_bytes);
    check(most >= 1, "k %d of %d heads is beyond the scratch", w->k, c.n_heads);
    for (int done = 0; done < n_rows; done += c.n_rows) {
        c.n_rows = n_rows - done < most ? n_rows - done : most;
        rows.n_rows = c.n_rows;
        c.rounds = may_round(c, w->k, rows.phases);
        enum input_order order = gemm_order(w->dtype, is_wide(d, c.n_rows));
        if (!c.rounds) gemm_round(d, &rows, c.n_heads, order, d->scratch.input);
        if (w->dtype == DTYPE_F8_E4M3) launch_mma<1>(d, mats, c);
        else launch_mma<2>(d, mats, c);
        device_launched(d, "gemm");
        rows.x += (size_t) c.n_rows * rows.x_stride;
        c.exact_x = rows.x;
        c.out += (size_t) c.n_rows * c.out_stride;
    }
}

void cuda_gemm_heads(struct device *d, const struct matrix *w, int n_heads, const float *x,
                     int x_stride, int x_head_stride, float *out, int out_stride,
                     int out_head_stride, int n_rows)
{
    if (n_rows == 0) return;
    for (int first = 0; first < n_heads; first += CUDA_HEADS_MAX) {
        struct call c = {};
        c.n_heads = n_heads - first < CUDA_HEADS_MAX ? n_heads - first : CUDA_HEADS_MAX;
        c.n_rows = n_rows;
        c.x = (const __nv_bfloat16 *) d->scratch.input;
        c.exact_x = x + (size_t) first * x_head_stride;
        c.exact_stride = (size_t) x_stride;
        c.exact_head_stride = (size_t) x_head_stride;
        c.dtype = w->dtype;
        c.size = (int) dtype_size(w->dtype);
        c.round = d->precision == PRECISION_BF16;
        c.out = out + (size_t) first * out_head_stride;
        c.out_stride = (size_t) out_stride;
        c.out_head_stride = (size_t) out_head_stride;
        c.partial = d->scratch.partial;
        c.counters = d->scratch.counters;
        struct gemm_rows rows = {};
        rows.x = c.exact_x;
        rows.x_stride = c.exact_stride;
        rows.x_head_stride = c.exact_head_stride;
        rows.k = w->k;
        run_heads(d, w + first, c, rows);
    }
}

void cuda_gemm(struct device *d, const struct matrix *w, const void *x, int x_stride, float *out,
               int out_stride, int n_rows)
{
    cuda_gemm_heads(d, w, 1, (const float *) x, x_stride, 0, out, out_stride, 0, n_rows);
}
