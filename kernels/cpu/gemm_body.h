// The inner loops of gemm.h, written once over vec.h. A file that includes this defines GEMM_INNER,
// the name of its table, and GEMM_PAIRS if one multiply-add takes two values of k in bf16
// (vdpbf16ps); it is compiled for the instruction set of that name.
//
// Two regimes, the same sums: with few rows weights are widened in registers each time they are
// read (`stream`); with more, a part of a panel is widened once into the tile and multiplied from
// there. A unit is what one multiply-add takes of an activation row: a float, or a pair of bf16.
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/vec.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define UNROLL // a sanitizer's checks, unrolled, take minutes to compile
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE __attribute__((always_inline)) static inline

#ifdef GEMM_PAIRS
enum { STEP = 2 };
#else
enum { STEP = 1 };
#endif

enum {
    UNITS = SCALE_BLOCK / STEP, // of a block
    STREAM_ROWS = 4,            // up to so many rows are streamed
    // Sums of `stream` and of `multiply`: what the registers have room for.
#if defined(__AVX512F__)
    STREAM_SUMS = 16,
    TILE_ROWS = 12,
    TILE_VECS = 2,
#elif defined(__AVX2__)
    STREAM_SUMS = 8,
    TILE_ROWS = 6,
    TILE_VECS = 2,
#else
    STREAM_SUMS = 8,
    TILE_ROWS = 4,
    TILE_VECS = 2,
#endif
    VECS = PANEL / VEC_WIDTH,
    TILE_WIDTH = TILE_VECS * VEC_WIDTH,
};
_Static_assert(UNITS * TILE_WIDTH <= TILE_FLOATS, "the tile has room");

// How many units a group has.
INLINE int group_units(enum dtype dtype)
{
    return (dtype == DTYPE_F8_E4M3 ? 4 : dtype == DTYPE_BF16 ? 2 : 1) / STEP;
}

// A block of the panel: groups of weights, units of the rows, and where its scales are.
struct block {
    const char *groups;
    int n_groups, index;
    const float *x; // (rows, UNITS), from the first group's unit on
};

static inline const float *block_row(const struct gemm_panel *p, const struct block *b, int row)
{
    int from = p->rows == NULL ? row : p->rows[row];
    return b->x + (size_t) from * UNITS;
}

#ifdef GEMM_PAIRS

typedef union {
    uint8_t bytes[128];
    __m512i halves[2];
} byte_table;

// The two bytes of a bf16 by the lower 7 bits of an e4m3: 2^(e-7) (1 + m/8), below that m 2^-9.
#define HIGH(e, m) ((uint8_t) (((e) + 120) >> 1))
#define LOW(e, m) ((uint8_t) ((((e) + 120) & 1) << 7 | (m) << 4))
#define EIGHT(B, e) B(e, 0), B(e, 1), B(e, 2), B(e, 3), B(e, 4), B(e, 5), B(e, 6), B(e, 7)
#define NORMAL(B)                                                                                  \
    EIGHT(B, 1), EIGHT(B, 2), EIGHT(B, 3), EIGHT(B, 4), EIGHT(B, 5), EIGHT(B, 6), EIGHT(B, 7),     \
        EIGHT(B, 8), EIGHT(B, 9), EIGHT(B, 10), EIGHT(B, 11), EIGHT(B, 12), EIGHT(B, 13),          \
        EIGHT(B, 14), EIGHT(B, 15)
#define SUBNORMAL(B) 0, B(-2, 0), B(-1, 0), B(-1, 4), B(0, 0), B(0, 2), B(0, 4), B(0, 6)
static const byte_table high_bytes = {{SUBNORMAL(HIGH), NORMAL(HIGH)}};
static const byte_table low_bytes = {{SUBNORMAL(LOW), NORMAL(LOW)}};

INLINE vec multiply_add(vec w, vec x, vec sum)
{
    return _mm512_dpbf16_ps(sum, (__m512bh) w, (__m512bh) x);
}

