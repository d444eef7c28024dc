#include "common/cuda_sizes.h"

#include "common/kv_block.h"

// Of the rows that a product rounds at once, if one fits (4,096 of a dense layer's 18,432 do in
// FP8, with scales); of the experts' outputs of all pairs, if a block of columns fits.
static const uint64_t INPUT_BYTES_MAX = 80 * MIB, OUTPUT_BYTES_MAX = 64 * MIB;
enum { NAN_ALIGN = 256, HALF_BYTES = 2 };

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }
static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

static uint64_t blocks_of(uint64_t values) { return (values + SCALE_BLOCK - 1) / SCALE_BLOCK; }

int cuda_phase(const struct matrix_shape *m)
{
    return m->dtype == DTYPE_F8_E4M3 ? m->col_phase : 0;
}

uint64_t cuda_pitch(const struct matrix_shape *m)
{
    return blocks_of((uint64_t) (cuda_phase(m) + m->k)) * SCALE_BLOCK * dtype_size(m->dtype);
}

uint64_t cuda_nan_bytes(const struct matrix_shape *m)
{
    if (m->dtype != DTYPE_F8_E4M3) return 0;
    return ((uint64_t) m->n + NAN_ALIGN - 1) / NAN_ALIGN * NAN_ALIGN;
}

uint64_t cuda_matrix_size(const struct matrix_shape *m)
{
    return cuda_nan_bytes(m) + (uint64_t) m->n * cuda_pitch(m);
}

uint64_t cuda_input_pitch(int k)
{
    return blocks_of((uint64_t) k + SCALE_BLOCK - 1) * SCALE_BLOCK;
}

int cuda_moe_panel(int hidden, uint64_t pairs)
{
    uint64_t columns = OUTPUT_BYTES_MAX / sizeof(float) / larger(pairs, 1);
    columns = columns / SCALE_BLOCK * SCALE_BLOCK;
    return (int) smaller(larger(columns, SCALE_BLOCK), (uint64_t) hidden);
}

uint64_t cuda_moe_tiles(int n_experts, uint64_t pairs, int tile)
{
    return smaller((uint64_t) n_experts, pairs) + pairs / (uint64_t) tile;
}

// Rows of the widest matrix, or of all heads of a launch.
static uint64_t input_bytes(const struct scratch_shape *s)
{
    uint64_t widest =
        larger(larger(cuda_input_pitch(s->hidden), cuda_input_pitch(s->q_lora)),
               larger(cuda_input_pitch(s->intermediate), cuda_input_pitch(s->n_heads * s->v)));
    uint64_t heads = smaller((uint64_t) s->n_heads, CUDA_HEADS_MAX) *
                     larger(cuda_input_pitch(s->nope), cuda_input_pitch(s->kv_lora));
    uint64_t row = larger(widest, heads) * HALF_BYTES;
    uint64_t rows = larger((uint64_t) s->max_rows, (uint64_t) s->max_out);
    return larger(smaller(row * rows, INPUT_BYTES_MAX), row);
}

static uint64_t mla_bytes(const struct scratch_shape *s)
{
    if (s->f32 || s->kv_lora != CUDA_MLA_LORA || s->rope != CUDA_MLA_ROPE) return 0;
    uint64_t heads = (uint64_t) CUDA_MLA_FEW_PARTS * CUDA_MLA_FEW_HEADS;
    if (s->n_heads >= CUDA_MLA_MANY_HEADS) {
        heads = (uint64_t) CUDA_MLA_MANY_PARTS * CUDA_MLA_MANY_HEADS;
    }
    uint64_t hopper = smaller((uint64_t) s->n_heads, CUDA_MLA_MANY_HEADS) * CUDA_MLA_BLOCKS * 2;
    return larger(heads, hopper) * CUDA_MLA_PART * sizeof(float) +
           (uint64_t) CUDA_MLA_CUT_ROWS * 2 * sizeof(int32_t);
}

uint64_t cuda_expanded_head(int context)
{
    uint64_t tokens = ((uint64_t) context + CUDA_MLA_KEYS - 1) / CUDA_MLA_KEYS * CUDA_MLA_KEYS;
    return tokens * CUDA_MLA_HEAD * 2 * HALF_BYTES;
}

uint64_t cuda_widened_head(void)
{
    return (uint64_t) CUDA_MLA_LORA * CUDA_MLA_HEAD * 2 * HALF_BYTES;
}

