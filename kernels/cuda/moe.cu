// The routed experts: pairs of a row and an expert that it chose, sorted by expert on the device,
// and a work list of tiles (an expert and a few of its pairs), so that each expert's weights are
// read once for all of its rows. First gate, up and SiLU of all pairs, then down, a panel of the
// output at a time, and each row's sum in the order in which it chose.
#include "kernels/cuda/gemm.cuh"

#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/fp8_moe.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/wgmma.cuh"

enum {
    SORT_THREADS = 256,
    COMBINE_THREADS = 256,
    FP8_PAIRS_MIN = 8, // of an expert, were they even
};

// --- sorting

struct sort {
    const int32_t *chosen, *pos; // (n_rows, n_chosen), (n_rows)
    int n_rows, n_chosen, n_experts, tokens; // tokens: pairs of a tile
    struct cuda_moe_scratch room;
};

// Exclusive sum of `value` over the block's threads, and in *all their total.
static __device__ int block_prefix(int value, int *all)
{
    __shared__ int sums[SORT_THREADS / WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, sum = value;
    for (int i = 1; i < WARP; i *= 2) {
        int other = __shfl_up_sync(~0u, sum, i);
        if (lane >= i) sum += other;
    }
    __syncthreads();
    if (lane == WARP - 1) sums[warp] = sum;
    __syncthreads();
    int before = 0, total = 0;
    for (int i = 0; i < SORT_THREADS / WARP; i++) {
        if (i < warp) before += sums[i];
        total += sums[i];
    }
    *all = total;
    return before + sum - value;
}

// One block an expert: it counts all pairs, so that no block waits for another, then lists its own
// in the order of their rows. Shared: counts (n_experts).
static __global__ void sort_pairs(struct sort s)
{
    extern __shared__ int counts[];
    int expert = blockIdx.x, n = s.n_rows * s.n_chosen;
    for (int i = threadIdx.x; i < s.n_experts; i += SORT_THREADS) counts[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += SORT_THREADS) {
        bool padding = s.pos[i / s.n_chosen] < 0;
        if (padding && expert == 0) s.room.pair_of[i] = -1;
        if (padding) continue;
        int e = s.chosen[i];
        if (e < 0 || e >= s.n_experts) __trap();
        atomicAdd(&counts[e], 1);
    }
    __syncthreads();
    int pairs = 0, tiles = 0, first_pair, first_tile;
    for (int i = threadIdx.x; i < expert; i += SORT_THREADS) {
        pairs += counts[i];
        tiles += (counts[i] + s.tokens - 1) / s.tokens;
    }
    block_prefix(pairs, &first_pair);
    block_prefix(tiles, &first_tile);
    int mine = counts[expert], my_tiles = (mine + s.tokens - 1) / s.tokens;
    for (int i = threadIdx.x; i < my_tiles; i += SORT_THREADS) {
        int left = mine - i * s.tokens;
        s.room.tiles[first_tile + i] = (struct cuda_tile) {expert, first_pair + i * s.tokens,
                                                      left < s.tokens ? left : s.tokens};
    }
    if (expert == s.n_experts - 1 && threadIdx.x == 0) *s.room.n_tiles = first_tile + my_tiles;
    if (mine == 0) return;
    int next = first_pair;
    for (int i0 = 0; i0 < n; i0 += SORT_THREADS) {
        int i = i0 + threadIdx.x;
        bool here = i < n && s.chosen[i] == expert && s.pos[i / s.n_chosen] >= 0;
        int all, at = next + block_prefix(here, &all);
        if (here) {
            s.room.pair_row[at] = i / s.n_chosen;
            s.room.pair_of[i] = at;
        }
        next += all;
    }
}

// --- products

struct moe {
    struct mat_row gate, up, down;
    struct cuda_moe_scratch room;
    enum dtype dtype;
    int size;
    bool round;
    int hidden, part;
    size_t x_pitch, act_pitch; // of rows in bf16
    enum input_order act_order;
    const float *x;            // (n_rows, hidden)
    float *gate_out, *up_out; // (pairs, part) of the exact way
    int n0, panel;  // columns of the output
};

// The tile's pairs: rows of x where `pair_row` is given, else of act.
template <typename S>
static __device__ __forceinline__ void take_pairs(int32_t *token_rows, struct cuda_tile tile,
                                                  const int32_t *pair_row)
{
    if (threadIdx.x < S::TOKENS) {
        int pair = tile.pair + threadIdx.x;
        token_rows[threadIdx.x] = (int) threadIdx.x >= tile.n ? -1
                                  : pair_row != nullptr        ? pair_row[pair]
                                                               : pair;
    }
    __syncthreads();
}

// act = silu(gate) * up of the sums of a tile: its first half of rows is gate's, the other up's.
template <typename S>
static __device__ __forceinline__ void store_act(const struct moe &m, struct cuda_tile tile,
                                                 const struct mat &gate, const struct mat &up,
                                                 int n0, const char *shared)
{
    constexpr int HALF = S::ROWS / 2;
    __nv_bfloat16 *act = (__nv_bfloat16 *) m.room.act + (size_t) tile.pair * m.act_pitch;
    for (int i = threadIdx.x; i < S::TOKENS * HALF; i += MMA_THREADS) {
        int token = i / HALF, n = n0 + i % HALF;
        if (token >= tile.n || n >= m.part) continue;
        float g = tile_sum<S>(shared, token, i % HALF);
        float u = tile_sum<S>(shared, token, HALF + i % HALF);
        if (gate.nans != nullptr && (gate.nans[n] || up.nans[n])) g = NAN;
        int at = m.down.first.col_phase + n, block = at / SCALE_BLOCK * SCALE_BLOCK;
        act[(size_t) token * m.act_pitch + block + place_of(m.act_order, at % SCALE_BLOCK)] =
            __float2bfloat16_rn(g / (1.0f + __expf(-g)) * u);
    }
}

template <typename S>
static __device__ __forceinline__ void store_outputs(const struct moe &m, struct cuda_tile tile,
                                                     const struct mat &w, int first,
                                                     const char *shared)
{
    for (int i = threadIdx.x; i < S::TOKENS * S::ROWS; i += MMA_THREADS) {
        int token = i / S::ROWS, n = first + i % S::ROWS;
        if (token >= tile.n || n >= m.panel || m.n0 + n >= w.n) continue;
        float value = tile_sum<S>(shared, token, i % S::ROWS);
        if (w.nans != nullptr && w.nans[m.n0 + n]) value = NAN;
        m.room.outputs[(size_t) (tile.pair + token) * m.panel + n] = value;
    }
}

// Half of the warps' row groups are gate's, the others the same rows of up. Grid: tiles of part,
// tiles of pairs.
template <int NT, int WM, int SIZE>
static __global__ void __launch_bounds__(MMA_THREADS, 2)
gate_up(const __grid_constant__ struct moe m)
{
    using S = mma_shape<NT, WM, SIZE>;
    __shared__ __align__(16) char shared[S::BYTES];
    __shared__ int32_t token_rows[S::TOKENS];
    if ((int) blockIdx.y >= *m.room.n_tiles) return;
    struct cuda_tile tile = m.room.tiles[blockIdx.y];
    take_pairs<S>(token_rows, tile, m.room.pair_row);
    struct mat gate = mat_of_row(m.gate, tile.expert), up = mat_of_row(m.up, tile.expert);
    int wm = threadIdx.x / WARP % WM, n0 = blockIdx.x * (S::ROWS / 2);
    mma_tile<NT, WM, SIZE>(wm < WM / 2 ? gate : up, n0 + wm % (WM / 2) * 16,
                           (const __nv_bfloat16 *) m.room.input, m.x_pitch, token_rows, 0,
                           mat_blocks(gate.col_phase, gate.k), shared);
    store_act<S>(m, tile, gate, up, n0, shared);
}

// One warpgroup takes gate, the other up.
template <int N, int SIZE>
static __global__ void __launch_bounds__(MMA_THREADS, N > 32 ? 1 : 2)
gate_up_wide(const __grid_constant__ struct moe m)
{
    using S = wgmma_shape<N, SIZE>;
    extern __shared__ char dynamic[];
    __shared__ int32_t token_rows[S::TOKENS];
    char *shared = wgmma_shared(dynamic);
    if ((int) blockIdx.y >= *m.room.n_tiles) return;
    struct cuda_tile tile = m.room.tiles[blockIdx.y];
    take_pairs<S>(token_rows, tile, m.room.pair_row);
    struct mat gate = mat_of_row(m.gate, tile.expert), up = mat_of_row(m.up, tile.expert);
    int n0 = blockIdx.x * (S::ROWS / 2);
    wgmma_tile<N, SIZE>(threadIdx.x < 128 ? gate : up, n0, (const __nv_bfloat16 *) m.room.input,
                        m.x_pitch, token_rows, 0, mat_blocks(gate.col_phase, gate.k), shared);
    store_act<S>(m, tile, gate, up, n0, shared);
}

// outputs (pairs, panel) = down of a tile's pairs. Grid: tiles of the panel, tiles of pairs.
template <int NT, int WM, int SIZE>
static __global__ void __launch_bounds__(MMA_THREADS, 2)
down(const __grid_constant__ struct moe m)
{
    using S = mma_shape<NT, WM, SIZE>;
    __shared__ __align__(16) char shared[S::BYTES];
    __shared__ int32_t token_rows[S::TOKENS];
    if ((int) blockIdx.y >= *m.room.n_tiles) return;
    struct cuda_tile tile = m.room.tiles[blockIdx.y];
    take_pairs<S>(token_rows, tile, nullptr);
    struct mat w = mat_of_row(m.down, tile.expert);
    int first = blockIdx.x * S::ROWS, wm = threadIdx.x / WARP % WM;
    mma_tile<NT, WM, SIZE>(w, m.n0 + first + wm * 16, (const __nv_bfloat16 *) m.room.act,
                           m.act_pitch, token_rows, 0, mat_blocks(w.col_phase, w.k), shared);
    store_outputs<S>(m, tile, w, first, shared);
}

template <int N, int SIZE>
static __global__ void __launch_bounds__(MMA_THREADS, N > 32 ? 1 : 2)
down_wide(const __grid_constant__ struct moe m)
{
    using S = wgmma_shape<N, SIZE>;
    extern __shared__ char dynamic[];
    __shared__ int32_t token_rows[S::TOKENS];
    char *shared = wgmma_shared(dynamic);
    if ((int) blockIdx.y >= *m.room.n_tiles) return;
    struct cuda_tile tile = m.room.tiles[blockIdx.y];
    take_pairs<S>(token_rows, tile, nullptr);
    struct mat w = mat_of_row(m.down, tile.expert);
    int first = blockIdx.x * S::ROWS;
    wgmma_tile<N, SIZE>(w, m.n0 + first + threadIdx.x / 128 * 64,
                        (const __nv_bfloat16 *) m.room.act, m.act_pitch, token_rows, 0,
                        mat_blocks(w.col_phase, w.k), shared);
    store_outputs<S>(m, tile, w, first, shared);
}

// The exact way: one matrix at a time. `which` 0: gate, 1: up (rows of x), 2: down (rows of act).
// Grid: tiles of outputs, tiles of pairs.
static __global__ void __launch_bounds__(EXACT_THREADS)
exact_product(const __grid_constant__ struct moe m, int which)
{
    __shared__ int32_t rows[EXACT_ROWS];
    if ((int) blockIdx.y >= *m.room.n_tiles) return;
    struct cuda_tile tile = m.room.tiles[blockIdx.y];
    if (threadIdx.x < EXACT_ROWS) {
        int pair = tile.pair + (threadIdx.x < tile.n ? threadIdx.x : tile.n - 1);
        rows[threadIdx.x] = which == 2 ? pair : m.room.pair_row[pair];
    }
    __syncthreads();
    struct mat w = mat_of_row(which == 0 ? m.gate : which == 1 ? m.up : m.down, tile.expert);
    int first = blockIdx.x * EXACT_N, n0 = which == 2 ? m.n0 : 0;
    float out[4];
    exact_tile(w, m.dtype, m.size, n0 + first, which == 2 ? m.gate_out : m.x,
               which == 2 ? m.part : m.hidden, rows, m.round, out);
    int token = threadIdx.x / 16, width = which == 2 ? m.panel : m.part;
    float *to = which == 0 ? m.gate_out : which == 1 ? m.up_out : m.room.outputs;
    for (int i = 0; i < 4; i++) {
        int n = first + threadIdx.x % 16 * 4 + i;
        if (token < tile.n && n < width && n0 + n < w.n) {
            to[(size_t) (tile.pair + token) * width + n] = out[i];
        }
    }
}

struct combine {
    const float *outputs, *weights; // (pairs, panel), (n_rows, n_chosen)
    const int32_t *pair_of, *pos;
    int n_chosen, n0, panel, hidden;
    float *out;
};

// One block a row (x) and some columns (y).
static __global__ void combine_rows(struct combine c)
{
    int row = blockIdx.x, n = blockIdx.y * COMBINE_THREADS + threadIdx.x;
    if (c.pos[row] < 0 || n >= c.panel) return;
    float sum = 0;
    for (int i = 0; i < c.n_chosen; i++) {
        int pair = c.pair_of[row * c.n_chosen + i];
        sum = fmaf(c.weights[row * c.n_chosen + i], c.outputs[(size_t) pair * c.panel + n], sum);
    }
    c.out[(size_t) row * c.hidden + c.n0 + n] = sum;
}

// --- launches

template <int NT, int SIZE> struct narrow {
    static constexpr int TOKENS = 8 * NT;
    static constexpr bool WIDE = false;
    static void gate_and_up(struct device *d, const struct moe &m, unsigned tiles)
    {
        constexpr int WM = NT < 2 ? 2 : NT;
        dim3 grid((unsigned) ceil_div(m.part, 8 * WM), tiles);
        gate_up<NT, WM, SIZE><<<grid, MMA_THREADS, 0, d->stream>>>(m);
    }
    static void down_panel(struct device *d, const struct moe &m, unsigned tiles)
    {
        constexpr int WM = NT < 4 ? 4 : NT;
        dim3 grid((unsigned) ceil_div(m.panel, 16 * WM), tiles);
        down<NT, WM, SIZE><<<grid, MMA_THREADS, 0, d->stream>>>(m);
    }
};

template <int N, int SIZE> struct wide {
    using S = wgmma_shape<N, SIZE>;
    static constexpr int TOKENS = N;
    static constexpr bool WIDE = true;
    static void gate_and_up(struct device *d, const struct moe &m, unsigned tiles)
    {
        allow(d, (const void *) gate_up_wide<N, SIZE>);
        dim3 grid((unsigned) ceil_div(m.part, S::ROWS / 2), tiles);
        gate_up_wide<N, SIZE><<<grid, MMA_THREADS, S::BYTES, d->stream>>>(m);
    }
    static void down_panel(struct device *d, const struct moe &m, unsigned tiles)
    {
        allow(d, (const void *) down_wide<N, SIZE>);
        dim3 grid((unsigned) ceil_div(m.panel, S::ROWS), tiles);
        down_wide<N, SIZE><<<grid, MMA_THREADS, S::BYTES, d->stream>>>(m);
    }
    static void allow(struct device *d, const void *kernel)
    {
        device_allow(d, kernel, S::BYTES, "moe");
    }
};

struct step {
    const int32_t *chosen, *pos;
    const float *weights;
    int n_rows, n_chosen, n_experts;
    float *out;
};

// Down of a panel is `launch`; then the rows' sums.
template <typename LAUNCH>
static void down_panels(struct device *d, struct moe m, const struct step &s, LAUNCH launch)
{
    uint64_t pairs = (uint64_t) s.n_rows * (uint64_t) s.n_chosen;
    int width = cuda_moe_panel(m.hidden, pairs);
    check(pairs * (uint64_t) width * sizeof(float) <= d->scratch.moe.outputs_bytes);
    for (m.n0 = 0; m.n0 < m.hidden; m.n0 += width) {
        m.panel = m.hidden - m.n0 < width ? m.hidden - m.n0 : width;
        launch(m);
        struct combine c = {m.room.outputs, s.weights, m.room.pair_of, s.pos,
                            s.n_chosen,     m.n0,      m.panel,        m.hidden, s.out};
        dim3 grid((unsigned) s.n_rows, (unsigned) ceil_div(m.panel, COMBINE_THREADS));
        combine_rows<<<grid, COMBINE_THREADS, 0, d->stream>>>(c);
        device_launched(d, "moe");
    }
}

static unsigned list_work(struct device *d, const struct moe &m, const struct step &s, int tokens)
{
    struct sort t = {s.chosen, s.pos, s.n_rows, s.n_chosen, s.n_experts, tokens, m.room};
    sort_pairs<<<s.n_experts, SORT_THREADS, (size_t) s.n_experts * 4, d->stream>>>(t);
    device_launched(d, "moe");
    uint64_t pairs = (uint64_t) s.n_rows * (uint64_t) s.n_chosen;
    return (unsigned) cuda_moe_tiles(s.n_experts, pairs, tokens);
}

// WAY: narrow or wide.
template <typename WAY> static void run_mma(struct device *d, struct moe m, const struct step &s)
{
    unsigned tiles = list_work(d, m, s, WAY::TOKENS);
    struct gemm_rows rows = {};
    rows.x = m.x;
    rows.x_stride = (size_t) m.hidden;
    rows.n_rows = s.n_rows;
    rows.k = m.hidden;
    rows.phases[0] = m.gate.first.col_phase;
    m.act_order = gemm_order(m.dtype, WAY::WIDE);
    gemm_round(d, &rows, 1, m.act_order, m.room.input);
    m.x_pitch = cuda_input_pitch(m.hidden);
    m.act_pitch = cuda_input_pitch(m.part);
    int phase = m.down.first.col_phase;
    if (phase > 0 || m.part % SCALE_BLOCK != 0) { // the columns around the slice are zeros
        size_t pairs = (size_t) s.n_rows * (size_t) s.n_chosen;
        device_note(d, cudaMemsetAsync(m.room.act, 0, pairs * m.act_pitch * 2, d->stream), "moe");
    }
    WAY::gate_and_up(d, m, tiles);
    device_launched(d, "moe");
    down_panels(d, m, s, [&](const struct moe &panel) {
        WAY::down_panel(d, panel, tiles);
        device_launched(d, "moe");
    });
}

// With rows and act in FP8: as fast as their weights come from memory to 1,024 rows of V3's layers.
static void run_fp8(struct device *d, const struct moe &m, const struct step &s)
{
    list_work(d, m, s, FP8_MOE_PAIRS);
    struct gemm_rows rows = {};
    rows.x = m.x;
    rows.x_stride = (size_t) m.hidden;
    rows.n_rows = s.n_rows;
    rows.k = m.hidden;
    rows.phases[0] = m.gate.first.col_phase;
    int pairs = s.n_rows * s.n_chosen;
    size_t x_pitch = (size_t) mat_blocks(rows.phases[0], m.hidden) * SCALE_BLOCK;
    size_t act_pitch = (size_t) mat_blocks(m.down.first.col_phase, m.part) * SCALE_BLOCK;
    struct fp8_rows x = fp8_lay(m.room.input, x_pitch, s.n_rows);
    struct fp8_rows act = fp8_lay(m.room.act, act_pitch, pairs);
    check(fp8_bytes(act_pitch, pairs) <= m.room.act_bytes);
    fp8_quantise(d, &rows, &x);
    fp8_gate_up(d, &m.gate, &m.up, s.n_experts, &m.room, &x, &act);
    down_panels(d, m, s, [&](const struct moe &panel) {
        fp8_down(d, &m.down, s.n_experts, &m.room, &act, panel.n0, panel.panel);
    });
}

// Many pairs an expert, and cuts as FP8 act wants them.
static bool may_fp8(const struct device *d, const struct moe &m, const struct step &s, int each)
{
    const struct mat &gate = m.gate.first, &up = m.up.first, &down = m.down.first;
    return d->hopper && fp8_takes(d, m.dtype, s.n_rows) && each >= FP8_PAIRS_MIN &&
           down.row_phase == 0 && gate.row_phase == down.col_phase &&
           up.row_phase == gate.row_phase;
}

template <int SIZE> static void run_tensor(struct device *d, const struct moe &m,
                                           const struct step &s)
{
    int each = s.n_rows * s.n_chosen / s.n_experts; // pairs of an expert, were they even
    if (may_fp8(d, m, s, each)) run_fp8(d, m, s);
    else if (each <= 4) run_mma<narrow<1, SIZE>>(d, m, s);
    else if (each <= 10) run_mma<narrow<2, SIZE>>(d, m, s);
    else if (d->hopper && each <= 24) run_mma<wide<32, SIZE>>(d, m, s);
    else if (d->hopper && each <= 96) run_mma<wide<64, SIZE>>(d, m, s);
    else if (d->hopper) run_mma<wide<128, SIZE>>(d, m, s);
    else if (each <= 24) run_mma<narrow<4, SIZE>>(d, m, s);
    else run_mma<narrow<8, SIZE>>(d, m, s);
}

static void run_exact(struct device *d, struct moe m, struct step s)
{
    int n_rows = s.n_rows;
    uint64_t row_floats = (uint64_t) s.n_chosen * (uint64_t) m.part * 2;
    int most = (int) smaller(m.room.act_bytes / (row_floats * sizeof(float)), INT32_MAX);
    check(most >= 1, "the experts' width %d is beyond the scratch", m.part);
    for (int done = 0; done < n_rows; done += s.n_rows) {
        s.n_rows = n_rows - done < most ? n_rows - done : most;
        unsigned tiles = list_work(d, m, s, EXACT_ROWS);
        size_t pairs = (size_t) s.n_rows * (size_t) s.n_chosen;
        m.gate_out = (float *) m.room.act;
        m.up_out = m.gate_out + pairs * (size_t) m.part;
        dim3 grid((unsigned) ceil_div(m.part, EXACT_N), tiles);
        exact_product<<<grid, EXACT_THREADS, 0, d->stream>>>(m, 0);
        exact_product<<<grid, EXACT_THREADS, 0, d->stream>>>(m, 1);
        device_launched(d, "moe");
        cuda_swiglu(d, m.gate_out, m.up_out, m.gate_out, m.part, (int) pairs);
        down_panels(d, m, s, [&](const struct moe &panel) {
            dim3 down_grid((unsigned) ceil_div(panel.panel, EXACT_N), tiles);
            exact_product<<<down_grid, EXACT_THREADS, 0, d->stream>>>(panel, 2);
            device_launched(d, "moe");
        });
        s.chosen += pairs;
        s.weights += pairs;
        s.pos += s.n_rows;
        s.out += (size_t) s.n_rows * m.hidden;
        m.x += (size_t) s.n_rows * m.hidden;
    }
}

void cuda_moe(struct device *d, const struct expert *experts, int n_experts, int n_chosen,
              const void *x, const int32_t *chosen, const float *weights, const int32_t *pos,
              float *out, int n_rows)
{
    if (n_rows == 0) return;
    struct moe m = {};
    m.gate = mat_view_row(&experts->gate, sizeof *experts, n_experts);
    m.up = mat_view_row(&experts->up, sizeof *experts, n_experts);
    m.down = mat_view_row(&experts->down, sizeof *experts, n_experts);
    m.room = d->scratch.moe;
    m.dtype = experts->gate.dtype;
    m.size = (int) dtype_size(m.dtype);
    m.round = d->precision == PRECISION_BF16;
    m.hidden = experts->gate.k;
    m.part = experts->gate.n;
    m.x = (const float *) x;
    check(n_experts <= d->shape.n_experts && n_chosen <= d->shape.n_chosen &&
          m.part <= d->shape.moe_intermediate && m.hidden <= d->shape.hidden &&
          n_rows <= d->shape.max_rows && experts->down.dtype == m.dtype &&
          experts->up.dtype == m.dtype && experts->up.col_phase == experts->gate.col_phase);
    struct step s = {chosen, pos, weights, n_rows, n_chosen, n_experts, out};
    if (!gemm_tensor_cores(d, m.dtype)) run_exact(d, m, s);
    else if (m.dtype == DTYPE_F8_E4M3) run_tensor<1>(d, m, s);
    else run_tensor<2>(d, m, s);
}
