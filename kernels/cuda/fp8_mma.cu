// The product of rows in FP8 with one matrix where there is no Hopper: mma.sync m16n8k32 of e4m3,
// 64 tokens x 32 outputs a warp, 128 x 128 a block of threads, both sides in shared memory two or
// three blocks of 128 inputs ahead, rows of 128 bytes, their 16-byte pieces swizzled by row.
#include "kernels/cuda/fp8.cuh"

enum {
    TILE = SCALE_BLOCK, // tokens, and outputs, of a block of threads
    STAGES = 3,
    SIDE_BYTES = TILE * SCALE_BLOCK,
    STAGE_BYTES = 2 * SIDE_BYTES,
    SCALE_BYTES = TILE * 4,
    SCALE_STAGES = STAGES + 1, // a block's scales are read when its stage is already another's
    BYTES = STAGES * STAGE_BYTES + SCALE_STAGES * SCALE_BYTES,
    WARP_TOKENS = 64,
    WARP_OUTPUTS = 32,
    STEPS = 4, // of 32 inputs, in a block
    ROUNDS = TILE * 8 / MMA_THREADS, // of a side's 16-byte pieces
};
static_assert(BYTES <= 99 * 1024, "what sm_89 gives a block");

struct mma_call {
    struct mat w;
    struct fp8_rows x;
    int n_rows;
    float *out;
    size_t out_stride;
    bool fours; // outputs may be written four at a time
};

static __device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const char *from)
{
    uint32_t at = (uint32_t) __cvta_generic_to_shared(from);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}

#if __CUDA_ARCH__ == 890

// The operands of the instructions: as they are.
enum { PARTS = 1 };
struct rows_part {
    uint32_t of[4];
};
struct outputs_part {
    uint32_t of[2];
};

static __device__ __forceinline__ struct rows_part rows_from(const uint32_t (&a)[4])
{
    return {{a[0], a[1], a[2], a[3]}};
}

static __device__ __forceinline__ struct outputs_part outputs_from(uint32_t b0, uint32_t b1)
{
    return {{b0, b1}};
}

static __device__ __forceinline__ void mma_fp8(float (&c)[4], const struct rows_part &a,
                                               const struct outputs_part &b, int)
{
    asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, "
        "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.of[0]), "r"(a.of[1]), "r"(a.of[2]), "r"(a.of[3]), "r"(b.of[0]), "r"(b.of[1]));
}

#else

// Hopper has no such instruction: in f16, exactly, and two steps of 16 inputs. Which inputs those
// are is the same for both sides, so no sum shows it.
enum { PARTS = 2 };
struct rows_part {
    uint32_t of[PARTS][4];
};
struct outputs_part {
    uint32_t of[PARTS][2];
};

// The lower and the upper two of four e4m3.
static __device__ __forceinline__ void to_halves(uint32_t bytes, uint32_t *low, uint32_t *high)
{
    asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.rn.f16x2.e4m3x2 %0, l;\n"
        "cvt.rn.f16x2.e4m3x2 %1, h;\n}\n" : "=r"(*low), "=r"(*high) : "r"(bytes));
}

static __device__ __forceinline__ struct rows_part rows_from(const uint32_t (&a)[4])
{
    struct rows_part p;
#pragma unroll
    for (int i = 0; i < 4; i++) to_halves(a[i], &p.of[i / 2][i % 2], &p.of[i / 2][i % 2 + 2]);
    return p;
}

static __device__ __forceinline__ struct outputs_part outputs_from(uint32_t b0, uint32_t b1)
{
    struct outputs_part p;
    to_halves(b0, &p.of[0][0], &p.of[0][1]);
    to_halves(b1, &p.of[1][0], &p.of[1][1]);
    return p;
}

static __device__ __forceinline__ void mma_fp8(float (&c)[4], const struct rows_part &a,
                                               const struct outputs_part &b, int part)
{
    const uint32_t *x = a.of[part], *w = b.of[part];
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
        "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(w[0]), "r"(w[1]));
}

#endif

// What a warp has of a step: of tokens 16 rows a matrix, of outputs 16, as ldmatrix leaves them.
struct step {
    uint32_t rows[WARP_TOKENS / 16][4], outputs[WARP_OUTPUTS / 16][4];
};

// Which row and piece of a side the lane points ldmatrix at: of tokens 16 rows by 2 pieces, of
// outputs 2 pieces by 16 rows.
static __device__ __forceinline__ void load_step(struct step &s, const char *stage, int token,
                                                 int n, int at)
{
    int lane = threadIdx.x % WARP;
    int row = token + lane % 16, piece = at * 2 + lane / 16;
    const char *w = stage + SIDE_BYTES;
#pragma unroll
    for (int i = 0; i < WARP_TOKENS / 16; i++) {
        load_matrices(s.rows[i], stage + (row + i * 16) * SCALE_BLOCK + (piece ^ row % 8) * 16);
    }
    row = n + lane / 16 * 8 + lane % 8, piece = at * 2 + lane / 8 % 2;
#pragma unroll
    for (int i = 0; i < WARP_OUTPUTS / 16; i++) {
        load_matrices(s.outputs[i], w + (row + i * 16) * SCALE_BLOCK + (piece ^ row % 8) * 16);
    }
}

