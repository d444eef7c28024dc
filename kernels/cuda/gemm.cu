// Matrix products: which kernel takes a call, and how it is cut into blocks.
#include "kernels/cuda/gemm.cuh"

#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/mma_ring.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/skinny.cuh"
#include "kernels/cuda/wgmma.cuh"

enum {
    FULL_BLOCKS = 132,    // of threads, times those of a multiprocessor: enough without a split
    SPLIT_STEPS_MIN = 2,  // fewer steps of the inner loop are not worth a block
    ROUND_THREADS = 256,
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
    if (d->hopper && !d->round_carved) {
        // A multiprocessor runs it beside skinny_product only with the same shares.
        device_note(d, cudaFuncSetAttribute(round_rows,
                                            cudaFuncAttributePreferredSharedMemoryCarveout,
                                            cudaSharedmemCarveoutMaxShared), "gemm");
        d->round_carved = true;
    }
    overlap_launch(d, "gemm", true, round_rows, grid, ROUND_THREADS, 0, *r, order,
                   (__nv_bfloat16 *) to, pitch);
}

// --- kernels

// Matrices of the heads, equally far apart; or one matrix, and a second one of the same inputs.
struct heads {
    struct mat_row each;
    struct mat second;
};

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
    int second;  // the tile of outputs from which on they are those of a second matrix
    float *second_out;
    size_t second_stride;
    float *partial;
    int32_t *counters;
};

static __device__ __forceinline__ bool is_second(const struct call &c)
{
    return (int) blockIdx.y >= c.second;
}

static __device__ void store(const struct mat &m, const struct call &c, int head, int token, int n,
                             float value, bool nan)
{
    if (token >= c.n_rows || n >= m.n) return;
    if (m.nans != nullptr && nan) value = NAN;
    if (is_second(c)) c.second_out[(size_t) token * c.second_stride + n] = value;
    else c.out[(size_t) token * c.out_stride + (size_t) head * c.out_head_stride + n] = value;
}

