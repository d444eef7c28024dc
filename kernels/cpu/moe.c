// The routed experts: rows are sorted by expert, so that each expert's weights are read once for
// all of its rows; a pair is a row and one of the experts it chose. First gate, up and SiLU of all
// pairs, then, panel by panel of the output, down of all pairs and each row's sum in the order in
// which it chose.
#include "kernels/cpu/device.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/inner.h"

#include <string.h>

struct room {
    float *act;        // (n_pairs, part)
    int32_t *pair_row; // (n_pairs) by expert, then by row
    int32_t *pair_of;  // (rows, n_chosen) -> pair; -1: padding
    int32_t *first;    // (n_experts + 1) pair
    int32_t *busy;     // (n_experts) those that were chosen
};

static int least(int a, int b) { return a < b ? a : b; }

struct moe {
    struct device *d;
    const struct expert *experts;
    int n_experts, n_chosen, hidden, part, n_rows;
    const int32_t *chosen; // (n_rows, n_chosen)
    const float *weights;  // (n_rows, n_chosen)
    const int32_t *pos;
    float *out;            // (n_rows, hidden)
    struct room room;
    struct gemm_input input, act_input;
    int n_pairs, n_busy;
};

static void sort_pairs(struct moe *m)
{
    struct room *r = &m->room;
    memset(r->first, 0, (size_t) (m->n_experts + 1) * sizeof *r->first);
    int32_t *next = r->busy; // for now, where each expert's next pair goes
    for (int i = 0; i < m->n_rows * m->n_chosen; i++) {
        if (m->pos[i / m->n_chosen] < 0) continue;
        int32_t expert = m->chosen[i];
        check(expert >= 0 && expert < m->n_experts, "expert %d of %d", expert, m->n_experts);
        r->first[expert + 1]++;
    }
    for (int e = 0; e < m->n_experts; e++) {
        next[e] = r->first[e];
        r->first[e + 1] += r->first[e];
    }
    for (int i = 0; i < m->n_rows * m->n_chosen; i++) {
        int row = i / m->n_chosen;
        r->pair_of[i] = m->pos[row] < 0 ? -1 : next[m->chosen[i]]++;
        if (r->pair_of[i] >= 0) r->pair_row[r->pair_of[i]] = row;
    }
    m->n_pairs = r->first[m->n_experts];
    m->n_busy = 0;
    for (int e = 0; e < m->n_experts; e++) {
        if (r->first[e + 1] > r->first[e]) r->busy[m->n_busy++] = e;
    }
}

// act = silu(gate x) * (up x) for the pairs of one expert and the outputs of one panel.
static void gate_up(const struct moe *m, int expert, int panel, struct gemm_room room)
{
    const struct expert *e = &m->experts[expert];
    int n = least(PANEL, m->part - panel * PANEL), end = m->room.first[expert + 1];
    for (int pair = m->room.first[expert]; pair < end; pair += GEMM_ROWS) {
        int rows = least(GEMM_ROWS, end - pair);
        const int32_t *from = m->room.pair_row + pair;
        gemm_run_panel(m->d, &e->gate, panel, m->input, from, rows, room.tile, room.out[0]);
        gemm_run_panel(m->d, &e->up, panel, m->input, from, rows, room.tile, room.out[1]);
        inner_for(m->d->isa)->swiglu(room.out[0], room.out[1], room.out[0], (size_t) rows * PANEL);
        for (int i = 0; i < rows; i++) {
            memcpy(m->room.act + (size_t) (pair + i) * m->part + (size_t) panel * PANEL,
                   room.out[0] + (size_t) i * PANEL, (size_t) n * sizeof(float));
        }
    }
}

static void gate_up_items(void *arg, int begin, int end, int thread)
{
    const struct moe *m = arg;
    int panels = cpu_panels(m->part);
    for (int item = begin; item < end; item++) {
        gate_up(m, m->room.busy[item / panels], item % panels, gemm_room(m->d, thread));
    }
}

// Each row's sum for one panel, from its pairs' outputs (n_pairs, PANEL).
static void combine(const struct moe *m, int panel, const float *outputs)
{
    int n = least(PANEL, m->hidden - panel * PANEL);
    for (int row = 0; row < m->n_rows; row++) {
        if (m->pos[row] < 0) continue;
        float sum[PANEL] = {0};
        for (int i = row * m->n_chosen; i < (row + 1) * m->n_chosen; i++) {
            const float *add = outputs + (size_t) m->room.pair_of[i] * PANEL;
            for (int j = 0; j < PANEL; j++) sum[j] += m->weights[i] * add[j];
        }
        memcpy(m->out + (size_t) row * m->hidden + (size_t) panel * PANEL, sum,
               (size_t) n * sizeof *sum);
    }
}

