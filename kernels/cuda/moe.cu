// The routed experts: pairs of a row and an expert that it chose, sorted by expert on the device,
// and a work list of tiles (an expert and a few of its pairs), so that each expert's weights are
// read once for all of its rows. First gate, up and SiLU of all pairs, then down, a panel of the
// output at a time, and each row's sum in the order in which it chose.
#include "kernels/cuda/gemm.cuh"

#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/fp8_moe.cuh"
#include "kernels/cuda/mma_ring.cuh"
#include "kernels/cuda/moe_list.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/wgmma.cuh"

enum {
    COMBINE_THREADS = 256,
    FP8_PAIRS_MIN = 8, // of an expert, were they even
    FEW_PAIRS = 4,     // the same, up to which tiles are of
    FEW_TOKENS = 8,    // so many
    FEW_F32 = 4,       // rows that gate_up reads in f32
};

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
    int n_rows, n_pairs, n_experts;
    // The shared expert is one more of every row: its tiles come first, its pairs last.
    struct mat shared_gate, shared_up, shared_down;
    int shared_tiles; // 0: it is not among them
    // Of a row alone, whose pairs are tiles as they are: it needs no list. NULL: there is one.
    const int32_t *alone, *alone_pos;
};

enum { SHARED = -1 }; // as the expert of a tile

// The block's tile; n 0: it has none.
static __device__ __forceinline__ struct cuda_tile tile_at(const struct moe &m, int tokens)
{
    int at = (int) blockIdx.y - m.shared_tiles;
    if (at < 0) {
        int row = (int) blockIdx.y * tokens;
        return {SHARED, m.n_pairs + row, min(tokens, m.n_rows - row)};
    }
    struct cuda_tile t;
    if (m.alone != nullptr) {
        t = {__ldcg(m.alone + at), at, m.alone_pos[0] >= 0};
        if (t.n > 0 && (t.expert < 0 || t.expert >= m.n_experts)) __trap();
        return t;
    }
    const int32_t *from = &m.room.tiles[at].expert;
    t = {__ldcg(from), __ldcg(from + 1), __ldcg(from + 2)};
    if (at >= __ldcg(m.room.n_tiles)) t.n = 0;
    return t;
}

static __device__ __forceinline__ struct mat mat_of(const struct mat_row &r, int expert,
                                                    const struct mat &shared)
{
    return expert == SHARED ? shared : mat_of_row(r, expert);
}

// The rows of x of the tile's pairs.
template <typename S>
static __device__ __forceinline__ void take_rows(int32_t *token_rows, const struct moe &m,
                                                 struct cuda_tile tile)
{
    if (threadIdx.x < S::TOKENS) {
        int pair = tile.pair + threadIdx.x;
        token_rows[threadIdx.x] = (int) threadIdx.x >= tile.n ? -1
                                  : tile.expert == SHARED     ? pair - m.n_pairs
                                  : m.alone != nullptr        ? 0
                                                              : __ldcg(m.room.pair_row + pair);
    }
    __syncthreads();
}

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
                                                 int n0, const char *shared, const uint8_t *nans)
{
    constexpr int HALF = S::ROWS / 2;
    __nv_bfloat16 *act = (__nv_bfloat16 *) m.room.act + (size_t) tile.pair * m.act_pitch;
    for (int i = threadIdx.x; i < tile.n * HALF; i += MMA_THREADS) {
        int token = i / HALF, n = n0 + i % HALF;
        if (n >= m.part) continue;
        float g = tile_sum<S>(shared, token, i % HALF);
        float u = tile_sum<S>(shared, token, HALF + i % HALF);
        if (m.size == 1 && (nans[i % HALF] || nans[HALF + i % HALF])) g = NAN;
        int at = m.down.first.col_phase + n, block = at / SCALE_BLOCK * SCALE_BLOCK;
        act[(size_t) token * m.act_pitch + block + place_of(m.act_order, at % SCALE_BLOCK)] =
            __float2bfloat16_rn(g / (1.0f + __expf(-g)) * u);
    }
}

