// The inner loops of inner.h, written once over vec.h. A file that includes this defines INNER, the
// name of its table, and is compiled for the instruction set of that name.
//
// Tiles work on TILE_A x TILE_B pairs so that each loaded vector serves several products; at an
// edge the last row stands in for the missing ones (its results are the same twice), so that every
// sum has the same order in every tile.
#include "kernels/cpu/inner.h"
#include "kernels/cpu/vec.h"

#include "common/kv_block.h"
#include "common/limits.h"

#include <math.h>

#define UNROLL _Pragma("GCC unroll 8")

#if defined(__AVX512F__)
enum { TILE_A = 4, TILE_B = 4 };
#elif defined(__AVX2__)
enum { TILE_A = 3, TILE_B = 4 }; // as many sums as 16 registers leave room for
#else
enum { TILE_A = 2, TILE_B = 4 };
#endif
_Static_assert(KV_BLOCK_ROWS % TILE_B == 0, "a tile of scores stays inside its block");

static inline int at_most(int i, int most) { return i < most ? i : most; }

// sums[i][j] += a_i . b_j, lane by lane.
__attribute__((always_inline)) static inline void tile_add(const float *const a[TILE_A],
                                                           const float *const b[TILE_B], int k,
                                                           vec sums[TILE_A][TILE_B])
{
    int at = 0;
    for (; at + VEC_WIDTH <= k; at += VEC_WIDTH) {
        vec left[TILE_A];
        UNROLL for (int i = 0; i < TILE_A; i++) left[i] = vec_load(a[i] + at);
        UNROLL for (int j = 0; j < TILE_B; j++) {
            vec right = vec_load(b[j] + at);
            UNROLL for (int i = 0; i < TILE_A; i++) {
                sums[i][j] = vec_fma(left[i], right, sums[i][j]);
            }
        }
    }
    if (at == k) return;
    UNROLL for (int i = 0; i < TILE_A; i++) {
        vec left = vec_load_n(a[i] + at, k - at);
        UNROLL for (int j = 0; j < TILE_B; j++) {
            sums[i][j] = vec_fma(left, vec_load_n(b[j] + at, k - at), sums[i][j]);
        }
    }
}

static void dots(const float *a, size_t a_stride, int n_a, const float *b, size_t b_stride, int n_b,
                 int k, float *out, size_t out_stride)
{
    for (int row = 0; row < n_a; row += TILE_A) {
        for (int column = 0; column < n_b; column += TILE_B) {
            const float *left[TILE_A], *right[TILE_B];
            vec sums[TILE_A][TILE_B] = {0};
            for (int i = 0; i < TILE_A; i++) left[i] = a + a_stride * at_most(row + i, n_a - 1);
            for (int j = 0; j < TILE_B; j++) right[j] = b + b_stride * at_most(column + j, n_b - 1);
            tile_add(left, right, k, sums);
            for (int i = 0; i < TILE_A && row + i < n_a; i++) {
                for (int j = 0; j < TILE_B && column + j < n_b; j++) {
                    out[out_stride * (row + i) + column + j] = vec_sum(sums[i][j]);
                }
            }
        }
    }
}

static inline vec silu_times(vec gate, vec up)
{
    return gate / (vec_all(1.0f) + vec_exp(-gate)) * up;
}

static void swiglu(const float *gate, const float *up, float *out, size_t n)
{
    size_t i = 0;
    for (; i + VEC_WIDTH <= n; i += VEC_WIDTH) {
        vec_store(out + i, silu_times(vec_load(gate + i), vec_load(up + i)));
    }
    int left = (int) (n - i);
    if (left > 0) {
        vec last = silu_times(vec_load_n(gate + i, left), vec_load_n(up + i, left));
        vec_store_n(out + i, last, left);
    }
}

// A KV block in f32: `rows` of it, kv_lora + rope values each.
struct block {
    const float *data;
    int rows;
};

// n values at `from` by `scale` into `to`; each is e4m3.
static void widen_e4m3(float *to, const uint8_t *from, int n, float scale)
{
    vec by = vec_all(scale * 0x1p120f); // bits moved to where f32 has them are 2^-120 of the value
    int i = 0;
    for (; i + VEC_WIDTH <= n; i += VEC_WIDTH) {
        vec_store(to + i, vec_moved_e4m3(from + i) * by);
    }
    if (i == n) return;
    uint8_t last[VEC_WIDTH] = {0};
    memcpy(last, from + i, (size_t) (n - i));
    vec_store_n(to + i, vec_moved_e4m3(last) * by, n - i);
}

