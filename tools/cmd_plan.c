// penstock plan: whether a model fits on given devices, how it is cut into stages, and what each
// rank then holds. Reads config.json only, and with --files the checkpoint's index.
#include "common/options.h"
#include "common/plan.h"
#include "tools/commands.h"
#include "tools/outcome.h"
#include "tools/plan_files.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct asked {
    const char *model, *layers, *precision;
    int64_t nodes, gpus, vram, reserve;
    int64_t pp, tp, slots, max_context, max_rows;
    bool files, json;
};

// A stage lies on one node, and a node with more devices than tp holds several. r's pp is set where
// the user gave layers.
static enum status cut_nodes(const struct asked *a, const struct model_config *c,
                             struct plan_request *r, struct error *e)
{
    int64_t tp = a->tp > 0 ? a->tp : a->gpus;
    if (tp > a->gpus) {
        return error_set(e, ERR_INPUT, "bad_tp", "tp %" PRId64 " is more than the %" PRId64
                         " GPUs of a node", tp, a->gpus);
    }
    int64_t stages = a->nodes * (a->gpus / tp), pp = r->pp > 0 ? r->pp : a->pp;
    if (pp == 0) {
        pp = a->tp > 0 ? stages : a->nodes;
        if (pp > c->n_layers) pp = c->n_layers;
        if (pp > PP_MAX) pp = PP_MAX;
    }
    if (pp > stages) {
        return error_set(e, ERR_INPUT, "bad_plan", "%" PRId64 " stages of %" PRId64
                         " GPUs need more than %" PRId64 " nodes of %" PRId64, pp, tp, a->nodes,
                         a->gpus);
    }
    r->pp = (int) pp;
    r->tp = (int) tp;
    for (int i = 0; i < r->pp; i++) r->device_bytes[i] = (uint64_t) a->vram;
    return OK;
}

static enum status make(const struct asked *a, const struct model_config *c, struct plan *p,
                        struct error *e)
{
    struct plan_request r = {.config = c,
                             .f32 = strcmp(a->precision, "f32") == 0,
                             .slots = (int) a->slots,
                             .max_context = (int) a->max_context,
                             .max_rows = (int) a->max_rows,
                             .reserve = (uint64_t) a->reserve};
    if (a->layers != NULL) try(options_layers(a->layers, a->pp, r.layers, &r.pp, e));
    try(cut_nodes(a, c, &r, e));
    return plan_make(p, &r, e);
}

// --- the answer

static void print_table(const struct asked *a, const struct plan *p)
{
    double unit = a->vram < 4 * GIB ? MIB : GIB, vram = (double) a->vram / unit;
    const char *name = a->vram < 4 * GIB ? "MiB" : "GiB";
    printf("%d stages of %d ranks, %.2f %s a rank; %s of the largest rank by kind:\n\n", p->pp,
           p->tp, vram, name, name);
    printf("%5s %9s %8s %8s %8s %8s %8s %8s %8s %8s %8s\n", "stage", "layers", "weights", "KV",
           "activ.", "logits", "sampler", "scratch", "reserve", "total", "free");
    for (int i = 0; i < p->pp; i++) {
        const uint64_t *l = p->stages[i].bytes;
        uint64_t total = ledger_total(&p->stages[i]);
        const uint64_t bytes[] = {p->weight_bytes[i],   l[LEDGER_KV],      l[LEDGER_ACTIVATIONS],
                                  l[LEDGER_LOGITS],     l[LEDGER_SAMPLER], l[LEDGER_SCRATCH],
                                  l[LEDGER_RESERVE],    total};
        char layers[24];
        snprintf(layers, sizeof layers, "%d-%d", p->first[i], p->first[i] + p->layers[i] - 1);
        printf("%5d %9s", i, layers);
        for (size_t k = 0; k < sizeof bytes / sizeof *bytes; k++) {
            printf(" %8.3f", (double) bytes[k] / unit);
        }
        printf(" %8.3f\n", vram - (double) total / unit);
    }
    printf("\nlayers      ");
    for (int i = 0; i < p->pp; i++) printf("%s%d", i > 0 ? "," : "", p->layers[i]);
    printf("\nKV blocks   %d of %d tokens: %lld tokens\n", p->kv_blocks, KV_BLOCK_ROWS,
           (long long) p->kv_blocks * KV_BLOCK_ROWS);
    printf("slots       %d sequences at once, each up to %d tokens\n", p->slots, p->max_context);
    printf("step        %d rows; %d steps in flight\n\n", p->max_rows, p->steps_in_flight);
    if (p->reason[0] != '\0') printf("%s%s\n", p->fits ? "note: " : "", p->reason);
    puts(p->fits ? "It fits." : "It does not fit.");
}

