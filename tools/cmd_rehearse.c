// penstock rehearse: one rank of a bigger deployment, at full size, on the device at hand. It needs
// a config.json, and no weights, peers, broker or Redis.
#include "common/options.h"
#include "kernels/devices.h"
#include "tools/commands.h"
#include "tools/csv.h"
#include "tools/engine_options.h"
#include "tools/outcome.h"
#include "tools/rehearse_view.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PREFILL_DEFAULT = 2048, CONTEXT_DEFAULT = 4096 };

struct asked {
    const char *model, *layers, *batch, *device, *precision, *kv, *rates, *here, *csv;
    int64_t pp, tp, stage, rank, vram, reserve, context, prefill, max_rows, threads;
    bool json;
};

struct answer {
    struct model_config config;
    struct plan_request request;
    struct plan plan;
    const struct backend *backend;
    int batches[REHEARSE_BATCHES_MAX], n_batches;
    struct rehearse_view view;
};

static enum status bad(struct error *e, const char *what)
{
    return error_set(e, ERR_INPUT, "bad_usage", "%s", what);
}

// --- what was asked

static enum status read_batches(const char *text, struct answer *to, struct error *e)
{
    for (const char *at = text; *at != '\0';) {
        char *end;
        long n = strtol(at, &end, 10);
        if (to->n_batches == REHEARSE_BATCHES_MAX || end == at || n < 1 || n > SLOTS_MAX ||
            (*end != ',' && *end != '\0') || (*end == ',' && end[1] == '\0')) {
            return error_set(e, ERR_INPUT, "bad_usage",
                             "--batch wants up to %d numbers of sequences from 1 to %d, e.g. "
                             "1,8,32, not \"%s\"", REHEARSE_BATCHES_MAX, SLOTS_MAX, text);
        }
        to->batches[to->n_batches++] = (int) n;
        at = *end == ',' ? end + 1 : end;
    }
    return to->n_batches > 0 ? OK : bad(e, "--batch is empty");
}

static enum status read_device(const struct asked *a, struct answer *to, struct error *e)
{
    struct devices d;
    const char *name = a->device;
    if (strcmp(name, "auto") == 0) name = backend_cuda() != NULL ? "cuda" : "cpu";
    if (strcmp(name, "cuda") != 0 && strcmp(name, "cpu") != 0) {
        return bad(e, "--device wants auto, cpu or cuda");
    }
    try(devices_parse(name, &d, e));
    to->backend = d.backend;
    return OK;
}

static int largest(const struct answer *n)
{
    int most = 0;
    for (int i = 0; i < n->n_batches; i++) most = n->batches[i] > most ? n->batches[i] : most;
    return most;
}

static enum status make_plan(const struct asked *a, struct answer *to, struct error *e)
{
    struct plan_request *r = &to->request;
    *r = (struct plan_request){.config = &to->config, .device = to->backend->kind,
                               .tp = (int) a->tp, .f32 = strcmp(a->precision, "f32") == 0,
                               .slots = largest(to), .max_context = (int) a->context,
                               .max_rows = (int) a->max_rows, .reserve = (uint64_t) a->reserve};
    try(kv_parse(a->kv, &r->fp8_kv, e));
    try(options_layers(a->layers, a->pp, r->layers, &r->pp, e));
    for (int i = 0; i < r->pp; i++) r->device_bytes[i] = (uint64_t) a->vram;
    try(plan_make(&to->plan, r, e));
    if (a->stage >= to->plan.pp) {
        return error_set(e, ERR_INPUT, "bad_usage", "--stage %lld: there are %d, counted from 0",
                         (long long) a->stage, to->plan.pp);
    }
    if (a->rank >= to->plan.tp) {
        return error_set(e, ERR_INPUT, "bad_usage", "--rank %lld: there are %d, counted from 0",
                         (long long) a->rank, to->plan.tp);
    }
    if (to->plan.fits && largest(to) > to->plan.max_rows) {
        return error_set(e, ERR_INPUT, "bad_usage",
                         "--batch %d: a step has up to %d rows (--max-rows)", largest(to),
                         to->plan.max_rows);
    }
    return OK;
}

// --- the rehearsal