// Where the outputs of a panel go: there are as many places as panels, or as threads.
static float *outputs_of(const struct moe *m, int panel, int thread)
{
    const struct cpu_scratch *s = &m->d->scratch;
    size_t pairs = (size_t) s->most_rows * (size_t) m->d->shape.n_chosen;
    int place = cpu_panels(m->hidden) <= s->n_outputs ? panel : thread;
    return s->moe_outputs + (size_t) place * pairs * PANEL;
}

static void down_panels(void *arg, int begin, int end, int thread)
{
    const struct moe *m = arg;
    float *tile = gemm_room(m->d, thread).tile;
    int step = gemm_inner_for(m->d->isa, m->d->precision, m->experts->down.dtype)->step;
    size_t row_floats = SCALE_BLOCK / (size_t) step;
    for (int panel = begin; panel < end; panel++) {
        float *outputs = outputs_of(m, panel, thread);
        for (int i = 0; i < m->n_busy; i++) {
            int expert = m->room.busy[i], last = m->room.first[expert + 1];
            for (int pair = m->room.first[expert]; pair < last; pair += GEMM_ROWS) {
                struct gemm_input input = m->act_input;
                input.data += (size_t) pair * row_floats;
                gemm_run_panel(m->d, &m->experts[expert].down, panel, input, NULL,
                               least(GEMM_ROWS, last - pair), tile,
                               outputs + (size_t) pair * PANEL);
            }
        }
        combine(m, panel, outputs);
    }
}

static void run(struct moe *m, const float *x)
{
    const struct matrix *gate = &m->experts->gate, *down = &m->experts->down;
    sort_pairs(m);
    if (m->n_pairs == 0) return;
    m->input = (struct gemm_input) {m->d->scratch.moe_input, m->n_rows};
    m->act_input = (struct gemm_input) {m->d->scratch.moe_act_input, m->n_pairs};
    gemm_prepare(m->d, gate, x, m->hidden, m->n_rows, m->input);
    team_run(m->d->team, gate_up_items, m, m->n_busy * cpu_panels(m->part), 1);
    gemm_prepare(m->d, down, m->room.act, m->part, m->n_pairs, m->act_input);
    team_run(m->d->team, down_panels, m, cpu_panels(m->hidden), 1);
}

// The experts of a layer have one shape and dtype: one input serves all of them.
static void check_experts(const struct expert *experts, int n_experts)
{
    const struct expert *a = experts;
    check(a->up.n == a->gate.n && a->up.k == a->gate.k && a->down.n == a->gate.k &&
          a->down.k == a->gate.n && a->up.col_phase == a->gate.col_phase);
    for (int i = 0; i < n_experts; i++) {
        const struct expert *b = &experts[i];
        check(b->gate.dtype == a->gate.dtype && b->up.dtype == a->gate.dtype &&
              b->down.dtype == a->down.dtype, "expert %d has another dtype", i);
    }
}

void cpu_moe(struct device *d, const struct expert *experts, int n_experts, int n_chosen,
             const void *x, const int32_t *chosen, const float *weights, const int32_t *pos,
             float *out, int n_rows)
{
    const struct cpu_scratch *s = &d->scratch;
    check(s->moe_act != NULL, "no scratch");
    check_experts(experts, n_experts);
    struct moe m = {
        .d = d,
        .experts = experts,
        .n_experts = n_experts,
        .n_chosen = n_chosen,
        .hidden = experts->gate.k,
        .part = experts->gate.n,
        .room = {s->moe_act, s->moe_pair_row, s->moe_pair_of, s->moe_first, s->moe_busy},
    };
    const float *from = x;
    check(n_experts <= d->shape.n_experts && n_chosen <= d->shape.n_chosen &&
          m.part <= d->shape.moe_intermediate && m.hidden <= d->shape.hidden);
    for (int row = 0; row < n_rows; row += m.n_rows) {
        m.n_rows = least(s->most_rows, n_rows - row);
        m.chosen = chosen + (size_t) row * n_chosen;
        m.weights = weights + (size_t) row * n_chosen;
        m.pos = pos + row;
        m.out = out + (size_t) row * m.hidden;
        run(&m, from + (size_t) row * m.hidden);
    }
}