static json_t *stage_json(const struct plan *p, int i)
{
    const struct ledger *l = &p->stages[i];
    json_t *stage = json_pack("{s:i, s:i, s:I, s:I}", "first", p->first[i], "last",
                              p->first[i] + p->layers[i], "weight_bytes_per_rank",
                              (json_int_t) p->weight_bytes[i], "kv_block_bytes",
                              (json_int_t) p->kv_block_bytes[i]);
    json_t *lines = json_object();
    for (int k = 0; k < LEDGER_LINES; k++) {
        json_object_set_new(lines, ledger_name((enum ledger_line) k),
                            json_integer((json_int_t) l->bytes[k]));
    }
    json_object_set_new(stage, "ledger", lines);
    json_object_set_new(stage, "total_bytes", json_integer((json_int_t) ledger_total(l)));
    return stage;
}

static json_t *stages_json(const struct plan *p)
{
    json_t *list = json_array();
    for (int i = 0; i < p->pp; i++) {
        json_array_append_new(list, stage_json(p, i));
    }
    return list;
}

// For scripts: a line a file, with the stage that reads it; neighbours may share one.
static void print_files(const struct plan_files *f)
{
    for (int i = 0; i < f->n_stages; i++) {
        for (int k = 0; k < f->index.n_files; k++) {
            const char *name = plan_files_name(f, i, k);
            if (name != NULL) printf("%d\t%s\n", i, name);
        }
    }
}

static void add_files(json_t *plan, const struct plan_files *f)
{
    for (int i = 0; i < f->n_stages; i++) {
        json_t *list = json_array();
        for (int k = 0; k < f->index.n_files; k++) {
            const char *name = plan_files_name(f, i, k);
            if (name != NULL) json_array_append_new(list, json_string(name));
        }
        json_object_set_new(json_array_get(json_object_get(plan, "stages"), (size_t) i), "files",
                            list);
    }
}

// Layers are [first, last).
static json_t *plan_json(const struct plan *p)
{
    json_t *layers = json_array();
    for (int i = 0; i < p->pp; i++) json_array_append_new(layers, json_integer(p->layers[i]));
    return json_pack(
        "{s:b, s:o, s:i, s:i, s:o, s:i, s:I, s:i, s:i, s:i, s:i, s:s?}", "fits", p->fits, "layers",
        layers, "tp", p->tp, "pp", p->pp, "stages", stages_json(p), "kv_blocks", p->kv_blocks,
        "kv_tokens", (json_int_t) p->kv_blocks * KV_BLOCK_ROWS, "slots", p->slots, "max_context",
        p->max_context, "max_rows", p->max_rows, "steps_in_flight", p->steps_in_flight, "reason",
        p->reason[0] != '\0' ? p->reason : NULL);
}

static int answer(const struct asked *a, const struct plan *p, const struct plan_files *files)
{
    int status = p->fits ? EXIT_DONE : EXIT_FAILED;
    if (a->json) {
        json_t *plan = plan_json(p);
        if (a->files) add_files(plan, files);
        return outcome_json(plan, status);
    }
    if (a->files) print_files(files);
    else print_table(a, p);
    if (a->files && !p->fits) fprintf(stderr, "penstock plan: %s\n", p->reason);
    return status;
}

