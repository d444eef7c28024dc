// The router (noaux_tc): sigmoid scores of all experts, then the choice, row by row.
#include "kernels/cpu/device.h"
#include "kernels/cpu/inner.h"
#include "kernels/cpu/ops.h"

#include "common/limits.h"

#include <math.h>

enum { SCORE_ROWS = 4, SCORE_EXPERTS = 32, CHOOSE_ROWS = 8 };

struct route {
    const struct inner *inner;
    const struct router *r;
    const float *x; // (n_rows, hidden)
    float *scores;  // (n_rows, n_experts)
    int32_t *chosen;
    float *weights;
    int n_rows, columns; // columns: pieces of SCORE_EXPERTS
};

static void score_items(void *arg, int begin, int end, int thread)
{
    (void) thread;
    const struct route *t = arg;
    size_t hidden = (size_t) t->r->hidden, n_experts = (size_t) t->r->n_experts;
    for (int item = begin; item < end; item++) {
        int row = item / t->columns * SCORE_ROWS, expert = item % t->columns * SCORE_EXPERTS;
        int rows = t->n_rows - row < SCORE_ROWS ? t->n_rows - row : SCORE_ROWS;
        int experts = t->r->n_experts - expert;
        if (experts > SCORE_EXPERTS) experts = SCORE_EXPERTS;
        float *out = t->scores + (size_t) row * n_experts + expert;
        t->inner->dots(t->x + (size_t) row * hidden, hidden, rows,
                       t->r->weight + (size_t) expert * hidden, hidden, experts, t->r->hidden, out,
                       n_experts);
        for (int i = 0; i < rows; i++, out += n_experts) {
            for (int j = 0; j < experts; j++) out[j] = 1.0f / (1.0f + expf(-out[j]));
        }
    }
}

// The first of the largest values whose `open` is set; -1 if none is.
static int32_t first_largest(const float *values, const bool *open, int n)
{
    int32_t best = -1;
    for (int32_t i = 0; i < n; i++) {
        if (open[i] && (best < 0 || values[i] > values[best])) best = i;
    }
    return best;
}

static float group_score(const float *biased, int size)
{
    float first = biased[0], second = -INFINITY;
    for (int i = 1; i < size; i++) {
        if (biased[i] > first) {
            second = first;
            first = biased[i];
        } else if (biased[i] > second) {
            second = biased[i];
        }
    }
    return size > 1 ? first + second : first;
}

// Opens the experts of the groups that are kept.
static void keep_groups(const struct router *r, const float *biased, bool *open)
{
    float group[MODEL_EXPERTS_MAX];
    bool left[MODEL_EXPERTS_MAX];
    int size = r->n_experts / r->n_groups;
    for (int g = 0; g < r->n_groups; g++) {
        group[g] = group_score(biased + (size_t) g * size, size);
        left[g] = true;
    }
    for (int i = 0; i < r->n_experts; i++) open[i] = false;
    for (int kept = 0; kept < r->n_groups_kept; kept++) {
        int32_t g = first_largest(group, left, r->n_groups);
        if (g < 0) break;
        left[g] = false;
        for (int i = 0; i < size; i++) open[g * size + i] = true;
    }
}

static void choose_row(const struct router *r, const float *scores, int32_t *chosen, float *weights)
{
    float biased[MODEL_EXPERTS_MAX];
    bool open[MODEL_EXPERTS_MAX], taken[MODEL_EXPERTS_MAX] = {false};
    for (int i = 0; i < r->n_experts; i++) {
        float c = scores[i] + r->bias[i];
        biased[i] = isnan(c) ? -INFINITY : c; // broken input still gets distinct experts
    }
    keep_groups(r, biased, open);
    float sum = 0;
    for (int k = 0; k < r->n_chosen; k++) {
        int32_t best = first_largest(biased, open, r->n_experts);
        for (int32_t i = 0; best < 0; i++) { // the kept groups are used up: all others tie
            if (!taken[i]) best = i;
        }
        open[best] = false;
        taken[best] = true;
        chosen[k] = best;
        weights[k] = scores[best];
        sum += scores[best];
    }
    for (int k = 0; k < r->n_chosen; k++) {
        if (r->normalize) weights[k] /= sum + 1e-20f;
        weights[k] *= r->scaling;
    }
}

static void choose_rows(void *arg, int begin, int end, int thread)
{
    (void) thread;
    const struct route *t = arg;
    for (int row = begin; row < end; row++) {
        choose_row(t->r, t->scores + (size_t) row * t->r->n_experts,
                   t->chosen + (size_t) row * t->r->n_chosen,
                   t->weights + (size_t) row * t->r->n_chosen);
    }
}

void cpu_route(struct device *d, const struct router *r, const void *x, int32_t *chosen,
               float *weights, int n_rows)
{
    check(r->n_experts <= MODEL_EXPERTS_MAX && r->n_chosen <= r->n_experts);
    struct route t = {
        .inner = inner_for(d->isa),
        .r = r,
        .x = x,
        .scores = d->scratch.route_scores,
        .chosen = chosen,
        .weights = weights,
        .n_rows = n_rows,
        .columns = (r->n_experts + SCORE_EXPERTS - 1) / SCORE_EXPERTS,
    };
    int tiles = (n_rows + SCORE_ROWS - 1) / SCORE_ROWS;
    team_run(d->team, score_items, &t, tiles * t.columns, 1);
    team_run(d->team, choose_rows, &t, n_rows, CHOOSE_ROWS);
}