int cuda_expanded_heads(int n_heads, int context)
{
    uint64_t most = smaller((uint64_t) n_heads, CUDA_HEADS_MAX);
    return (int) larger(smaller(CUDA_EXPANDED_BYTES / cuda_expanded_head(context), most), 1);
}

// Of any run of a sequence in a step: shorter ones have more heads at once.
static void carve_run(struct cuda_run_scratch *to, const struct scratch_shape *s, struct carve *c)
{
    bool takes = !s->f32 && s->kv_lora == CUDA_MLA_LORA && s->rope == CUDA_MLA_ROPE &&
                 s->nope == CUDA_MLA_HEAD && s->v == CUDA_MLA_HEAD && s->max_context > 0;
    if (!takes) return;
    uint64_t heads = smaller((uint64_t) s->n_heads, CUDA_HEADS_MAX);
    uint64_t head = cuda_expanded_head(s->max_context);
    to->weights = carve_take(c, heads * cuda_widened_head());
    to->expanded = carve_take(c, larger(smaller(heads * head, CUDA_EXPANDED_BYTES), head));
    uint64_t blocks = ((uint64_t) s->max_context + KV_BLOCK_ROWS - 1) / KV_BLOCK_ROWS;
    uint64_t block = kv_block_bytes(s->kv_lora, s->rope, false, false);
    if (s->fp8_kv) to->kv = carve_take(c, blocks * block);
}

// Room for any step of at most so many pairs: fewer pairs have wider panels.
static uint64_t output_bytes(const struct scratch_shape *s, uint64_t pairs)
{
    uint64_t whole = pairs * (uint64_t) s->hidden * sizeof(float);
    return smaller(whole, larger(OUTPUT_BYTES_MAX, pairs * SCALE_BLOCK * sizeof(float)));
}

static void carve_moe(struct cuda_moe_scratch *to, const struct scratch_shape *s, struct carve *c)
{
    uint64_t rows = (uint64_t) s->max_rows, pairs = rows * (uint64_t) s->n_chosen;
    if (pairs == 0 || s->n_experts == 0) return;
    uint64_t exact = smaller(rows, CUDA_EXACT_ROWS) * (uint64_t) s->n_chosen *
                     (uint64_t) s->moe_intermediate * 2 * sizeof(float);
    to->act_bytes = larger(pairs * cuda_input_pitch(s->moe_intermediate) * HALF_BYTES, exact);
    to->input = carve_take(c, rows * cuda_input_pitch(s->hidden) * HALF_BYTES);
    to->act = carve_take(c, to->act_bytes);
    to->outputs_bytes = output_bytes(s, pairs);
    to->outputs = carve_take(c, to->outputs_bytes);
    to->pair_row = carve_take(c, pairs * sizeof *to->pair_row);
    to->pair_of = carve_take(c, pairs * sizeof *to->pair_of);
    to->tiles = carve_take(c, cuda_moe_tiles(s->n_experts, pairs, CUDA_TILE_PAIRS) *
                                  sizeof *to->tiles);
    to->n_tiles = carve_take(c, sizeof *to->n_tiles);
}

// Half of the largest step, so that it comes while the one before is computed, whose kernels would
// have to end before more could be taken.
static uint64_t wire_bytes(const struct scratch_shape *s)
{
    uint64_t half = carve_aligned((uint64_t) s->max_rows * (uint64_t) s->hidden);
    if (half < CUDA_WIRE_LEAST) return CUDA_WIRE_LEAST;
    return half < CUDA_WIRE_MOST ? half : CUDA_WIRE_MOST;
}

void cuda_scratch_carve(struct cuda_scratch *to, const struct scratch_shape *s, struct carve *c)
{
    *to = (struct cuda_scratch){.input_bytes = input_bytes(s), .wire_bytes = wire_bytes(s)};
    to->wire = carve_take(c, 4 * to->wire_bytes);
    to->input = carve_take(c, to->input_bytes);
    to->partial = carve_take(c, (uint64_t) CUDA_SPLIT_BLOCKS * CUDA_TILE_FLOATS * sizeof(float));
    to->counters = carve_take(c, CUDA_COUNTERS * sizeof *to->counters);
    struct carve run = *c;
    carve_moe(&to->moe, s, c);
    carve_run(&to->run, s, &run);
    if (run.used > c->used) *c = run;
    to->mla = carve_take(c, mla_bytes(s));
    to->scores = carve_take(c, (uint64_t) s->max_rows * (uint64_t) s->n_experts * sizeof(float));
}