template <typename S>
static __device__ __forceinline__ void store_outputs(const struct moe &m, struct cuda_tile tile,
                                                     int first, const char *shared,
                                                     const uint8_t *nans)
{
    for (int i = threadIdx.x; i < tile.n * S::ROWS; i += MMA_THREADS) {
        int token = i / S::ROWS, n = first + i % S::ROWS;
        if (n >= m.panel || m.n0 + n >= m.down.first.n) continue;
        float value = tile_sum<S>(shared, token, i % S::ROWS);
        if (m.size == 1 && nans[i % S::ROWS]) value = NAN;
        m.room.outputs[(size_t) (tile.pair + token) * m.panel + n] = value;
    }
}

static __device__ const __nv_bfloat16 *rows_of(const struct moe &m, __nv_bfloat16)
{
    return (const __nv_bfloat16 *) m.room.input;
}

static __device__ const float *rows_of(const struct moe &m, float) { return m.x; }

// Half of the warps' row groups are gate's, the others the same rows of up. Kernels behind may
// begin once the list of tiles is there, which they look at. Grid: tiles of part, tiles of pairs.
template <int NT, int WM, int SIZE, typename X>
static __global__ void
__launch_bounds__(MMA_THREADS, mma_shape<NT, WM, SIZE, sizeof(X)>::BLOCKS)
gate_up(const __grid_constant__ struct moe m)
{
    using S = mma_shape<NT, WM, SIZE, sizeof(X)>;
    __shared__ __align__(16) char shared[S::RING ? 16 : S::BYTES];
    extern __shared__ __align__(16) char ring[];
    __shared__ int32_t token_rows[S::TOKENS];
    __shared__ __align__(16) uint8_t nans[S::ROWS];
    bool waits = (int) blockIdx.y < m.shared_tiles; // its weights are known by now
    if (!waits) overlap_wait();
    struct cuda_tile tile = tile_at(m, S::TOKENS);
    if (tile.n == 0) return;
    int wm = threadIdx.x / WARP % WM, n0 = blockIdx.x * (S::ROWS / 2);
    take_nans<S::ROWS / 2>(nans, mat_of(m.gate, tile.expert, m.shared_gate), n0);
    take_nans<S::ROWS / 2>(nans + S::ROWS / 2, mat_of(m.up, tile.expert, m.shared_up), n0);
    struct mat w = wm < WM / 2 ? mat_of(m.gate, tile.expert, m.shared_gate)
                               : mat_of(m.up, tile.expert, m.shared_up);
    int row = n0 + wm % (WM / 2) * 16, blocks = mat_blocks(w.col_phase, w.k);
    size_t x_pitch = sizeof(X) == sizeof(float) ? (size_t) m.hidden : m.x_pitch;
    auto before = [&] {
        if (waits) overlap_wait();
        overlap_next();
        take_rows<S>(token_rows, m, tile);
    };
    if constexpr (S::RING) {
        ring_tile<WM>(w, row, rows_of(m, X()), x_pitch, token_rows,
                      min(m.n_rows, S::TOKENS), 0, blocks, ring, waits, before);
    } else {
        mma_tile<NT, WM, SIZE>(w, row, rows_of(m, X()), x_pitch, token_rows, 0, blocks, shared,
                               before);
    }
    store_act<S>(m, tile, n0, S::RING ? ring : shared, nans);
}

// One warpgroup takes gate, the other up.
template <int N, int SIZE>
static __global__ void __launch_bounds__(MMA_THREADS, N > 32 ? 1 : 2)
gate_up_wide(const __grid_constant__ struct moe m)
{
    using S = wgmma_shape<N, SIZE>;
    extern __shared__ char dynamic[];
    __shared__ int32_t token_rows[S::TOKENS];
    __shared__ __align__(16) uint8_t nans[S::ROWS];
    char *shared = wgmma_shared(dynamic);
    if ((int) blockIdx.y >= *m.room.n_tiles) return;
    struct cuda_tile tile = m.room.tiles[blockIdx.y];
    take_pairs<S>(token_rows, tile, m.room.pair_row);
    struct mat gate = mat_of_row(m.gate, tile.expert), up = mat_of_row(m.up, tile.expert);
    int n0 = blockIdx.x * (S::ROWS / 2);
    take_nans<S::ROWS / 2>(nans, gate, n0);
    take_nans<S::ROWS / 2>(nans + S::ROWS / 2, up, n0);
    wgmma_tile<N, SIZE>(threadIdx.x < 128 ? gate : up, n0, (const __nv_bfloat16 *) m.room.input,
                        m.x_pitch, token_rows, 0, mat_blocks(gate.col_phase, gate.k), shared);
    store_act<S>(m, tile, n0, shared, nans);
}