// Unit `u` of a vector of dwords.
INLINE vec unit(enum dtype dtype, vec_bits v, int u)
{
    if (dtype == DTYPE_BF16) return (vec) v;
    const vec_bits even = vec_all_bits(0x00ff00ff), signs = vec_all_bits(0x80808080);
    __m512i index = (__m512i) v; // the tables' lookup ignores the sign
    vec_bits low = (vec_bits) _mm512_permutex2var_epi8(low_bytes.halves[0], index,
                                                       low_bytes.halves[1]);
    vec_bits high = (vec_bits) _mm512_permutex2var_epi8(high_bytes.halves[0], index,
                                                        high_bytes.halves[1]);
    high |= v & signs;
    if (u == 0) return (vec) ((low & even) | (high << 8 & ~even));
    return (vec) ((low >> 8 & even) | (high & ~even));
}

#else

INLINE vec multiply_add(vec w, vec x, vec sum) { return vec_fma(w, x, sum); }

// Unit `u` of a vector of dwords. FP8: exponent and mantissa go to where f32 has them, the sign
// stays above: 2^-120 of the value, subnormals included. GEMM_F8_FACTOR makes up for it.
INLINE vec unit(enum dtype dtype, vec_bits v, int u)
{
    if (dtype == DTYPE_F32) return (vec) v;
    if (dtype == DTYPE_BF16) return (vec) (u == 0 ? v << 16 : v & vec_all_bits(0xffff0000));
    vec_bits half = (vec_bits) ((vec_shorts) (u < 2 ? v << 8 : v) >> 4);
    return (vec) ((u % 2 == 0 ? half << 16 : half) & vec_all_bits(0x87f00000));
}

#endif

INLINE vec_bits load_group(const char *from)
{
    return (vec_bits) vec_load((const float *) (const void *) from);
}

// What sums of decoded products are multiplied with, for the vector of outputs from `lane` on.
__attribute__((noinline)) static vec block_scale(const struct gemm_panel *p, int index, int lane)
{
    if (p->scales[0] == NULL) return vec_all(1.0f);
    float factor = STEP == 2 ? 1.0f : 0x1p120f / GEMM_F8_FACTOR;
    float below = p->scales[0][index] * factor, above = p->scales[1][index] * factor;
    if (lane + VEC_WIDTH <= p->split) return vec_all(below);
    if (lane >= p->split) return vec_all(above);
    float each[VEC_WIDTH];
    for (int i = 0; i < VEC_WIDTH; i++) each[i] = lane + i < p->split ? below : above;
    return vec_load(each);
}

// Adds sums, scaled, to the outputs of row `row` from `lane` on.
INLINE void add_scaled(const struct gemm_panel *p, int row, int lane, int vecs, const vec *sums,
                       const vec *scales)
{
    float *out = p->out + (size_t) row * PANEL + lane;
    UNROLL for (int v = 0; v < vecs; v++) {
        vec_store(out + v * VEC_WIDTH, vec_fma(sums[v], scales[v], vec_load(out + v * VEC_WIDTH)));
    }
}

// Asks for the dwords of `vecs` vectors one block ahead: narrow columns of a block are no pattern
// that the hardware sees.
INLINE void ask_ahead(enum dtype dtype, const char *group, int vecs)
{
    int ahead = SCALE_BLOCK / (group_units(dtype) * STEP) * GROUP_BYTES, line = 64;
    UNROLL for (int at = 0; at < vecs * VEC_WIDTH * 4; at += line) {
        __builtin_prefetch(group + ahead + at, 0, 2);
    }
}

// --- few rows

// The group's products. With one or two rows vector by vector, which keeps the rows' units in
// registers; with more all vectors of a unit, which reads each row's unit once.
INLINE void stream_group(enum dtype dtype, const char *group, const float *const x[STREAM_ROWS],
                         int at, int rows, int vecs, vec sums[STREAM_ROWS][STREAM_SUMS])
{
    int together = rows > 2 ? vecs : 1, units = group_units(dtype);
    UNROLL for (int first = 0; first < vecs; first += together) {
        vec_bits dwords[STREAM_SUMS];
        UNROLL for (int v = 0; v < together; v++) {
            dwords[v] = load_group(group + (size_t) (first + v) * VEC_WIDTH * 4);
        }
        UNROLL for (int u = 0; u < units; u++) {
            vec w[STREAM_SUMS];
            UNROLL for (int v = 0; v < together; v++) w[v] = unit(dtype, dwords[v], u);
            UNROLL for (int r = 0; r < rows; r++) {
                vec left = vec_all(x[r][at + u]);
                UNROLL for (int v = 0; v < together; v++) {
                    sums[r][first + v] = multiply_add(w[v], left, sums[r][first + v]);
                }
            }
        }
    }
}

