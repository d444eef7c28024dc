#include "workers/pace.h"

#include <string.h>

// Of the fit: some 50 steps are remembered, and what they cannot tell apart stays in the
// proportions of the presets.
static const double KEPT = 0.98, TIE = 0.002, LEAST_WEIGHT = 0.02, MOST_FASTER = 5;
static const double SHORTEST_S = 2e-3; // clocks and polling blur less than this
enum { SWEEPS = 8 };

static const double PRESET[PACE_TERMS] = {
    [PACE_FIXED] = 1, [PACE_READ] = 1, [PACE_GEMM] = 1, [PACE_ATTENTION] = 1};

void pace_init(struct pace *p, const struct model_config *config, const struct cost_form *form,
               const struct plan_stage *stage, const struct device_rates *rates)
{
    *p = (struct pace){.stage = *stage, .rates = *rates};
    cost_model_init(&p->model, config, form);
    memcpy(p->weight, PRESET, sizeof p->weight);
}

static void terms_of(const struct pace *p, const struct pace_step *s, double terms[PACE_TERMS])
{
    struct stage_cost c = cost_stage(&p->model, &p->stage, &p->rates, &s->content);
    terms[PACE_FIXED] = c.fixed_seconds;
    terms[PACE_READ] = c.read_seconds;
    terms[PACE_GEMM] = c.gemm_seconds + c.reduce_seconds;
    terms[PACE_ATTENTION] = c.attention_seconds;
    terms[PACE_MIXED] = s->mixed ? c.fixed_seconds : 0;
}

static double weigh(const double weight[PACE_TERMS], const double terms[PACE_TERMS])
{
    double seconds = 0;
    for (int i = 0; i < PACE_TERMS; i++) seconds += weight[i] * terms[i];
    return seconds;
}

double pace_seconds(const struct pace *p, const struct pace_step *s)
{
    double terms[PACE_TERMS];
    terms_of(p, s, terms);
    return weigh(p->weight, terms);
}

double pace_away(const struct pace *p, const struct pace_step *s)
{
    return cost_link(&p->model, &p->rates, &s->content);
}

// The one factor on all presets that explains the observations best.
static double common_factor(const struct pace *p)
{
    double over = 0, under = 0;
    for (int i = 0; i < PACE_TERMS; i++) {
        over += PRESET[i] * p->moment[i];
        for (int j = 0; j < PACE_TERMS; j++) under += PRESET[i] * p->gram[i][j] * PRESET[j];
    }
    return under > 0 ? over / under : 1;
}

// Weights that are not negative, by coordinate descent from the last ones; each is tied to its
// preset times the common factor.
static void fit(struct pace *p)
{
    double factor = common_factor(p), tie = TIE / (factor * factor);
    for (int sweep = 0; sweep < SWEEPS; sweep++) {
        for (int i = 0; i < PACE_TERMS; i++) {
            double rest = p->moment[i] + tie * factor * PRESET[i];
            for (int j = 0; j < PACE_TERMS; j++) rest -= j == i ? 0 : p->gram[i][j] * p->weight[j];
            double w = rest / (p->gram[i][i] + tie), least = LEAST_WEIGHT * factor * PRESET[i];
            p->weight[i] = w > least ? w : least;
        }
    }
}

void pace_observe(struct pace *p, const struct pace_step *s, double seconds)
{
    double terms[PACE_TERMS];
    terms_of(p, s, terms);
    for (int i = 0; i < PACE_TERMS; i++) p->sum[i] += terms[i];
    p->sum_seconds += seconds;
    if (p->sum_seconds < SHORTEST_S) return;
    // A step that was much faster than expected must not outweigh all others.
    double took = p->sum_seconds, expected = weigh(p->weight, p->sum);
    double scale = took * MOST_FASTER > expected ? took : expected / MOST_FASTER;
    for (int i = 0; i < PACE_TERMS; i++) {
        for (int j = 0; j < PACE_TERMS; j++) {
            p->gram[i][j] = KEPT * p->gram[i][j] + p->sum[i] * p->sum[j] / (scale * scale);
        }
        p->moment[i] = KEPT * p->moment[i] + p->sum[i] * took / (scale * scale);
    }
    memset(p->sum, 0, sizeof p->sum);
    p->sum_seconds = 0;
    p->n_observed++;
    fit(p);
}