int cmd_plan(int argc, char **argv)
{
    struct asked a = {.precision = "bf16", .nodes = 1, .gpus = 1};
    struct option_spec specs[] = {
        {.name = "model", .kind = OPTION_STRING, .value = &a.model, .argument = "DIR|FILE",
         .help = "Checkpoint directory, or a config.json."},
        {.name = "nodes", .kind = OPTION_INT, .value = &a.nodes, .argument = "N",
         .help = "Nodes (default 1).", .least = 1, .most = 4096},
        {.name = "gpus", .kind = OPTION_INT, .value = &a.gpus, .argument = "N",
         .help = "GPUs of a node (default 1).", .least = 1, .most = 1024},
        {.name = "vram", .kind = OPTION_BYTES, .value = &a.vram, .argument = "BYTES",
         .help = "Memory of a GPU, e.g. 24564MiB or 80G."},
        {.name = "layers", .kind = OPTION_STRING, .value = &a.layers, .argument = "A,B,...",
         .help = "Layers of each stage (default: chosen)."},
        {.name = "pp", .kind = OPTION_INT, .value = &a.pp, .argument = "N",
         .help = "Stages (default: one a node; with --tp, all that the GPUs allow).", .least = 1,
         .most = PP_MAX},
        {.name = "tp", .kind = OPTION_INT, .value = &a.tp, .argument = "N",
         .help = "Ranks of a stage (default: the GPUs of a node).", .least = 1, .most = TP_MAX},
        {.name = "slots", .kind = OPTION_INT, .value = &a.slots, .argument = "N",
         .help = "Sequences at once (default 32, fewer where memory is short).", .least = 1,
         .most = SLOTS_MAX},
        {.name = "max-context", .kind = OPTION_INT, .value = &a.max_context, .argument = "N",
         .help = "Tokens of a sequence (default 4096, fewer where memory is short).", .least = 1,
         .most = CONTEXT_MAX},
        {.name = "max-rows", .kind = OPTION_INT, .value = &a.max_rows, .argument = "N",
         .help = "Token budget of a step (default 512).", .least = 1, .most = STEP_ROWS_MAX},
        {.name = "precision", .kind = OPTION_STRING, .value = &a.precision, .argument = "bf16|f32",
         .help = "Of activations and KV (default bf16)."},
        {.name = "reserve", .kind = OPTION_BYTES, .value = &a.reserve, .argument = "BYTES",
         .help = "Of each GPU, left to others (default 0)."},
        {.name = "files", .kind = OPTION_FLAG, .value = &a.files,
         .help = "Instead of the table: STAGE and the name of each checkpoint file it reads."},
        {.name = "json", .kind = OPTION_FLAG, .value = &a.json,
         .help = "One JSON object on stdout instead of the table."},
    };
    struct options o = {.program = "penstock plan",
                        .usage = "--model DIR|config.json --vram BYTES [OPTIONS]",
                        .about = "Says whether a model fits on given devices, which layers go "
                                 "where, and what each rank holds.\n"
                                 "Exit status 1: it does not fit.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    bool f32 = strcmp(a.precision, "f32") == 0;
    if (a.model == NULL || a.vram <= 0 || (!f32 && strcmp(a.precision, "bf16") != 0)) {
        error_set(&e, ERR_INPUT, "bad_usage", "%s",
                  a.model == NULL ? "--model is missing"
                  : a.vram <= 0   ? "--vram is missing: the memory of a GPU, e.g. 24564MiB"
                                  : "--precision wants bf16 or f32");
        return outcome_failed(o.program, &e, a.json);
    }
    struct model_config c;
    struct plan p;
    if (model_config_load(&c, a.model, &e) != OK) return outcome_failed(o.program, &e, a.json);
    if (make(&a, &c, &p, &e) != OK) return outcome_failed(o.program, &e, a.json);
    struct plan_files files = {0};
    if (a.files && plan_files_find(&files, a.model, &c, &p, &e) != OK) {
        return outcome_failed(o.program, &e, a.json);
    }
    int status = answer(&a, &p, &files);
    plan_files_deinit(&files);
    return status;
}