INLINE void stream(const struct gemm_panel *p, const struct block *b, enum dtype dtype, int rows)
{
    int vecs = STREAM_SUMS / rows < VECS ? STREAM_SUMS / rows : VECS, units = group_units(dtype);
    const float *x[STREAM_ROWS];
    for (int r = 0; r < rows; r++) x[r] = block_row(p, b, r);
    for (int lane = 0; lane < PANEL; lane += vecs * VEC_WIDTH) {
        vec sums[STREAM_ROWS][STREAM_SUMS];
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int v = 0; v < vecs; v++) sums[r][v] = vec_zero();
        }
        const char *group = b->groups + (size_t) lane * 4;
        for (int g = 0; g < b->n_groups; g++, group += GROUP_BYTES) {
            ask_ahead(dtype, group, vecs);
            stream_group(dtype, group, x, g * units, rows, vecs, sums);
        }
        vec scales[STREAM_SUMS];
        for (int v = 0; v < vecs; v++) scales[v] = block_scale(p, b->index, lane + v * VEC_WIDTH);
        UNROLL for (int r = 0; r < rows; r++) add_scaled(p, r, lane, vecs, sums[r], scales);
    }
}

INLINE void stream_rows(const struct gemm_panel *p, const struct block *b, enum dtype dtype)
{
    if (p->n_rows == 1) stream(p, b, dtype, 1);
    else if (p->n_rows == 2) stream(p, b, dtype, 2);
    else if (p->n_rows == 3) stream(p, b, dtype, 3);
    else stream(p, b, dtype, STREAM_ROWS);
}

// --- more rows

// Widens the outputs [lane, lane + TILE_WIDTH) into the tile (units, TILE_WIDTH), which stays in
// the first cache while all rows use it.
INLINE void widen_tile(const struct gemm_panel *p, const struct block *b, enum dtype dtype,
                       int lane)
{
    int units = group_units(dtype);
    const char *group = b->groups + (size_t) lane * 4;
    float *to = p->tile;
    for (int g = 0; g < b->n_groups; g++, group += GROUP_BYTES, to += units * TILE_WIDTH) {
        ask_ahead(dtype, group, TILE_VECS);
        UNROLL for (int v = 0; v < TILE_VECS; v++) {
            vec_bits dwords = load_group(group + v * VEC_WIDTH * 4);
            UNROLL for (int u = 0; u < units; u++) {
                vec_store(to + u * TILE_WIDTH + v * VEC_WIDTH, unit(dtype, dwords, u));
            }
        }
    }
}

