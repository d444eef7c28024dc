#include "common/plan_machines.h"

#include <string.h>

// Where nobody says what the devices are: no GPU that holds a model has less.
#define CUDA_LEAST (4 * (uint64_t) GIB)

int plan_machines_stages(const struct plan_machines *m, const struct model_config *c)
{
    int most = c->n_layers < PP_MAX ? c->n_layers : PP_MAX;
    return m->nodes < most ? m->nodes : most;
}

int plan_machines_per_node(const struct plan_machines *m, int pp)
{
    return (pp + m->nodes - 1) / m->nodes;
}

enum status plan_machines_cut(const struct plan_machines *m, struct plan_request *r,
                              struct error *e)
{
    int tp = m->tp > 0 ? m->tp : m->gpus;
    int pp = r->layers[0] > 0 ? r->pp : m->pp > 0 ? m->pp : plan_machines_stages(m, r->config);
    if (tp > m->gpus) {
        return error_set(e, ERR_INPUT, "bad_tp", "tp %d is more than the %d GPUs of a node", tp,
                         m->gpus);
    }
    if (pp > (int64_t) m->nodes * (m->gpus / tp)) {
        return error_set(e, ERR_INPUT, "bad_plan",
                         "%d stages of %d GPUs need more than %d nodes of %d", pp, tp, m->nodes,
                         m->gpus);
    }
    int per_node = plan_machines_per_node(m, pp);
    uint64_t least = UINT64_MAX;
    r->pp = pp;
    r->tp = tp;
    for (int i = 0; i < pp; i++) {
        r->device_bytes[i] = m->bytes[i / per_node];
        if (r->device_bytes[i] < least) least = r->device_bytes[i];
    }
    r->device = m->device;
    if (r->device == N_DEVICE_KINDS) r->device = least < CUDA_LEAST ? DEVICE_CPU : DEVICE_CUDA;
    memset(r->rates, 0, sizeof r->rates);
    if (m->n_rates == 0 && !r->for_time) return OK;
    for (int i = 0; i < pp; i++) {
        r->rates[i] = m->n_rates > 0 ? m->rates[i / per_node] : device_rates_of(r->device);
    }
    return OK;
}