static enum status rehearse(const struct asked *a, struct answer *n, struct error *e)
{
    struct rehearse_view *v = &n->view;
    struct rehearsal *r;
    struct rehearse_options o = {.request = &n->request, .plan = &n->plan, .stage = (int) a->stage,
                                 .rank = (int) a->rank, .backend = n->backend,
                                 .n_threads = (int) a->threads, .context = (int) a->context};
    *v = (struct rehearse_view){.request = &n->request, .plan = &n->plan, .stage = o.stage,
                                .rank = o.rank, .context = o.context,
                                .rates.there = a->rates != NULL
                                                   ? device_rates_find(a->rates)
                                                   : device_rates_of(n->backend->kind),
                                .rates.here = a->here != NULL ? device_rates_find(a->here) : NULL};
    try(rehearse_open(&r, &o, e));
    enum status status = OK;
    for (int i = 0; i < n->n_batches && status == OK; i++) {
        struct rehearse_time *t = &v->decodes[v->n_decodes];
        status = rehearse_decode(r, n->batches[i], t, e);
        if (status != OK) break;
        struct rehearse_own own = rehearse_time_own(t);
        v->predictions[v->n_decodes++] = rehearse_predict(&n->plan, &n->request, &v->rates, o.stage,
                                                          t->rows, o.context, &own);
    }
    int prompt = (int) a->prefill < n->plan.max_context ? (int) a->prefill : n->plan.max_context;
    int step = n->plan.chunk < prompt ? n->plan.chunk : prompt;
    if (status == OK && prompt > 0) {
        status = rehearse_prefill(r, step, &v->prefills[v->n_prefills++], e);
    }
    if (status == OK && prompt > step) {
        status = rehearse_prefill(r, prompt, &v->prefills[v->n_prefills++], e);
    }
    if (status == OK) status = rehearse_memory(r, &v->memory, e);
    rehearse_close(&r);
    return status;
}

static int tell_unfit(const struct asked *a, const struct answer *n)
{
    const struct plan *p = &n->plan;
    if (!a->json) {
        fprintf(stderr, "penstock rehearse: %s\n", p->reason);
        return EXIT_FAILED;
    }
    const struct ledger *l = &p->stages[a->stage];
    return outcome_json(json_pack("{s:b, s:s, s:I, s:I}", "fits", 0, "reason", p->reason,
                                  "total_bytes", (json_int_t) ledger_total(l), "device_bytes",
                                  (json_int_t) n->request.device_bytes[a->stage]),
                        EXIT_FAILED);
}

static enum status check_rates(const char *name, struct error *e)
{
    struct device_rates found;
    if (name == NULL || device_rates_named(&found, name, e) == OK) return OK;
    snprintf(e->code, sizeof e->code, "bad_usage");
    return e->status;
}

static enum status check_words(const struct asked *a, struct error *e)
{
    if (a->model == NULL) return bad(e, "--model is missing");
    if (a->vram == 0) return bad(e, "--vram is missing: the memory of a device, e.g. 24564MiB");
    if (strcmp(a->precision, "bf16") != 0 && strcmp(a->precision, "f32") != 0) {
        return bad(e, "--precision wants bf16 or f32");
    }
    try(check_rates(a->rates, e));
    return check_rates(a->here, e);
}

static int answer(const struct asked *a)
{
    static struct answer n; // too large for the stack
    struct error e = {0};
    FILE *csv = NULL;
    n = (struct answer){0};
    enum status status = check_words(a, &e);
    if (status == OK) status = read_batches(a->batch, &n, &e);
    if (status == OK) status = read_device(a, &n, &e);
    if (status == OK) status = model_config_load(&n.config, a->model, &e);
    if (status == OK) status = make_plan(a, &n, &e);
    if (status == OK && !n.plan.fits) return tell_unfit(a, &n);
    if (status == OK) status = csv_open(&csv, a->csv, &e);
    if (status == OK) status = rehearse(a, &n, &e);
    if (status == OK) rehearse_view_csv(&n.view, csv);
    status = csv_close(csv, a->csv, status, &e);
    if (status != OK) return outcome_failed("penstock rehearse", &e, a->json);
    if (a->json) return outcome_json(rehearse_view_json(&n.view), EXIT_DONE);
    rehearse_view_table(&n.view);
    return EXIT_DONE;
}

