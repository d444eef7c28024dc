// Rehearsals of ranks that have a GPU each and sum with each other: full-size layers with experts,
// times of steps by op, and what sums take of them, by each way and beside the cost model.
#include "tests/gpu/check.h"
#include "tests/gpu/ranks.h"

#include "common/cost_model.h"
#include "tools/rehearse_view.h"

#include <stdio.h>
#include <string.h>

static const uint64_t DEVICE_BYTES = 30ull << 30; // two have room on one GPU of 80 GB

enum { CONTEXT = 4096, PROMPT = 2048, MAX_ROWS = 512, REPEATS = 12, BATCHES = 4, LAYERS = 3 };

static const int batches[BATCHES] = {1, 8, 32, 128};

// One way of the sums.
struct way_case {
    const char *name;
    struct comm_cuda_options comm;
};

static const struct way_case WAYS[] = {
    {"direct", {.way = COMM_DIRECT}},
    {"nccl", {.way = COMM_NCCL}},
    {"over the host", {.way = COMM_DIRECT, .staged = true}},
    {"over the host, coarse",
     {.way = COMM_DIRECT, .staged = true, .coarse_least = COMM_COARSE_LEAST}},
};

struct rehearsed {
    const struct plan_request *request;
    const struct plan *plan;
    struct comm *comm;
    int rank, n_gpus;
    pthread_t thread;
    struct rehearse_view view;
    enum status status;
    struct error error;
};

static enum status rehearse(struct rehearsed *r)
{
    struct rehearse_view *v = &r->view;
    struct rehearsal *rehearsal;
    struct rehearse_options o = {.request = r->request, .plan = r->plan, .stage = 1,
                                 .rank = r->rank, .backend = backend_cuda(), .context = CONTEXT,
                                 .gpu = r->rank % r->n_gpus, .comm = r->comm, .repeats = REPEATS};
    *v = (struct rehearse_view){.request = r->request, .plan = r->plan, .stage = 1,
                                .rank = r->rank, .context = CONTEXT,
                                .rates = {device_rates_find("rtx4090"), device_rates_find("h100")}};
    try(rehearse_open(&rehearsal, &o, &r->error));
    enum status status = OK;
    for (int i = 0; i < BATCHES && status == OK; i++, v->n_decodes++) {
        status = rehearse_decode(rehearsal, batches[i], &v->decodes[i], &r->error);
        struct rehearse_own own = rehearse_time_own(&v->decodes[i]);
        v->predictions[i] = rehearse_predict(r->plan, r->request, &v->rates, 1, batches[i],
                                             CONTEXT, &own);
    }
    if (status == OK) {
        status = rehearse_prefill(rehearsal, PROMPT, &v->prefills[v->n_prefills++], &r->error);
    }
    if (status == OK) status = rehearse_memory(rehearsal, &v->memory, &r->error);
    if (status != OK) r->comm->ops->abort(r->comm);
    rehearse_close(&rehearsal);
    return status;
}

static void *rank_main(void *arg)
{
    struct rehearsed *r = arg;
    r->status = rehearse(r);
    return NULL;
}

// What the model says of the stage on this kind of GPU.
static struct stage_cost model_cost(const struct rehearsed *r, int rows, bool prefill)
{
    struct cost_form form = {.tp = r->plan->tp, .kv_ranks = 1, .fp8_gemm = true};
    struct plan_stage stage = {.first = r->plan->first[1],
                               .last = r->plan->first[1] + r->plan->layers[1]};
    struct cost_model m;
    struct cost_step s = {0};
    cost_model_init(&m, r->request->config, &form);
    if (prefill) cost_step_add(&s, 0, rows, 1);
    else for (int i = 0; i < rows; i++) cost_step_add(&s, CONTEXT - 1, 1, 1);
    return cost_stage(&m, &stage, device_rates_find("h100"), &s);
}

