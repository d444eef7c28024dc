// The inner part of products of FP8 weights and up to 8 tokens: mma.cuh's, but weights pass through
// a ring in shared memory, each thread's own pieces by cp.async, four blocks of inputs deep. What
// loads into registers have on its way lies in the first level cache, of which little is left
// beside kernels with much shared memory, and that does not change while kernels overlap.
#ifndef PENSTOCK_KERNELS_CUDA_MMA_RING_CUH
#define PENSTOCK_KERNELS_CUDA_MMA_RING_CUH

#include "kernels/cuda/mma.cuh"

// S: a mma_shape with RING. `room`: tokens that have place, up to 8.
template <typename S, int XS> struct mma_ring {
    static constexpr int STAGES = 4;
    static constexpr int WEIGHT_BYTES = MMA_THREADS * 2 * S::LOADS * 16;
    static constexpr __host__ __device__ int stage_bytes(int room)
    {
        return room * S::X_PITCH * XS;
    }
    static constexpr __host__ __device__ int bytes(int room)
    {
        return STAGES * (WEIGHT_BYTES + stage_bytes(room));
    }
    static_assert(!S::RING || bytes(1) > S::SUM_BYTES, "sums lie where weights were");
};

enum { RING_BYTES_MAX = 99 * 1024 - 256 }; // that a block has on any GPU, beside static ones

static __device__ __forceinline__ void copy_weights(void *shared, const uint8_t *global)
{
    uint32_t to = (uint32_t) __cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(global)
                 : "memory");
}

// As mma_tile. shared: mma_ring's bytes. `early`: all stages' weights are asked for before `before`
// is called, which waits for other kernels; else the first one's.
template <int WM, typename X, typename BEFORE>
static __device__ __forceinline__ void ring_tile(const struct mat &m, int row, const X *x,
                                                 size_t x_pitch, const int32_t *token_rows,
                                                 int room, int begin, int end, char *shared,
                                                 bool early, BEFORE before)
{
    constexpr int SIZE = 1, XS = sizeof(X);
    using S = mma_shape<1, WM, SIZE, XS>;
    using R = mma_ring<S, XS>;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int wm = warp % WM, wk = warp / WM, blocks = mat_blocks(m.col_phase, m.k);
    const uint8_t *from[2];
    const float *scales[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int r = row + g + 8 * i < m.n ? row + g + 8 * i : m.n - 1;
        from[i] = m.rows + ((size_t) r * blocks + begin + wk) * SCALE_BLOCK * SIZE + t * 16;
        scales[i] = m.scales + (size_t) ((m.row_phase + r) / SCALE_BLOCK) * blocks + begin + wk;
    }
    int n_steps = (end - begin + S::WK - 1) / S::WK, mine = end - begin - wk;
    char *weights = shared + threadIdx.x * 16, *rows = shared + R::STAGES * R::WEIGHT_BYTES;
    auto ask_weights = [&](int step) {
        if (step * S::WK >= mine) return;
        char *to = weights + step % R::STAGES * R::WEIGHT_BYTES;
#pragma unroll
        for (int i = 0; i < 2 * S::LOADS; i++) {
            copy_weights(to + i * MMA_THREADS * 16,
                         from[i / S::LOADS] + (size_t) step * S::WK * SCALE_BLOCK * SIZE +
                             i % S::LOADS * 64);
        }
    };
    struct feed<S> f;
    auto ask_rows = [&](int step) {
        char *to = rows + step % R::STAGES * R::stage_bytes(room);
        int block = begin + step * S::WK;
        if constexpr (XS == 4) mma_stage_f32<S>(to, token_rows, x, x_pitch, m.k, block, end);
        else mma_stage<S>(to, f, x, block, end);
    };
    float total[4] = {}, scale[2]; // scales of the step to come
    auto load_scales = [&](int step) {
        if (step * S::WK >= mine) return;
        scale[0] = __ldg(scales[0] + step * S::WK);
        scale[1] = __ldg(scales[1] + step * S::WK);
    };
    for (int i = 0; i < (early ? R::STAGES - 1 : 1); i++) ask_weights(i);
    load_scales(0);
    before();
    if (XS == 2) feed_init(f, token_rows, x_pitch);
    for (int i = 0; i < R::STAGES - 1; i++) { // each is a group of copies
        if (!early && i > 0) ask_weights(i);
        ask_rows(i);
    }
    int token = g < room ? g : 0; // the sums of others mean nothing
    for (int step = 0; step < n_steps; step++) {
        copy_wait<R::STAGES - 2>();
        __syncthreads();
        ask_weights(step + R::STAGES - 1);
        ask_rows(step + R::STAGES - 1);
        float s0 = scale[0], s1 = scale[1];
        load_scales(step + 1);
        if (step * S::WK >= mine) continue;
        int stage = step % R::STAGES;
        uint4 w[2][S::LOADS];
#pragma unroll
        for (int i = 0; i < 2 * S::LOADS; i++) {
            w[i / S::LOADS][i % S::LOADS] =
                *(const uint4 *) (weights + stage * R::WEIGHT_BYTES + i * MMA_THREADS * 16);
        }
        const char *tokens = rows + stage * R::stage_bytes(room) + wk * SCALE_BLOCK * XS;
        float acc[1][4] = {};
        mma_block<S, 1, SIZE, XS>(w, tokens, token, acc);
        total[0] = fmaf(acc[0][0], s0, total[0]);
        total[1] = fmaf(acc[0][1], s0, total[1]);
        total[2] = fmaf(acc[0][2], s1, total[2]);
        total[3] = fmaf(acc[0][3], s1, total[3]);
    }
    copy_wait<0>();
    __syncthreads();
    float *sums = (float *) shared + (size_t) wk * S::TOKENS * S::SUM_PITCH + wm * 16 + g;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sums[(size_t) (t * 2 + i % 2) * S::SUM_PITCH + i / 2 * 8] = total[i];
    }
    __syncthreads();
}

#endif