// The last block of a tile adds what all its splits left, in their order.
template <typename S>
static __device__ void finish_split(const struct mat &m, const struct call &c, int head, int split,
                                    int token0, int n0, const char *shared, const uint8_t *nans)
{
    constexpr int FLOATS = S::TOKENS * S::ROWS;
    static_assert(FLOATS <= CUDA_TILE_FLOATS || S::TOKENS == 128, "scratch has room");
    __shared__ bool last;
    int tile = ((int) head * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    float *parts = c.partial + (size_t) tile * c.splits * FLOATS;
    int n = min(FLOATS, (c.n_rows - token0) * S::ROWS);
    for (int i = threadIdx.x; i < n; i += MMA_THREADS) {
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
    for (int i = threadIdx.x; i < n; i += MMA_THREADS) {
        float sum = 0;
#pragma unroll 8
        for (int s = 0; s < c.splits; s++) sum += __ldcg(parts + (size_t) s * FLOATS + i);
        store(m, c, head, token0 + i / S::ROWS, n0 + i % S::ROWS, sum, nans[i % S::ROWS]);
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
                                              int split, int token0, int n0, const char *shared,
                                              const uint8_t *nans)
{
    if (c.splits > 1) {
        finish_split<S>(m, c, head, split, token0, n0, shared, nans);
        return;
    }
    int n = min(S::TOKENS, c.n_rows - token0) * S::ROWS;
    for (int i = threadIdx.x; i < n; i += MMA_THREADS) {
        store(m, c, head, token0 + i / S::ROWS, n0 + i % S::ROWS,
              tile_sum<S>(shared, i / S::ROWS, i % S::ROWS), nans[i % S::ROWS]);
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
static __global__ void
__launch_bounds__(MMA_THREADS, mma_shape<NT, WM, SIZE, sizeof(X)>::BLOCKS)
mma_gemm(const __grid_constant__ struct heads w, const __grid_constant__ struct call c)
{
    using S = mma_shape<NT, WM, SIZE, sizeof(X)>;
    __shared__ __align__(16) char shared[S::RING ? 16 : S::BYTES];
    extern __shared__ __align__(16) char ring[];
    __shared__ int32_t token_rows[S::TOKENS];
    __shared__ __align__(16) uint8_t nans[S::ROWS];
    int head = blockIdx.z / c.splits, split = blockIdx.z % c.splits;
    struct mat m = is_second(c) ? w.second : mat_of_row(w.each, head);
    int token0 = blockIdx.x * S::TOKENS;
    int n0 = ((int) blockIdx.y - (is_second(c) ? c.second : 0)) * S::ROWS;
    overlap_next();
    take_tokens<S>(token_rows, token0, c.n_rows);
    take_nans<S::ROWS>(nans, m, n0);
    int blocks = mat_blocks(m.col_phase, m.k);
    int begin = blocks * split / c.splits, end = blocks * (split + 1) / c.splits;
    int row = n0 + (int) threadIdx.x / WARP % WM * 16;
    size_t x_pitch = sizeof(X) == sizeof(float) ? c.exact_stride : c.x_pitch;
    if constexpr (S::RING) {
        ring_tile<WM>(m, row, rows_of(c, head, X()), x_pitch, token_rows, c.n_rows, begin, end,
                      ring, true, [] { overlap_wait(); });
    } else {
        mma_tile<NT, WM, SIZE>(m, row, rows_of(c, head, X()), x_pitch, token_rows, begin, end,
                               shared, [] { overlap_wait(); });
    }
    finish<S>(m, c, head, split, token0, n0, S::RING ? ring : shared, nans);
}

// The same on Hopper.
template <int N, int SIZE>
static __global__ void __launch_bounds__(MMA_THREADS, N > 32 ? 1 : 2)
wgmma_gemm(const __grid_constant__ struct heads w, const __grid_constant__ struct call c)
{
    using S = wgmma_shape<N, SIZE>;
    extern __shared__ char dynamic[];
    __shared__ int32_t token_rows[S::TOKENS];
    __shared__ __align__(16) uint8_t nans[S::ROWS];
    char *shared = wgmma_shared(dynamic);
    int head = blockIdx.z / c.splits, split = blockIdx.z % c.splits;
    struct mat m = mat_of_row(w.each, head);
    int token0 = blockIdx.x * S::TOKENS, n0 = blockIdx.y * S::ROWS;
    overlap_next();
    take_tokens<S>(token_rows, token0, c.n_rows);
    take_nans<S::ROWS>(nans, m, n0);
    int blocks = mat_blocks(m.col_phase, m.k);
    int begin = blocks * split / c.splits, end = blocks * (split + 1) / c.splits;
    overlap_wait();
    wgmma_tile<N, SIZE>(m, n0 + (int) threadIdx.x / 128 * 64,
                        c.x + (size_t) head * c.n_rows * c.x_pitch, c.x_pitch, token_rows, begin,
                        end, shared);
    finish<S>(m, c, head, split, token0, n0, shared, nans);
}

// Grid: tiles of outputs, tiles of rows, heads.
static __global__ void __launch_bounds__(EXACT_THREADS)
exact_gemm(const __grid_constant__ struct heads w, const __grid_constant__ struct call c)
{
    __shared__ int32_t rows[EXACT_ROWS];
    struct mat m = mat_of_row(w.each, blockIdx.z);
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
        int n = n0 + threadIdx.x % 16 * 4 + i;
        bool nan = m.nans != nullptr && n < m.n && m.nans[n];
        store(m, c, blockIdx.z, row0 + threadIdx.x / 16, n, out[i], nan);
    }
}

// --- launches

// The grid, with inputs split where there are few tiles (`may`: there is room for the parts).
template <typename S>
static dim3 grid_of(const struct heads &w, struct call &c, bool may, int full)
{
    const struct mat &m = w.each.first;
    dim3 grid((unsigned) ceil_div(c.n_rows, S::TOKENS), (unsigned) ceil_div(m.n, S::ROWS));
    if (c.second_out != NULL) {
        c.second = (int) grid.y;
        grid.y += (unsigned) ceil_div(w.second.n, S::ROWS);
    }
    int tiles = (int) grid.x * (int) grid.y * c.n_heads;
    int steps = (int) ceil_div(mat_blocks(m.col_phase, m.k), S::WK);
    int most = steps / SPLIT_STEPS_MIN;
    c.splits = tiles >= full || !may ? 1 : full / tiles; // in one wave
    if (c.splits > most) c.splits = most > 0 ? most : 1;
    grid.z = (unsigned) (c.n_heads * c.splits);
    return grid;
}

template <int NT, int WM, int SIZE, typename X>
static void launch_as(struct device *d, const struct heads &w, struct call &c)
{
    using S = mma_shape<NT, WM, SIZE, sizeof(X)>;
    using R = mma_ring<S, sizeof(X)>;
    dim3 grid = grid_of<S>(w, c, true, FULL_BLOCKS * S::BLOCKS);
    int bytes = S::RING ? R::bytes(c.n_rows) : 0;
    if (S::RING) {
        static_assert(!S::RING || R::bytes(8) <= RING_BYTES_MAX, "any number of rows fits");
        device_allow(d, (const void *) mma_gemm<NT, WM, SIZE, X>, R::bytes(8), "gemm");
    }
    overlap_launch(d, "gemm", true, mma_gemm<NT, WM, SIZE, X>, grid, MMA_THREADS, (size_t) bytes, w,
                   c);
}

template <int NT, int WM, int SIZE>
static void launch_rows(struct device *d, const struct heads &w, struct call &c)
{
    if constexpr (NT * 8 <= ROUNDING_ROWS) {
        if (c.rounds) return launch_as<NT, WM, SIZE, float>(d, w, c);
    }
    launch_as<NT, WM, SIZE, __nv_bfloat16>(d, w, c);
}

template <int NT, int SIZE>
static void launch(struct device *d, const struct heads &w, struct call &c)
{
    constexpr int WM = NT < 4 ? 4 : NT; // keeps the reads of x well below those of weights
    // One block of inputs has nothing for warps beside each other over inputs.
    bool single = NT < 4 && mat_blocks(w.each.first.col_phase, w.each.first.k) == 1;
    if (single) launch_rows<NT, NT < 4 ? 8 : WM, SIZE>(d, w, c);
    else launch_rows<NT, WM, SIZE>(d, w, c);
}

template <int N, int SIZE>
static void launch_wide(struct device *d, const struct heads &w, struct call &c)
{
    using S = wgmma_shape<N, SIZE>;
    dim3 grid = grid_of<S>(w, c, N < 128, FULL_BLOCKS * 2);
    device_allow(d, (const void *) wgmma_gemm<N, SIZE>, S::BYTES, "gemm");
    overlap_launch(d, "gemm", true, wgmma_gemm<N, SIZE>, grid, MMA_THREADS, S::BYTES, w, c);
}

static bool is_wide(const struct device *d, int n_rows)
{
    return d->hopper && n_rows > NARROW_ROWS;
}

template <int SIZE> static void launch_mma(struct device *d, const struct heads &w, struct call &c)
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
static bool may_round(const struct call &c, const struct mat &m)
{
    return (uintptr_t) c.exact_x % 16 == 0 && c.exact_stride % 4 == 0 &&
           c.exact_head_stride % 4 == 0 && m.k % 8 == 0 && m.col_phase == 0 &&
           c.n_rows <= ROUNDING_ROWS;
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

// Heads whose matrices are equally far apart; up to CUDA_HEADS_MAX unless they are rounded by the
// product.
static void run_heads(struct device *d, const struct matrix *w, struct call c,
                      struct gemm_rows rows)
{
    struct heads heads = {};
    heads.each = mat_view_row(w, sizeof *w, c.n_heads);
    const struct mat &first = heads.each.first;
    int n_rows = c.n_rows;
    if (!gemm_tensor_cores(d, w->dtype)) {
        dim3 grid((unsigned) ceil_div(w->n, EXACT_N), (unsigned) ceil_div(n_rows, EXACT_ROWS),
                  (unsigned) c.n_heads);
        exact_gemm<<<grid, EXACT_THREADS, 0, d->stream>>>(heads, c);
        device_launched(d, "gemm");
        return;
    }
    for (int h = 0; h < c.n_heads && h < CUDA_HEADS_MAX; h++) rows.phases[h] = first.col_phase;
    if (c.n_heads == 1 && fp8_takes(d, w->dtype, n_rows)) {
        run_fp8(d, &first, c, rows);
        return;
    }
    if (c.n_heads == 1 && skinny_takes(d, &first, n_rows)) {
        rows.n_rows = n_rows;
        skinny_gemm(d, &first, &rows, d->scratch.input, c.out, c.out_stride);
        return;
    }
    c.x_pitch = cuda_input_pitch(w->k);
    c.rounds = may_round(c, first);
    uint64_t row_bytes = c.x_pitch * sizeof(__nv_bfloat16) * (uint64_t) c.n_heads;
    int most = c.rounds ? n_rows : (int) (d->scratch.input_bytes / row_bytes);
    check(most >= 1, "k %d of %d heads is beyond the scratch", w->k, c.n_heads);
    for (int done = 0; done < n_rows; done += c.n_rows) {
        c.n_rows = n_rows - done < most ? n_rows - done : most;
        c.rounds = may_round(c, first);
        rows.n_rows = c.n_rows;
        enum input_order order = gemm_order(w->dtype, is_wide(d, c.n_rows));
        if (!c.rounds) gemm_round(d, &rows, c.n_heads, order, d->scratch.input);
        if (w->dtype == DTYPE_F8_E4M3) launch_mma<1>(d, heads, c);
        else launch_mma<2>(d, heads, c);
        rows.x += (size_t) c.n_rows * rows.x_stride;
        c.exact_x = rows.x;
        c.out += (size_t) c.n_rows * c.out_stride;
    }
}

// How many of n matrices, the first and those behind it, are equally far apart.
static int equally_far(const struct matrix *w, int n)
{
    int i = 1;
    for (; i < n; i++) {
        check(w[i].n == w->n && w[i].k == w->k && w[i].dtype == w->dtype, "heads differ");
        ptrdiff_t data = (const char *) w[i].data - (const char *) w[i - 1].data;
        bool even = data == (const char *) w[1].data - (const char *) w->data &&
                    w[i].row_phase == w->row_phase && w[i].col_phase == w->col_phase;
        bool scales = w->scales == NULL || w[i].scales - w[i - 1].scales == w[1].scales - w->scales;
        if (!even || !scales || data < 0) break;
    }
    return i;
}

static struct call call_of(struct device *d, const struct matrix *w, const float *x, int x_stride,
                           float *out, int out_stride, int n_rows)
{
    struct call c = {};
    c.n_heads = 1;
    c.n_rows = n_rows;
    c.second = INT_MAX;
    c.x = (const __nv_bfloat16 *) d->scratch.input;
    c.exact_x = x;
    c.exact_stride = (size_t) x_stride;
    c.dtype = w->dtype;
    c.size = (int) dtype_size(w->dtype);
    c.round = d->precision == PRECISION_BF16;
    c.out = out;
    c.out_stride = (size_t) out_stride;
    c.partial = d->scratch.partial;
    c.counters = d->scratch.counters;
    return c;
}

void cuda_gemm_heads(struct device *d, const struct matrix *w, int n_heads, const float *x,
                     int x_stride, int x_head_stride, float *out, int out_stride,
                     int out_head_stride, int n_rows)
{
    if (n_rows == 0) return;
    for (int first = 0, n; first < n_heads; first += n) {
        const struct matrix *at = w + first;
        struct call c = call_of(d, at, x + (size_t) first * x_head_stride, x_stride,
                                out + (size_t) first * out_head_stride, out_stride, n_rows);
        c.exact_head_stride = (size_t) x_head_stride;
        c.out_head_stride = (size_t) out_head_stride;
        n = equally_far(at, n_heads - first);
        if (!may_round(c, mat_view(at)) && n > CUDA_HEADS_MAX) n = CUDA_HEADS_MAX;
        c.n_heads = n;
        struct gemm_rows rows = {};
        rows.x = c.exact_x;
        rows.x_stride = c.exact_stride;
        rows.x_head_stride = c.exact_head_stride;
        rows.k = at->k;
        run_heads(d, at, c, rows);
    }
}

void cuda_gemm(struct device *d, const struct matrix *w, const void *x, int x_stride, float *out,
               int out_stride, int n_rows)
{
    cuda_gemm_heads(d, w, 1, (const float *) x, x_stride, 0, out, out_stride, 0, n_rows);
}

// Whether one launch takes both: few rows, read as they are, of the same inputs.
static bool may_pair(const struct device *d, const struct matrix *w, const struct matrix *second,
                     const struct call &c)
{
    struct mat a = mat_view(w), b = mat_view(second);
    return gemm_tensor_cores(d, w->dtype) && w->dtype == second->dtype && a.k == b.k &&
           a.col_phase == b.col_phase && may_round(c, a) &&
           !skinny_takes(d, &a, c.n_rows) && !skinny_takes(d, &b, c.n_rows);
}

void cuda_gemm_pair(struct device *d, const struct matrix *w, const struct matrix *second,
                    const void *x, int x_stride, float *out, int out_stride, float *second_out,
                    int second_stride, int n_rows)
{
    if (n_rows == 0) return;
    struct call c = call_of(d, w, (const float *) x, x_stride, out, out_stride, n_rows);
    if (!may_pair(d, w, second, c)) {
        cuda_gemm(d, w, x, x_stride, out, out_stride, n_rows);
        cuda_gemm(d, second, x, x_stride, second_out, second_stride, n_rows);
        return;
    }
    struct heads pair = {};
    pair.each.first = mat_view(w);
    pair.second = mat_view(second);
    c.rounds = true;
    c.second_out = second_out;
    c.second_stride = (size_t) second_stride;
    if (w->dtype == DTYPE_F8_E4M3) launch_mma<1>(d, pair, c);
    else launch_mma<2>(d, pair, c);
}