// `n` rows in a loop for `rows` of them: the last stands in for the missing ones.
INLINE void multiply(const struct gemm_panel *p, const struct block *b, int n_units, int first,
                     int rows, int n, int lane)
{
    const float *x[TILE_ROWS], *w = p->tile;
    vec sums[TILE_ROWS][TILE_VECS], scales[TILE_VECS];
    for (int v = 0; v < TILE_VECS; v++) scales[v] = block_scale(p, b->index, lane + v * VEC_WIDTH);
    UNROLL for (int r = 0; r < rows; r++) {
        x[r] = block_row(p, b, first + (r < n ? r : n - 1));
        UNROLL for (int v = 0; v < TILE_VECS; v++) sums[r][v] = vec_zero();
    }
    for (int u = 0; u < n_units; u++, w += TILE_WIDTH) {
        vec right[TILE_VECS];
        UNROLL for (int v = 0; v < TILE_VECS; v++) right[v] = vec_load(w + v * VEC_WIDTH);
        UNROLL for (int r = 0; r < rows; r++) {
            vec left = vec_all(x[r][u]);
            UNROLL for (int v = 0; v < TILE_VECS; v++) {
                sums[r][v] = multiply_add(right[v], left, sums[r][v]);
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        if (r == n) return;
        add_scaled(p, first + r, lane, TILE_VECS, sums[r], scales);
    }
}

static void multiply_rows(const struct gemm_panel *p, const struct block *b, int n_units, int lane)
{
    enum { HALF = TILE_ROWS > 8 ? 8 : TILE_ROWS };
    for (int row = 0; row < p->n_rows; row += TILE_ROWS) {
        int n = p->n_rows - row;
        if (n >= TILE_ROWS) multiply(p, b, n_units, row, TILE_ROWS, TILE_ROWS, lane);
        else if (n > HALF) multiply(p, b, n_units, row, TILE_ROWS, n, lane);
        else if (n > 4) multiply(p, b, n_units, row, HALF, n, lane);
        else if (n > 2) multiply(p, b, n_units, row, 4, n, lane);
        else multiply(p, b, n_units, row, 2, n, lane);
    }
}

// --- a panel

INLINE void run_panel(const struct gemm_panel *p, enum dtype dtype)
{
    int group = group_units(dtype) * STEP; // values of k
    struct block b = {.groups = p->groups};
    memset(p->out, 0, (size_t) p->n_rows * PANEL * sizeof *p->out);
    for (int begin = p->begin / group * group; begin < p->end;) {
        int end = (begin / SCALE_BLOCK + 1) * SCALE_BLOCK;
        if (end > p->end) end = (p->end + group - 1) / group * group;
        b.index = begin / SCALE_BLOCK;
        b.n_groups = (end - begin) / group;
        b.x = p->input.data + (size_t) b.index * (size_t) p->input.rows * UNITS +
              begin % SCALE_BLOCK / STEP;
        if (p->n_rows <= STREAM_ROWS) {
            stream_rows(p, &b, dtype);
        } else {
            for (int lane = 0; lane < PANEL; lane += TILE_WIDTH) {
                widen_tile(p, &b, dtype, lane);
                multiply_rows(p, &b, b.n_groups * group_units(dtype), lane);
            }
        }
        b.groups += (size_t) b.n_groups * GROUP_BYTES;
        begin = end;
    }
}

static void panel(const struct gemm_panel *p)
{
    if (p->dtype == DTYPE_F8_E4M3) run_panel(p, DTYPE_F8_E4M3);
    else if (p->dtype == DTYPE_BF16) run_panel(p, DTYPE_BF16);
#ifndef GEMM_PAIRS
    else run_panel(p, DTYPE_F32);
#endif
}

// --- activations

#ifdef GEMM_PAIRS

INLINE void convert(const float *x, int n, enum precision precision, float factor, float *to)
{
    (void) precision;
    (void) factor;
    for (int i = 0; i < n; i++) {
        uint16_t half = bf16_round(x[i]);
        memcpy((char *) to + 2 * i, &half, 2);
    }
}

#else

INLINE vec round_to_bf16(vec x)
{
    vec_bits bits = (vec_bits) x;
    vec_bits rounded = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    return vec_select(x == x, (vec) rounded, (vec) (bits | 0x400000));
}

INLINE void convert(const float *x, int n, enum precision precision, float factor, float *to)
{
    for (int i = 0; i < n; i += VEC_WIDTH) {
        int left = n - i < VEC_WIDTH ? n - i : VEC_WIDTH;
        vec v = left == VEC_WIDTH ? vec_load(x + i) : vec_load_n(x + i, left);
        if (precision == PRECISION_BF16) v = round_to_bf16(v);
        v = v * vec_all(factor);
        if (left == VEC_WIDTH) vec_store(to + i, v);
        else vec_store_n(to + i, v, left);
    }
}

#endif

static void prepare(const float *x, int begin, int end, enum precision precision, float factor,
                    struct gemm_input input, int row)
{
    for (int at = 0; at < end; at += SCALE_BLOCK) {
        float *to = input.data + ((size_t) (at / SCALE_BLOCK) * input.rows + row) * UNITS;
        int first = begin > at ? begin - at : 0; // the first block may begin before the slice
        int last = end - at < SCALE_BLOCK ? end - at : SCALE_BLOCK;
        if (last - first < SCALE_BLOCK) memset(to, 0, UNITS * sizeof *to);
        convert(x + (at + first - begin), last - first, precision, factor,
                (float *) (void *) ((char *) to + first * (4 / STEP)));
    }
}

const struct gemm_inner GEMM_INNER = {.step = STEP, .prepare = prepare, .panel = panel};