// outputs (pairs, panel) = down of a tile's pairs. Grid: tiles of the panel, tiles of pairs.
template <int NT, int WM, int SIZE>
static __global__ void __launch_bounds__(MMA_THREADS, mma_shape<NT, WM, SIZE>::BLOCKS)
down(const __grid_constant__ struct moe m)
{
    using S = mma_shape<NT, WM, SIZE>;
    __shared__ __align__(16) char shared[S::RING ? 16 : S::BYTES];
    extern __shared__ __align__(16) char ring[];
    __shared__ int32_t token_rows[S::TOKENS];
    __shared__ __align__(16) uint8_t nans[S::ROWS];
    overlap_next();
    struct cuda_tile tile = tile_at(m, S::TOKENS);
    if (tile.n == 0) {
        overlap_wait(); // what is behind counts on it
        return;
    }
    take_pairs<S>(token_rows, tile, nullptr);
    struct mat w = mat_of(m.down, tile.expert, m.shared_down);
    int first = blockIdx.x * S::ROWS, row = m.n0 + first + (int) threadIdx.x / WARP % WM * 16;
    int blocks = mat_blocks(w.col_phase, w.k);
    const __nv_bfloat16 *act = (const __nv_bfloat16 *) m.room.act;
    take_nans<S::ROWS>(nans, w, m.n0 + first);
    if constexpr (S::RING) {
        ring_tile<WM>(w, row, act, m.act_pitch, token_rows, min(m.n_rows, S::TOKENS), 0,
                      blocks, ring, true, [] { overlap_wait(); });
    } else {
        mma_tile<NT, WM, SIZE>(w, row, act, m.act_pitch, token_rows, 0, blocks, shared,
                               [] { overlap_wait(); });
    }
    store_outputs<S>(m, tile, first, S::RING ? ring : shared, nans);
}

template <int N, int SIZE>
static __global__ void __launch_bounds__(MMA_THREADS, N > 32 ? 1 : 2)
down_wide(const __grid_constant__ struct moe m)
{
    using S = wgmma_shape<N, SIZE>;
    extern __shared__ char dynamic[];
    __shared__ int32_t token_rows[S::TOKENS];
    __shared__ __align__(16) uint8_t nans[S::ROWS];
    char *shared = wgmma_shared(dynamic);
    if ((int) blockIdx.y >= *m.room.n_tiles) return;
    struct cuda_tile tile = m.room.tiles[blockIdx.y];
    take_pairs<S>(token_rows, tile, nullptr);
    struct mat w = mat_of_row(m.down, tile.expert);
    int first = blockIdx.x * S::ROWS;
    take_nans<S::ROWS>(nans, w, m.n0 + first);
    wgmma_tile<N, SIZE>(w, m.n0 + first + threadIdx.x / 128 * 64,
                        (const __nv_bfloat16 *) m.room.act, m.act_pitch, token_rows, 0,
                        mat_blocks(w.col_phase, w.k), shared);
    store_outputs<S>(m, tile, first, shared, nans);
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
    const int32_t *pair_of, *pos;   // pair_of NULL: pairs are in the order of `weights`
    int n_chosen, n0, panel, hidden;
    int shared; // the first pair of the shared expert; -1: there are none
    float *out;
};