// Products that add to the same sums stand apart.
static __device__ __forceinline__ void multiply(float (&acc)[4][4][4], const struct step &s)
{
    struct outputs_part outputs[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        outputs[i] = outputs_from(s.outputs[i / 2][i % 2 * 2], s.outputs[i / 2][i % 2 * 2 + 1]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        struct rows_part rows = rows_from(s.rows[i]);
#pragma unroll
        for (int j = 0; j < PARTS * 4; j++) mma_fp8(acc[i][j % 4], rows, outputs[j % 4], j / 4);
    }
}

// Grid: tiles of tokens, tiles of outputs. A step is loaded while the one before is multiplied; at
// a block's last step its stage has been read by all and is given to the block STAGES ahead.
static __global__ void __launch_bounds__(MMA_THREADS, 1)
fp8_mma(const __grid_constant__ struct mma_call c)
{
    extern __shared__ __align__(128) char shared[];
    int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4;
    int token0 = blockIdx.x * TILE, n0 = blockIdx.y * TILE - c.w.row_phase;
    int blocks = mat_blocks(c.w.col_phase, c.w.k);
    // What the thread brings of each side: the same piece of rows 32 apart, beyond the edges again
    // the last row.
    int piece = threadIdx.x % 8, row0 = threadIdx.x / 8;
    int to = row0 * SCALE_BLOCK + (piece ^ row0 % 8) * 16;
    uint32_t x_from[ROUNDS], w_from[ROUNDS]; // rows
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
        int token = token0 + row0 + i * (MMA_THREADS / 8), n = n0 + row0 + i * (MMA_THREADS / 8);
        x_from[i] = token < c.n_rows ? token : c.n_rows - 1;
        w_from[i] = n < 0 ? 0 : n < c.w.n ? n : c.w.n - 1;
    }
    char *scales = shared + STAGES * STAGE_BYTES;
    auto bring = [&](int block) {
        if (block < blocks) {
            char *stage = shared + block % STAGES * STAGE_BYTES;
            const uint8_t *x = c.x.rows + (size_t) block * SCALE_BLOCK + piece * 16;
            const uint8_t *w = c.w.rows + (size_t) block * SCALE_BLOCK + piece * 16;
#pragma unroll
            for (int i = 0; i < ROUNDS; i++) {
                char *at = stage + to + i * (MMA_THREADS / 8) * SCALE_BLOCK;
                copy_async(at, x + (size_t) x_from[i] * c.x.pitch);
                copy_async(at + SIDE_BYTES, w + (size_t) w_from[i] * blocks * SCALE_BLOCK);
            }
            if (threadIdx.x < TILE / 4) { // scales of padding rows are there
                copy_async(scales + block % SCALE_STAGES * SCALE_BYTES + threadIdx.x * 16,
                           c.x.scales + block * c.x.scale_pitch + token0 + threadIdx.x * 4);
            }
        }
        copy_commit();
    };
    int token = warp % 2 * WARP_TOKENS, n = warp / 2 * WARP_OUTPUTS;
    float total[4][4][4] = {};
    const float *w_scales = c.w.scales + (size_t) blockIdx.y * blocks;
    struct step steps[2];
#pragma unroll
    for (int i = 0; i < STAGES; i++) bring(i);
    copy_wait<STAGES - 1>();
    __syncthreads();
    load_step(steps[0], shared, token, n, 0);
    for (int block = 0; block < blocks; block++) {
        float w_scale = __ldg(w_scales + block);
        float acc[4][4][4] = {};
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            if (i == STEPS - 1) {
                copy_wait<STAGES - 2>();
                __syncthreads();
                bring(block + STAGES);
            }
            int at = block + (i + 1) / STEPS; // beyond the last block: whatever is there
            load_step(steps[(i + 1) % 2], shared + at % STAGES * STAGE_BYTES, token, n,
                      (i + 1) % STEPS);
            multiply(acc, steps[i % 2]);
        }
        const float *x_scales =
            (const float *) (scales + block % SCALE_STAGES * SCALE_BYTES) + token + g;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float s0 = x_scales[i * 16] * w_scale, s1 = x_scales[i * 16 + 8] * w_scale;
#pragma unroll
            for (int j = 0; j < 16; j++) {
                total[i][j / 4][j % 4] = fmaf(acc[i][j / 4][j % 4], j % 4 < 2 ? s0 : s1,
                                              total[i][j / 4][j % 4]);
            }
        }
    }
    bool whole = c.fours && n0 >= 0 && n0 + TILE <= c.w.n;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        int row = token0 + token + i / 4 * 16 + i / 2 % 2 * 8 + g;
        const float *a = &total[i / 4][i % 2 * 2][i / 2 % 2 * 2];
        float4 v = fp8_fours(make_float2(a[0], a[1]), make_float2(a[4], a[5]));
        if (row >= c.n_rows) continue;
        fp8_put(c.out + (size_t) row * c.out_stride, n0 + n + i % 2 * 16 + fp8_fours_at(), c.w.n,
                whole, v);
    }
}

void fp8_mma_gemm(struct device *d, const struct mat *w, const struct fp8_rows *x, int n_rows,
                  float *out, size_t out_stride)
{
    struct mma_call c = {*w, *x, n_rows, out, out_stride, fp8_by_fours(w, out, out_stride)};
    dim3 grid((unsigned) ceil_div((uint64_t) n_rows, TILE),
              (unsigned) mat_blocks(w->row_phase, w->n));
    device_allow(d, (const void *) fp8_mma, BYTES, "gemm");
    fp8_mma<<<grid, MMA_THREADS, BYTES, d->stream>>>(c);
    device_launched(d, "gemm");
}