static void tell(struct result *to, const struct rehearsed *r, const char *way, const char *what,
                 const struct rehearse_time *t, bool prefill)
{
    char line[160];
    int chunks = prefill ? (t->rows + r->plan->chunk - 1) / r->plan->chunk : 1;
    int sums = 2 * LAYERS * chunks;
    struct stage_cost c = model_cost(r, prefill ? r->plan->chunk : t->rows, prefill);
    snprintf(line, sizeof line, "tp %d, %s: layers, %s of %d", r->plan->tp, way, what, t->rows);
    result_most(to, line, 1e3 * t->layers, "ms", 0);
    printf("#      a sum takes %.1f us of it with marks, %.1f by the model; a step %.3f, %.3f ms\n",
           1e6 * t->ops[REHEARSE_REDUCE] / sums, 1e6 * c.reduce_seconds / (2 * LAYERS),
           1e3 * t->seconds, 1e3 * chunks * c.seconds);
}

static void rehearse_way(struct result *to, const struct way_case *way,
                         const struct plan_request *request, const struct plan *plan, int n_gpus)
{
    static struct rehearsed ranks[TP_MAX];
    struct comm *comms[TP_MAX];
    struct comm_cuda_options o = way->comm;
    struct error e = {0};
    bool well = true;
    o.tp = plan->tp;
    o.deadline_ms = 20000;
    o.crowded = n_gpus < o.tp;
    if (o.crowded && !o.staged) return;
    check(comm_cuda_create(comms, &o, &e) == OK, "%s", e.text);
    for (int i = 0; i < o.tp; i++) {
        ranks[i] = (struct rehearsed){.request = request, .plan = plan, .comm = comms[i],
                                      .rank = i, .n_gpus = n_gpus};
        check(pthread_create(&ranks[i].thread, NULL, rank_main, &ranks[i]) == 0);
    }
    for (int i = 0; i < o.tp; i++) pthread_join(ranks[i].thread, NULL);
    for (int i = 0; i < o.tp; i++) {
        comms[i]->ops->destroy(&comms[i]);
        if (ranks[i].status != OK) printf("# rank %d: %s\n", i, ranks[i].error.text);
        well = well && ranks[i].status == OK;
    }
    char line[160];
    snprintf(line, sizeof line, "tp %d, %s: ranks that failed", o.tp, way->name);
    result_error(to, line, well ? 0 : 1, 0);
    if (!well) return;
    printf("--- tp %d, %s\n", o.tp, way->name);
    rehearse_view_table(&ranks[0].view);
    for (int i = 0; i < BATCHES; i++) {
        tell(to, &ranks[0], way->name, "decode", &ranks[0].view.decodes[i], false);
    }
    tell(to, &ranks[0], way->name, "prefill", &ranks[0].view.prefills[0], true);
}

void check_rehearse_ranks(struct result *r, const char *fixtures, int n_gpus)
{
    struct model_config config;
    struct error e = {0};
    char path[512];
    static struct plan plan;
    snprintf(path, sizeof path, "%s/deepseek-v3", fixtures);
    check(model_config_load(&config, path, &e) == OK, "%s", e.text);
    config.n_layers = config.n_dense_layers + LAYERS + 1;
    for (int tp = 2; tp == 2 || (tp <= 4 && tp <= n_gpus); tp *= 2) {
        struct plan_request request = {.config = &config, .device = DEVICE_CUDA, .pp = 3,
                                       .layers = {config.n_dense_layers, LAYERS, 1}, .tp = tp,
                                       .slots = batches[BATCHES - 1], .max_context = CONTEXT,
                                       .max_rows = MAX_ROWS};
        for (int i = 0; i < request.pp; i++) request.device_bytes[i] = DEVICE_BYTES;
        check(plan_make(&plan, &request, &e) == OK, "%s", e.text);
        check(plan.fits, "%s", plan.reason);
        for (size_t i = 0; i < sizeof WAYS / sizeof *WAYS; i++) {
            rehearse_way(r, &WAYS[i], &request, &plan, n_gpus);
        }
    }
}