// One block a row (x) and some columns (y).
static __global__ void combine_rows(struct combine c)
{
    int row = blockIdx.x, n = blockIdx.y * COMBINE_THREADS + threadIdx.x;
    overlap_next();
    overlap_wait();
    if (c.pos[row] < 0 || n >= c.panel) return;
    float sum = 0;
#pragma unroll 8
    for (int i = 0; i < c.n_chosen; i++) {
        int at = row * c.n_chosen + i, pair = c.pair_of != nullptr ? c.pair_of[at] : at;
        sum = fmaf(c.weights[at], c.outputs[(size_t) pair * c.panel + n], sum);
    }
    if (c.shared >= 0) sum += c.outputs[(size_t) (c.shared + row) * c.panel + n];
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
        if constexpr (NT == 1) {
            if (m.x_pitch == 0) {
                launch<mma_shape<NT, WM, SIZE, 4>, 4>(d, gate_up<NT, WM, SIZE, float>, grid, m);
                return;
            }
        }
        launch<mma_shape<NT, WM, SIZE>, 2>(d, gate_up<NT, WM, SIZE, __nv_bfloat16>, grid, m);
    }
    static void down_panel(struct device *d, const struct moe &m, unsigned tiles)
    {
        constexpr int WM = NT < 4 ? 4 : NT;
        dim3 grid((unsigned) ceil_div(m.panel, 16 * WM), tiles);
        launch<mma_shape<NT, WM, SIZE>, 2>(d, down<NT, WM, SIZE>, grid, m);
    }
    template <typename S, int XS>
    static void launch(struct device *d, void (*kernel)(struct moe), dim3 grid,
                       const struct moe &m)
    {
        using R = mma_ring<S, XS>;
        int room = m.n_rows < S::TOKENS ? m.n_rows : S::TOKENS;
        constexpr int MOST = XS == 4 ? FEW_F32 : FEW_TOKENS;
        static_assert(!S::RING || R::bytes(MOST) <= RING_BYTES_MAX, "any number of rows fits");
        if (S::RING) device_allow(d, (const void *) kernel, R::bytes(MOST), "moe");
        overlap_launch(d, "moe", true, kernel, grid, MMA_THREADS,
                       S::RING ? (size_t) R::bytes(room) : 0, m);
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
    int pairs = s.n_rows * s.n_chosen, with_shared = pairs + (m.shared_tiles > 0 ? s.n_rows : 0);
    int width = cuda_moe_panel(m.hidden, (uint64_t) with_shared);
    check((uint64_t) with_shared * (uint64_t) width * sizeof(float) <=
          d->scratch.moe.outputs_bytes);
    for (m.n0 = 0; m.n0 < m.hidden; m.n0 += width) {
        m.panel = m.hidden - m.n0 < width ? m.hidden - m.n0 : width;
        launch(m);
        struct combine c = {m.room.outputs, s.weights,
                            m.alone != NULL ? NULL : m.room.pair_of, s.pos,
                            s.n_chosen, m.n0, m.panel, m.hidden,
                            m.shared_tiles > 0 ? pairs : -1, s.out};
        dim3 grid((unsigned) s.n_rows, (unsigned) ceil_div(m.panel, COMBINE_THREADS));
        overlap_launch(d, "moe", true, combine_rows, grid, COMBINE_THREADS, 0, c);
    }
}

// The step's rows, as they are rounded for gate and up.
static struct gemm_rows tokens_in(const struct moe &m, const struct step &s)
{
    struct gemm_rows rows = {};
    rows.x = m.x;
    rows.x_stride = (size_t) m.hidden;
    rows.n_rows = s.n_rows;
    rows.k = m.hidden;
    rows.phases[0] = m.gate.first.col_phase;
    return rows;
}

// Tiles that the list may have.
static unsigned list_pairs(struct device *d, const struct moe &m, const struct step &s, int tokens)
{
    struct moe_list list = {s.chosen, s.pos, s.n_rows, s.n_chosen, s.n_experts, tokens, m.room};
    moe_list_make(d, list);
    return (unsigned) cuda_moe_tiles(s.n_experts, (uint64_t) s.n_rows * (uint64_t) s.n_chosen,
                                     tokens);
}

// Whether gate_up rounds rows, as products of few rows do. Rows of f32 need more shared memory.
static bool may_round(const struct moe &m)
{
    return m.n_rows <= FEW_F32 && (uintptr_t) m.x % 16 == 0 && m.hidden % 8 == 0 &&
           m.gate.first.col_phase == 0;
}