int cmd_rehearse(int argc, char **argv)
{
    struct asked a = {.batch = "1,8,32,128", .device = "auto", .precision = "bf16", .kv = "bf16",
                      .tp = 1, .context = CONTEXT_DEFAULT, .prefill = PREFILL_DEFAULT};
    struct option_spec specs[] = {
        {.name = "model", .kind = OPTION_STRING, .value = &a.model, .argument = "DIR|FILE",
         .help = "A config.json, or the directory that holds it."},
        {.name = "layers", .kind = OPTION_STRING, .value = &a.layers, .argument = "A,B,...",
         .help = "Layers of each stage of the deployment (default: chosen)."},
        {.name = "pp", .kind = OPTION_INT, .value = &a.pp, .argument = "N",
         .help = "Stages, where --layers does not say (default 1).", .least = 1, .most = PP_MAX},
        {.name = "tp", .kind = OPTION_INT, .value = &a.tp, .argument = "N",
         .help = "Ranks of a stage (default 1).", .least = 1, .most = TP_MAX},
        {.name = "stage", .kind = OPTION_INT, .value = &a.stage, .argument = "S",
         .help = "Which stage is rehearsed (default 0).", .least = 0, .most = PP_MAX - 1},
        {.name = "rank", .kind = OPTION_INT, .value = &a.rank, .argument = "R",
         .help = "Which of its ranks (default 0).", .least = 0, .most = TP_MAX - 1},
        {.name = "vram", .kind = OPTION_BYTES, .value = &a.vram, .argument = "BYTES",
         .help = "Memory of a device of the deployment, e.g. 24564MiB: no more is taken here."},
        {.name = "batch", .kind = OPTION_STRING, .value = &a.batch, .argument = "A,B,...",
         .help = "Sequences that decode in a step (default 1,8,32,128); the largest is the slots."},
        {.name = "context", .kind = OPTION_INT, .value = &a.context, .argument = "N",
         .help = "Tokens of each of them (default 4096).", .least = 1, .most = CONTEXT_MAX},
        {.name = "prefill", .kind = OPTION_INT, .value = &a.prefill, .argument = "N",
         .help = "Tokens of a prompt that is timed, too (default 2048; 0: none).", .least = 0,
         .most = CONTEXT_MAX},
        {.name = "max-rows", .kind = OPTION_INT, .value = &a.max_rows, .argument = "N",
         .help = "Token budget of a step (default 512).", .least = 1, .most = STEP_ROWS_MAX},
        {.name = "device", .kind = OPTION_STRING, .value = &a.device, .argument = "auto|cpu|cuda",
         .help = "The device at hand (default auto: cuda where the program has it)."},
        {.name = "threads", .kind = OPTION_INT, .value = &a.threads, .argument = "N",
         .help = "Of the CPU (default: its cores).", .least = 1, .most = DEVICE_THREADS_MAX},
        {.name = "precision", .kind = OPTION_STRING, .value = &a.precision, .argument = "bf16|f32",
         .help = "Of activations and KV (default bf16)."},
        KV_FLAG_ROW(a.kv),
        {.name = "rates", .kind = OPTION_STRING, .value = &a.rates, .argument = "NAME",
         .help = "Devices of the deployment, for what passes between them (default rtx4090, cpu)."},
        {.name = "here", .kind = OPTION_STRING, .value = &a.here, .argument = "NAME",
         .help = "The device at hand, if it is another: what is measured is scaled by the model."},
        {.name = "reserve", .kind = OPTION_BYTES, .value = &a.reserve, .argument = "BYTES",
         .help = "Of each device, left to others (default 0)."},
        CSV_FLAG_ROW(a.csv),
        {.name = "json", .kind = OPTION_FLAG, .value = &a.json,
         .help = "One JSON object on stdout instead of the tables."},
    };
    struct options o = {.program = "penstock rehearse",
                        .usage = "--model DIR|config.json --vram BYTES [OPTIONS]",
                        .about = "Runs one rank of a bigger deployment at full size on the device "
                                 "at hand, with random weights,\nand says what it holds, how long "
                                 "its steps take, and what that predicts.\n"
                                 "Exit status 1: it does not fit.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    return o.help ? EXIT_DONE : answer(&a);
}
