#include "workers/rehearse_predict.h"

// Seconds of a stage's ops, by the cost model, and of its collectives.
struct stage_times {
    double compute, reduces;
};

static struct stage_times stage_times(const struct plan *p, const struct cost_model *m,
                                      const struct device_rates *rates,
                                      const struct cost_step *step, int i)
{
    struct plan_stage stage = {.first = p->first[i], .last = p->first[i] + p->layers[i],
                               .head = i == 0, .tail = i == p->pp - 1};
    struct stage_cost c = cost_stage(m, &stage, rates, step);
    return (struct stage_times){c.seconds - c.reduce_seconds, c.reduce_seconds};
}

struct rehearse_prediction rehearse_predict(const struct plan *p, const struct plan_request *r,
                                            const struct rehearse_rates *rates, int stage,
                                            int rows, int context,
                                            const struct rehearse_own *own)
{
    struct cost_form form = {.tp = p->tp, .kv_ranks = 1, .f32 = r->f32,
                             .fp8_gemm = r->device == DEVICE_CUDA && !r->f32,
                             .fp8_kv = r->fp8_kv};
    struct cost_model model;
    struct cost_step step = {0};
    struct rehearse_prediction t = {.rows = rows, .measured = *own, .scaled = *own};
    cost_model_init(&model, r->config, &form);
    for (int i = 0; i < rows; i++) cost_step_add(&step, context - 1, 1, 1);
    double there = stage_times(p, &model, rates->there, &step, stage).compute;
    if (rates->here != NULL) {
        double here = stage_times(p, &model, rates->here, &step, stage).compute;
        t.scaled.step *= there / here;
        t.scaled.pace *= there / here;
    }
    double hops = p->pp > 1 ? p->pp : 0; // the last one carries the tokens back
    t.link_s = p->pp > 1 ? cost_link(&model, rates->there, &step) : 0;
    double latency = hops * t.link_s, model_latency = latency, model_slowest = 0;
    for (int i = 0; i < p->pp; i++) {
        struct stage_times s = stage_times(p, &model, rates->there, &step, i);
        double seconds = t.scaled.pace * s.compute / there + s.reduces;
        latency += t.scaled.step * s.compute / there + s.reduces;
        model_latency += s.compute + s.reduces;
        if (s.compute + s.reduces > model_slowest) model_slowest = s.compute + s.reduces;
        if (seconds <= t.slowest_s) continue;
        t.slowest_s = seconds;
        t.reduces_s = s.reduces;
    }
    t.latency_s = latency;
    t.alone = rows / latency;
    t.filled = rows / t.slowest_s;
    t.model_alone = rows / model_latency;
    t.model_filled = rows / model_slowest;
    return t;
}