// WAY: narrow or wide.
template <typename WAY> static void run_mma(struct device *d, struct moe m, const struct step &s)
{
    bool few = !WAY::WIDE && WAY::TOKENS == FEW_TOKENS;
    unsigned tiles = (unsigned) s.n_chosen;
    if (few && s.n_rows == 1) {
        m.alone = s.chosen;
        m.alone_pos = s.pos;
    } else {
        tiles = list_pairs(d, m, s, WAY::TOKENS);
    }
    tiles += (unsigned) m.shared_tiles;
    m.act_order = gemm_order(m.dtype, WAY::WIDE);
    if (!few || !may_round(m)) {
        struct gemm_rows rows = tokens_in(m, s);
        gemm_round(d, &rows, 1, m.act_order, m.room.input);
        m.x_pitch = cuda_input_pitch(m.hidden);
    }
    m.act_pitch = cuda_input_pitch(m.part);
    int phase = m.down.first.col_phase;
    if (phase > 0 || m.part % SCALE_BLOCK != 0) { // the columns around the slice are zeros
        size_t pairs = (size_t) m.n_pairs + (m.shared_tiles > 0 ? (size_t) s.n_rows : 0);
        device_note(d, cudaMemsetAsync(m.room.act, 0, pairs * m.act_pitch * 2, d->stream), "moe");
        d->barred = true;
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
    list_pairs(d, m, s, FP8_MOE_PAIRS);
    struct gemm_rows rows = tokens_in(m, s);
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
    else if (each <= FEW_PAIRS) run_mma<narrow<1, SIZE>>(d, m, s);
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
        unsigned tiles = list_pairs(d, m, s, EXACT_ROWS);
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

static struct moe moe_of(const struct device *d, const struct expert *experts, const void *x,
                         const struct step &s)
{
    struct moe m = {};
    m.gate = mat_view_row(&experts->gate, sizeof *experts, s.n_experts);
    m.up = mat_view_row(&experts->up, sizeof *experts, s.n_experts);
    m.down = mat_view_row(&experts->down, sizeof *experts, s.n_experts);
    m.room = d->scratch.moe;
    m.dtype = experts->gate.dtype;
    m.size = (int) dtype_size(m.dtype);
    m.round = d->precision == PRECISION_BF16;
    m.hidden = experts->gate.k;
    m.part = experts->gate.n;
    m.x = (const float *) x;
    m.n_rows = s.n_rows;
    m.n_pairs = s.n_rows * s.n_chosen;
    m.n_experts = s.n_experts;
    check(s.n_experts <= d->shape.n_experts && s.n_chosen <= d->shape.n_chosen &&
          m.part <= d->shape.moe_intermediate && m.hidden <= d->shape.hidden &&
          s.n_rows <= d->shape.max_rows && experts->down.dtype == m.dtype &&
          experts->up.dtype == m.dtype && experts->up.col_phase == experts->gate.col_phase);
    return m;
}

static void run(struct device *d, const struct moe &m, const struct step &s)
{
    if (!gemm_tensor_cores(d, m.dtype)) run_exact(d, m, s);
    else if (m.dtype == DTYPE_F8_E4M3) run_tensor<1>(d, m, s);
    else run_tensor<2>(d, m, s);
}

void cuda_moe(struct device *d, const struct expert *experts, int n_experts, int n_chosen,
              const void *x, const int32_t *chosen, const float *weights, const int32_t *pos,
              float *out, int n_rows)
{
    if (n_rows == 0) return;
    struct step s = {chosen, pos, weights, n_rows, n_chosen, n_experts, out};
    run(d, moe_of(d, experts, x, s), s);
}

static bool alike(const struct mat &a, const struct mat &b)
{
    return a.n == b.n && a.k == b.k && a.col_phase == b.col_phase;
}

bool cuda_moe_shared(struct device *d, const struct expert *experts, const struct expert *shared,
                     int n_experts, int n_chosen, const void *x, const int32_t *chosen,
                     const float *weights, const int32_t *pos, float *out, int n_rows)
{
    if (n_rows == 0) return true;
    struct step s = {chosen, pos, weights, n_rows, n_chosen, n_experts, out};
    struct moe m = moe_of(d, experts, x, s);
    uint64_t pairs = (uint64_t) (m.n_pairs + n_rows);
    bool few = n_rows <= FEW_TOKENS && m.n_pairs / n_experts <= FEW_PAIRS;
    if (!few || !gemm_tensor_cores(d, m.dtype) || shared->gate.dtype != m.dtype ||
        shared->up.dtype != m.dtype || shared->down.dtype != m.dtype) {
        return false;
    }
    m.shared_gate = mat_view(&shared->gate);
    m.shared_up = mat_view(&shared->up);
    m.shared_down = mat_view(&shared->down);
    if (!alike(m.shared_gate, m.gate.first) || !alike(m.shared_up, m.up.first) ||
        !alike(m.shared_down, m.down.first)) {
        return false;
    }
    uint64_t panel = (uint64_t) cuda_moe_panel(m.hidden, pairs);
    if (pairs * cuda_input_pitch(m.part) * sizeof(__nv_bfloat16) > m.room.act_bytes ||
        pairs * panel * sizeof(float) > m.room.outputs_bytes) {
        return false;
    }
    m.shared_tiles = 1;
    run(d, m, s);
    return true;
}