static void widen_bf16(float *to, const uint16_t *from, size_t n)
{
    size_t i = 0;
    for (; i + VEC_WIDTH <= n; i += VEC_WIDTH) vec_store(to + i, vec_load_bf16(from + i));
    if (i == n) return;
    uint16_t last[VEC_WIDTH] = {0};
    memcpy(last, from + i, (n - i) * sizeof *last);
    vec_store_n(to + i, vec_load_bf16(last), (int) (n - i));
}

// The first rows of a block (common/kv_block.h).
static void widen_fp8(float *to, const struct attention_shape *a, const char *block, int rows)
{
    struct kv_block shape = kv_block_fp8(a->kv_lora, a->rope);
    for (int row = 0; row < rows; row++, to += a->kv_lora + a->rope) {
        const uint8_t *latent = (const uint8_t *) block + (size_t) row * a->kv_lora;
        const uint16_t *key = (const uint16_t *) (const void *) (block + shape.rope);
        const float *scales = (const float *) (const void *) (block + shape.scales);
        for (int k = 0; k < shape.n_scales; k++) {
            int i = k * KV_SCALE_VALUES;
            widen_e4m3(to + i, latent + i, at_most(a->kv_lora - i, KV_SCALE_VALUES),
                       scales[row * shape.n_scales + k]);
        }
        widen_bf16(to + a->kv_lora, key + (size_t) row * a->rope, (size_t) a->rope);
    }
}

static struct block attend_block(const struct attend *t, int index)
{
    int id = t->blocks[index];
    check(id >= 0 && id < t->kv->n_blocks, "KV block %d of %d", id, t->kv->n_blocks);
    size_t width = (size_t) (t->shape->kv_lora + t->shape->rope);
    size_t first = (size_t) id * KV_BLOCK_ROWS * width;
    struct block block = {.rows = at_most(t->n_rows - index * KV_BLOCK_ROWS, KV_BLOCK_ROWS)};
    block.data = t->tile;
    if (t->kv->fp8) {
        uint64_t bytes = kv_block_fp8(t->shape->kv_lora, t->shape->rope).bytes;
        widen_fp8(t->tile, t->shape, (const char *) t->kv->pool + (size_t) id * bytes, block.rows);
    } else if (t->precision == PRECISION_F32) {
        block.data = (const float *) t->kv->pool + first;
    } else {
        widen_bf16(t->tile, (const uint16_t *) t->kv->pool + first, (size_t) block.rows * width);
    }
    return block;
}

// scores[head][row] = scale * (q_abs . latent + q_pe . k_pe) for the block's rows.
static void attend_scores(const struct attend *t, struct block block,
                          float scores[ATTEND_HEADS_MAX][KV_BLOCK_ROWS])
{
    int lora = t->shape->kv_lora, rope = t->shape->rope;
    for (int row = 0; row < block.rows; row += TILE_B) {
        const float *latent[TILE_B], *k_pe[TILE_B];
        for (int j = 0; j < TILE_B; j++) {
            latent[j] = block.data + (size_t) at_most(row + j, block.rows - 1) * (lora + rope);
            k_pe[j] = latent[j] + lora;
        }
        for (int head = 0; head < t->n_heads; head += TILE_A) {
            const float *q_abs[TILE_A], *q_pe[TILE_A];
            for (int i = 0; i < TILE_A; i++) {
                size_t h = (size_t) at_most(head + i, t->n_heads - 1);
                q_abs[i] = t->q_abs + h * lora;
                q_pe[i] = t->q_pe + h * t->q_pe_stride;
            }
            vec sums[TILE_A][TILE_B] = {0};
            tile_add(q_abs, latent, lora, sums);
            tile_add(q_pe, k_pe, rope, sums);
            for (int i = 0; i < TILE_A && head + i < t->n_heads; i++) {
                for (int j = 0; j < TILE_B; j++) { // behind the last row: overwritten by softmax
                    scores[head + i][row + j] = vec_sum(sums[i][j]) * t->shape->softmax_scale;
                }
            }
        }
    }
}

// The running softmax of one head.
struct softmax {
    float highest, sum;
};

// Turns a block's scores into exp(score - highest so far), zeros behind `rows`; returns the factor
// by which what was summed before shrinks.
static float softmax_block(struct softmax *s, float scores[KV_BLOCK_ROWS], int rows, bool first)
{
    for (int i = rows; i < KV_BLOCK_ROWS; i++) scores[i] = -INFINITY;
    vec most = vec_load(scores);
    for (int i = VEC_WIDTH; i < KV_BLOCK_ROWS; i += VEC_WIDTH) {
        most = vec_max(most, vec_load(scores + i));
    }
    float lanes[VEC_WIDTH], highest = first ? -INFINITY : s->highest;
    vec_store(lanes, most);
    for (int i = 0; i < VEC_WIDTH; i++) highest = lanes[i] > highest ? lanes[i] : highest;
    vec sum = vec_zero();
    for (int i = 0; i < KV_BLOCK_ROWS; i += VEC_WIDTH) {
        vec p = vec_exp(vec_load(scores + i) - vec_all(highest));
        vec_store(scores + i, p);
        sum = sum + p;
    }
    float shrink = first ? 0.0f : expf(s->highest - highest);
    s->sum = (first ? 0.0f : s->sum * shrink) + vec_sum(sum);
    s->highest = highest;
    return shrink;
}

