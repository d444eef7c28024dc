// Rehearsals of DeepSeek-V3 at full size: ranks of the deployment on 32 GPUs of 24 GB, and five
// layers with experts on one GPU, beside bars that hold on an H100.
#include "tests/gpu/check.h"
#include "tests/gpu/counted.h"

#include "common/limits.h"
#include "tools/rehearse_view.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONTEXT = 4096, PROMPT = 2048, BATCHES = 4 };

struct rehearsal_case {
    const char *name;
    int n_layers; // of the model; 0: all
    int pp, layers[PP_MAX], tp, stage, rank, max_rows;
    uint64_t vram;
    int batches[BATCHES];
    double most_ms[BATCHES]; // 0: no bar
    double prefill_ms;
    bool brief; // only what it holds, and that it runs
};

static const struct rehearsal_case CASES[] = {
    {.name = "stage 1, rank 3 of 8", .pp = 4, .layers = {17, 15, 15, 14}, .tp = 8,
     .stage = 1, .rank = 3, .max_rows = 512, .vram = 24564ull << 20, .batches = {1, 8, 32, 128}},
    {.name = "5 MoE layers", .n_layers = 9, .pp = 3, .layers = {3, 5, 1}, .tp = 1, .stage = 1,
     .max_rows = 2048, .vram = 78ull << 30, .batches = {1, 32, 128, 512},
     .most_ms = {1.6, 17, 26, 32}, .prefill_ms = 35},
    {.name = "stage 0, rank 7 of 8", .pp = 4, .layers = {17, 15, 15, 14}, .tp = 8, .rank = 7,
     .max_rows = 512, .vram = 24564ull << 20, .batches = {1, 7, 32, 38}, .brief = true},
    {.name = "stage 3, rank 7 of 8", .pp = 4, .layers = {17, 15, 15, 14}, .tp = 8, .stage = 3,
     .rank = 7, .max_rows = 512, .vram = 24564ull << 20, .batches = {1, 7, 32, 38},
     .brief = true},
};

static void must(enum status status, const struct error *e) { check(status == OK, "%s", e->text); }

static void tell_time(struct result *r, const struct rehearsal_case *c, const char *what,
                      const struct rehearse_time *t, double most_ms)
{
    char line[160];
    snprintf(line, sizeof line, "%s: layers, %s of %d", c->name, what, t->rows);
    result_most(r, line, 1e3 * t->layers, "ms", most_ms);
}

static void tell_memory(struct result *r, const struct rehearsal_case *c,
                        const struct rehearse_memory *m, uint64_t calls)
{
    char line[160];
    double off = rehearse_view_off(m);
    snprintf(line, sizeof line, "%s: plan off the device's figure", c->name);
    result_error(r, line, off < 0 ? -off : off, 0.01);
    snprintf(line, sizeof line, "%s: bytes of the device taken after READY", c->name);
    result_error(r, line, (double) m->free_ready - (double) m->free_now, 0);
    snprintf(line, sizeof line, "%s: calls that take memory after READY", c->name);
    result_error(r, line, (double) calls, 0);
}

static void rehearse(struct result *r, const struct rehearsal_case *c, struct model_config config)
{
    static struct rehearse_view v;
    static struct plan plan;
    struct error e = {0};
    struct rehearsal *rehearsal;
    if (c->n_layers > 0) config.n_layers = c->n_layers;
    struct plan_request request = {.config = &config, .device = DEVICE_CUDA, .pp = c->pp,
                                   .tp = c->tp, .slots = c->batches[BATCHES - 1],
                                   .max_context = CONTEXT, .max_rows = c->max_rows};
    memcpy(request.layers, c->layers, sizeof request.layers);
    for (int i = 0; i < c->pp; i++) request.device_bytes[i] = c->vram;
    must(plan_make(&plan, &request, &e), &e);
    check(plan.fits, "%s", plan.reason);
    struct rehearse_options o = {.request = &request, .plan = &plan, .stage = c->stage,
                                 .rank = c->rank, .backend = backend_cuda(), .context = CONTEXT};
    v = (struct rehearse_view){.request = &request, .plan = &plan, .stage = c->stage,
                               .rank = c->rank, .context = CONTEXT,
                               .rates = {device_rates_find("rtx4090"), device_rates_find("h100")}};
    must(rehearse_open(&rehearsal, &o, &e), &e);
    uint64_t calls = counted_calls();
    for (int i = 0; i < BATCHES; i++, v.n_decodes++) {
        must(rehearse_decode(rehearsal, c->batches[i], &v.decodes[i], &e), &e);
        struct rehearse_own own = rehearse_time_own(&v.decodes[i]);
        v.predictions[i] = rehearse_predict(&plan, &request, &v.rates, c->stage, c->batches[i],
                                            CONTEXT, &own);
    }
    must(rehearse_prefill(rehearsal, PROMPT, &v.prefills[v.n_prefills++], &e), &e);
    must(rehearse_memory(rehearsal, &v.memory, &e), &e);
    calls = counted_calls() - calls;
    rehearse_close(&rehearsal);
    if (!c->brief) printf("--- %s\n", c->name);
    if (!c->brief) rehearse_view_table(&v);
    for (int i = 0; i < BATCHES; i++) tell_time(r, c, "decode", &v.decodes[i], c->most_ms[i]);
    tell_time(r, c, "prefill", &v.prefills[0], c->prefill_ms);
    tell_memory(r, c, &v.memory, calls);
}

void check_rehearse(struct result *r, const char *fixtures, bool layers)
{
    struct model_config config;
    struct error e = {0};
    char path[512];
    snprintf(path, sizeof path, "%s/deepseek-v3", fixtures);
    must(model_config_load(&config, path, &e), &e);
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        if (!layers || CASES[i].prefill_ms > 0) rehearse(r, &CASES[i], config);
    }
}
