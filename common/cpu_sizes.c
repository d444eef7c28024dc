#include "common/cpu_sizes.h"

static int least(int a, int b) { return a < b ? a : b; }

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

// --- packed weights

int cpu_group_values(enum dtype dtype)
{
    return dtype == DTYPE_F8_E4M3 ? 4 : dtype == DTYPE_BF16 ? 2 : 1;
}

// Where a matrix begins on the grid of k: only FP8 has scales to line up with.
static int phase_of(const struct matrix_shape *m)
{
    return m->dtype == DTYPE_F8_E4M3 ? m->col_phase : 0;
}

int cpu_panels(int n) { return (n + CPU_PANEL - 1) / CPU_PANEL; }

uint64_t cpu_panel_bytes(const struct matrix_shape *m)
{
    int group = cpu_group_values(m->dtype), phase = phase_of(m);
    int groups = (phase + m->k + group - 1) / group - phase / group;
    return (uint64_t) groups * CPU_PANEL * sizeof(uint32_t);
}

uint64_t cpu_nan_bytes(const struct matrix_shape *m)
{
    if (m->dtype != DTYPE_F8_E4M3) return 0;
    uint64_t marks = (uint64_t) cpu_panels(m->n) * (CPU_PANEL / CPU_PACK_ROWS);
    return carve_aligned(marks * sizeof(uint16_t));
}

uint64_t cpu_matrix_size(const struct matrix_shape *m)
{
    return cpu_nan_bytes(m) + (uint64_t) cpu_panels(m->n) * cpu_panel_bytes(m);
}

// --- scratch

uint64_t cpu_row_floats(int k)
{
    return (uint64_t) ((SCALE_BLOCK - 1 + k + SCALE_BLOCK - 1) / SCALE_BLOCK) * SCALE_BLOCK;
}

// Up to CPU_GEMM_ROWS rows of any matrix, or a few of all heads'.
static uint64_t input_floats(const struct scratch_shape *s, uint64_t most_rows)
{
    uint64_t row = larger(larger(cpu_row_floats(s->hidden), cpu_row_floats(s->q_lora)),
                          larger(cpu_row_floats(s->intermediate),
                                 cpu_row_floats(s->n_heads * s->v)));
    uint64_t heads = (uint64_t) s->n_heads *
                     larger(cpu_row_floats(s->nope), cpu_row_floats(s->kv_lora));
    return larger(row * most_rows,
                  heads * (most_rows < CPU_HEAD_ROWS ? most_rows : CPU_HEAD_ROWS));
}

static void carve_gemm(struct cpu_scratch *to, const struct scratch_shape *s, struct carve *c)
{
    int most = s->max_rows > s->max_out ? s->max_rows : s->max_out;
    uint64_t rows = (uint64_t) least(most, CPU_GEMM_ROWS);
    to->room_floats = CPU_TILE_FLOATS + 2 * rows * CPU_PANEL;
    to->rooms = carve_take(c, DEVICE_THREADS_MAX * to->room_floats * sizeof(float));
    to->input_floats = input_floats(s, rows);
    to->input = carve_take(c, to->input_floats * sizeof(float));
}

static void carve_moe(struct cpu_scratch *to, const struct scratch_shape *s, struct carve *c)
{
    to->most_rows = least(s->max_rows, CPU_MOE_ROWS);
    to->n_outputs = least(cpu_panels(s->hidden), DEVICE_THREADS_MAX);
    uint64_t rows = (uint64_t) to->most_rows, pairs = rows * (uint64_t) s->n_chosen;
    uint64_t part = (uint64_t) s->moe_intermediate, size = sizeof(float);
    if (pairs == 0) return;
    to->moe_input = carve_take(c, rows * cpu_row_floats(s->hidden) * size);
    to->moe_act = carve_take(c, pairs * part * size);
    to->moe_act_input = carve_take(c, pairs * cpu_row_floats(s->moe_intermediate) * size);
    to->moe_outputs = carve_take(c, (uint64_t) to->n_outputs * pairs * CPU_PANEL * size);
    to->moe_pair_row = carve_take(c, pairs * sizeof(int32_t));
    to->moe_pair_of = carve_take(c, pairs * sizeof(int32_t));
    to->moe_first = carve_take(c, ((uint64_t) s->n_experts + 1) * sizeof(int32_t));
    to->moe_busy = carve_take(c, (uint64_t) s->n_experts * sizeof(int32_t));
}

void cpu_scratch_carve(struct cpu_scratch *to, const struct scratch_shape *s, struct carve *c)
{
    *to = (struct cpu_scratch){0};
    carve_gemm(to, s, c);
    carve_moe(to, s, c);
    if (!s->f32 || s->fp8_kv) {
        uint64_t tile = (uint64_t) KV_BLOCK_ROWS * (uint64_t) (s->kv_lora + s->rope);
        to->mla_tiles = carve_take(c, DEVICE_THREADS_MAX * tile * sizeof(float));
    }
    uint64_t scores = (uint64_t) s->max_rows * (uint64_t) s->n_experts;
    to->route_scores = carve_take(c, scores * sizeof(float));
}