// out[head] = out[head] * shrink[head] + sum over the block's rows of p[head][row] * latent[row],
// for TILE_A heads and TILE_B vectors of columns from `column`.
__attribute__((always_inline)) static inline void
attend_tile(const struct attend *t, struct block block, const int heads[TILE_A],
            const int columns[TILE_B], int n, float p[ATTEND_HEADS_MAX][KV_BLOCK_ROWS],
            const float shrink[ATTEND_HEADS_MAX], bool first)
{
    size_t lora = (size_t) t->shape->kv_lora, width = lora + (size_t) t->shape->rope;
    vec sums[TILE_A][TILE_B];
    UNROLL for (int i = 0; i < TILE_A; i++) {
        UNROLL for (int j = 0; j < TILE_B; j++) {
            const float *out = t->out + (size_t) heads[i] * lora + columns[j];
            if (first) sums[i][j] = vec_zero();
            else sums[i][j] = vec_load_n(out, n) * vec_all(shrink[heads[i]]);
        }
    }
    for (int row = 0; row < block.rows; row++) {
        const float *latent = block.data + (size_t) row * width;
        vec right[TILE_B];
        UNROLL for (int j = 0; j < TILE_B; j++) {
            right[j] = n == VEC_WIDTH ? vec_load(latent + columns[j])
                                      : vec_load_n(latent + columns[j], n);
        }
        UNROLL for (int i = 0; i < TILE_A; i++) {
            vec weight = vec_all(p[heads[i]][row]);
            UNROLL for (int j = 0; j < TILE_B; j++) {
                sums[i][j] = vec_fma(weight, right[j], sums[i][j]);
            }
        }
    }
    UNROLL for (int i = 0; i < TILE_A; i++) {
        UNROLL for (int j = 0; j < TILE_B; j++) {
            vec_store_n(t->out + (size_t) heads[i] * lora + columns[j], sums[i][j], n);
        }
    }
}

static void attend_values(const struct attend *t, struct block block,
                          float p[ATTEND_HEADS_MAX][KV_BLOCK_ROWS],
                          const float shrink[ATTEND_HEADS_MAX], bool first)
{
    int lora = t->shape->kv_lora, whole = lora / VEC_WIDTH * VEC_WIDTH;
    for (int column = 0; column < lora; column += TILE_B * VEC_WIDTH) {
        for (int head = 0; head < t->n_heads; head += TILE_A) {
            int heads[TILE_A], columns[TILE_B];
            for (int i = 0; i < TILE_A; i++) heads[i] = at_most(head + i, t->n_heads - 1);
            if (column < whole) {
                for (int j = 0; j < TILE_B; j++) {
                    columns[j] = at_most(column + j * VEC_WIDTH, whole - VEC_WIDTH);
                }
                attend_tile(t, block, heads, columns, VEC_WIDTH, p, shrink, first);
            }
            if (whole < lora && column + TILE_B * VEC_WIDTH > whole) {
                for (int j = 0; j < TILE_B; j++) columns[j] = whole;
                attend_tile(t, block, heads, columns, lora - whole, p, shrink, first);
            }
        }
    }
}

static void attend(const struct attend *t)
{
    float scores[ATTEND_HEADS_MAX][KV_BLOCK_ROWS], shrink[ATTEND_HEADS_MAX];
    struct softmax softmax[ATTEND_HEADS_MAX];
    for (int index = 0; index * KV_BLOCK_ROWS < t->n_rows; index++) {
        struct block block = attend_block(t, index);
        attend_scores(t, block, scores);
        for (int h = 0; h < t->n_heads; h++) {
            shrink[h] = softmax_block(&softmax[h], scores[h], block.rows, index == 0);
        }
        attend_values(t, block, scores, shrink, index == 0);
    }
    for (int h = 0; h < t->n_heads; h++) {
        float *out = t->out + (size_t) h * t->shape->kv_lora;
        for (int i = 0; i < t->shape->kv_lora; i++) out[i] /= softmax[h].sum;
    }
}

const struct inner INNER = {.dots = dots, .swiglu = swiglu, .attend = attend};
