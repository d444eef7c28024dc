// penstock plan: whether a model fits on given devices, how it is cut into stages, and what each
// rank then holds. Reads config.json, the checkpoint's headers where they are, and with --files its
// index.
#include "common/options.h"
#include "common/plan.h"
#include "kernels/devices.h"
#include "tools/commands.h"
#include "tools/engine_options.h"
#include "tools/outcome.h"
#include "tools/plan_files.h"
#include "tools/plan_view.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct asked {
    const char *model, *vram, *layers, *compare, *precision, *kv, *device, *objective, *rates;
    int64_t nodes, gpus, reserve;
    int64_t pp, tp, kv_blocks, slots, max_context, max_rows;
    bool mtp, explain, files, json;
};

// What was made of it.
struct answer {
    struct model_config config;
    struct layout_types types;
    struct plan_machines machines;
    struct plan_request request;
    struct plan plan, other; // other: of --compare
    struct plan_view view;
    struct plan_files files;
};

// --- devices

static enum status bad(struct error *e, const char *what)
{
    return error_set(e, ERR_INPUT, "bad_usage", "%s", what);
}

// The next part of "a,b,c" into `part`; NULL behind the last.
static const char *next_part(const char *list, char *part, size_t n)
{
    size_t length = strcspn(list, ",");
    snprintf(part, n, "%.*s", (int) length, list);
    return list[length] == ',' ? list + length + 1 : NULL;
}

// n: up to one more than there are nodes.
static enum status check_values(const char *flag, int n, int nodes, struct error *e)
{
    if (n == nodes) return OK;
    return error_set(e, ERR_INPUT, "bad_usage",
                     "%s has %s%d values: one for all nodes, or one for each of the %d", flag,
                     n > nodes ? "over " : "", n > nodes ? nodes : n, nodes);
}

// One value for all nodes, or one for each.
static enum status read_vram(const char *text, struct plan_machines *m, struct error *e)
{
    int n = 0;
    char part[64];
    for (const char *at = text; at != NULL && n <= m->nodes; n++) {
        int64_t value = 0;
        struct error why;
        at = next_part(at, part, sizeof part);
        if (options_bytes(part, &value, &why) != OK || value <= 0) {
            return error_set(e, ERR_INPUT, "bad_usage",
                             "--vram wants the memory of a GPU, e.g. 24564MiB, not \"%s\"", part);
        }
        if (n < PP_MAX) m->bytes[n] = (uint64_t) value;
    }
    if (n > 1) try(check_values("--vram", n, m->nodes, e));
    for (int i = n; i < PP_MAX; i++) m->bytes[i] = n == 1 ? m->bytes[0] : 0;
    m->n_bytes = n;
    return OK;
}

static enum status read_device(const struct asked *a, enum device_kind *kind, struct error *e)
{
    *kind = N_DEVICE_KINDS;
    if (strcmp(a->device, "auto") == 0) return OK;
    *kind = device_kind_named(a->device);
    if (*kind == N_DEVICE_KINDS) return bad(e, "--device wants auto, cpu or cuda");
    return OK;
}

// One value for all nodes, or one for each.
static enum status read_rates(const char *text, struct plan_machines *m, struct error *e)
{
    int n = 0;
    char part[64];
    for (const char *at = text; at != NULL && n <= m->nodes; n++) {
        struct device_rates found;
        at = next_part(at, part, sizeof part);
        if (device_rates_named(&found, part, e) != OK) {
            snprintf(e->code, sizeof e->code, "bad_usage");
            return e->status;
        }
        if (n < PP_MAX) m->rates[n] = device_rates_find(part);
    }
    if (n > 1) try(check_values("--rates", n, m->nodes, e));
    for (int i = n; i < PP_MAX; i++) m->rates[i] = m->rates[0];
    m->n_rates = n;
    return OK;
}

// The request's pp is set where the user gave layers.
static enum status cut_nodes(const struct asked *a, struct answer *to, struct error *e)
{
    struct plan_machines *m = &to->machines;
    *m = (struct plan_machines){.nodes = (int) a->nodes, .gpus = (int) a->gpus,
                                .pp = (int) a->pp, .tp = (int) a->tp};
    try(read_vram(a->vram, m, e));
    try(read_device(a, &m->device, e));
    if (a->rates != NULL) try(read_rates(a->rates, m, e));
    try(plan_machines_cut(m, &to->request, e));
    int used = to->request.tp * plan_machines_per_node(m, to->request.pp);
    to->view.idle_gpus = m->gpus - used;
    return OK;
}

// --- the plan

// The headers know the types better than the config, where there are files.
static enum status read_types(const struct asked *a, struct answer *to, struct error *e)
{
    char path[4096];
    layout_types_imply(&to->types, &to->config);
    to->view.model = layout_model_size(&to->config, &to->types);
    const char *const names[] = {"model.safetensors.index.json", CHECKPOINT_SINGLE};
    bool there = false;
    for (int i = 0; i < 2 && !there; i++) {
        snprintf(path, sizeof path, "%s/%s", a->model, names[i]);
        there = access(path, F_OK) == 0;
    }
    struct checkpoint *checkpoint;
    struct error missing = {0};
    if (!there) return OK;
    if (checkpoint_open(&checkpoint, a->model, &missing) != OK) {
        // An index whose files are not downloaded yet.
        if (missing.status == ERR_IO) return OK;
        return error_set(e, missing.status, missing.code, "%s", missing.text);
    }
    enum status status = layout_check_checkpoint(&to->config, checkpoint, e);
    if (status == OK) {
        layout_types_read(&to->types, &to->config, checkpoint);
        to->view.model = (struct model_size){.tensors = checkpoint_n_tensors(checkpoint),
                                             .bytes = checkpoint_bytes(checkpoint)};
        for (int i = 0; i < checkpoint_n_tensors(checkpoint); i++) {
            const struct tensor *t = checkpoint_tensor(checkpoint, i);
            int64_t n = 1;
            for (int k = 0; k < t->n_dims; k++) n *= t->shape[k];
            to->view.model.elements += n;
        }
    }
    checkpoint_close(&checkpoint);
    return status;
}

static enum status make(const struct asked *a, struct answer *to, struct error *e)
{
    struct plan_request *r = &to->request;
    *r = (struct plan_request){.config = &to->config,
                               .types = &to->types,
                               .f32 = strcmp(a->precision, "f32") == 0,
                               .mtp = a->mtp,
                               .for_time = strcmp(a->objective, "time") == 0,
                               .kv_blocks = (int) a->kv_blocks,
                               .slots = (int) a->slots,
                               .max_context = (int) a->max_context,
                               .max_rows = (int) a->max_rows,
                               .reserve = (uint64_t) a->reserve};
    try(kv_parse(a->kv, &r->fp8_kv, e));
    if (a->layers != NULL) try(options_layers(a->layers, a->pp, r->layers, &r->pp, e));
    try(cut_nodes(a, to, e));
    if (strcmp(a->device, "cuda") == 0) r->context = devices_context(DEVICE_CUDA);
    try(plan_make(&to->plan, r, e));
    to->view.request = r;
    to->view.plan = &to->plan;
    if (!to->plan.fits) plan_remedies(r, &to->machines, &to->view.remedies);
    if (a->compare == NULL) return OK;
    struct plan_request other = *r;
    try(options_layers(a->compare, r->pp, other.layers, &other.pp, e));
    return plan_make(&to->other, &other, e);
}

// --- the answer

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

static int tell(const struct asked *a, const struct answer *n)
{
    int status = n->plan.fits ? EXIT_DONE : EXIT_FAILED;
    if (a->json) {
        json_t *plan = plan_view_json(&n->view);
        if (a->files) add_files(plan, &n->files);
        if (a->compare != NULL) {
            struct plan_view other = n->view;
            other.plan = &n->other;
            other.remedies.n = 0;
            json_object_set_new(plan, "compare", plan_view_json(&other));
        }
        return outcome_json(plan, status);
    }
    if (a->files) {
        print_files(&n->files);
        if (!n->plan.fits) fprintf(stderr, "penstock plan: %s\n", n->plan.reason);
        return status;
    }
    if (a->compare != NULL) plan_view_compare(&n->view, &n->other);
    else plan_view_table(&n->view);
    if (a->explain) plan_view_explain(&n->view);
    return status;
}

static enum status check_words(const struct asked *a, struct error *e)
{
    const struct {
        const char *value, *one, *other, *says;
    } words[] = {
        {a->precision, "bf16", "f32", "--precision wants bf16 or f32"},
        {a->objective, "kv", "time", "--objective wants kv or time"},
    };
    if (a->model == NULL) return bad(e, "--model is missing");
    if (a->vram == NULL) return bad(e, "--vram is missing: the memory of a GPU, e.g. 24564MiB");
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcmp(words[i].value, words[i].one) == 0) continue;
        if (strcmp(words[i].value, words[i].other) != 0) return bad(e, words[i].says);
    }
    return OK;
}

static int answer(const struct asked *a)
{
    static struct answer n; // too large for the stack
    struct error e = {0};
    n = (struct answer){0};
    enum status status = check_words(a, &e);
    if (status == OK) status = model_config_load(&n.config, a->model, &e);
    if (status == OK) status = read_types(a, &n, &e);
    if (status == OK) status = make(a, &n, &e);
    if (status == OK && a->files) {
        status = plan_files_find(&n.files, a->model, &n.config, &n.plan, &e);
    }
    if (status != OK) return outcome_failed("penstock plan", &e, a->json);
    int outcome = tell(a, &n);
    plan_files_deinit(&n.files);
    return outcome;
}

int cmd_plan(int argc, char **argv)
{
    struct asked a = {.precision = "bf16", .kv = "bf16", .device = "auto", .objective = "kv",
                      .nodes = 1, .gpus = 1};
    struct option_spec specs[] = {
        {.name = "model", .kind = OPTION_STRING, .value = &a.model, .argument = "DIR|FILE",
         .help = "Checkpoint directory, or a config.json."},
        {.name = "nodes", .kind = OPTION_INT, .value = &a.nodes, .argument = "N",
         .help = "Nodes (default 1).", .least = 1, .most = NODES_MAX},
        {.name = "gpus", .kind = OPTION_INT, .value = &a.gpus, .argument = "N",
         .help = "GPUs of a node (default 1).", .least = 1, .most = 1024},
        {.name = "vram", .kind = OPTION_STRING, .value = &a.vram, .argument = "BYTES[,...]",
         .help = "Memory of a GPU, e.g. 24564MiB or 80G; one value, or one a node."},
        {.name = "device", .kind = OPTION_STRING, .value = &a.device, .argument = "auto|cpu|cuda",
         .help = "Kind of device (default auto: cuda from 4 GiB on)."},
        {.name = "layers", .kind = OPTION_STRING, .value = &a.layers, .argument = "A,B,...",
         .help = "Layers of each stage (default: chosen)."},
        {.name = "objective", .kind = OPTION_STRING, .value = &a.objective, .argument = "kv|time",
         .help = "Choose layers for the most KV blocks (default), or the fastest slowest stage."},
        {.name = "rates", .kind = OPTION_STRING, .value = &a.rates, .argument = "NAME[,...]",
         .help = "What the devices do in a second, one or one a node: rtx4090, h100, cpu."},
        {.name = "pp", .kind = OPTION_INT, .value = &a.pp, .argument = "N",
         .help = "Stages (default: one a node).", .least = 1, .most = PP_MAX},
        {.name = "tp", .kind = OPTION_INT, .value = &a.tp, .argument = "N",
         .help = "Ranks of a stage (default: the GPUs of a node).", .least = 1, .most = TP_MAX},
        {.name = "kv-blocks", .kind = OPTION_INT, .value = &a.kv_blocks, .argument = "N",
         .help = "KV blocks of 64 tokens (default: what fits and can be used).", .least = 1,
         .most = SLOTS_MAX * (CONTEXT_MAX / KV_BLOCK_ROWS)},
        {.name = "slots", .kind = OPTION_INT, .value = &a.slots, .argument = "N",
         .help = "Sequences at once (default 32; on GPUs or with --kv-blocks what the pool holds; "
                 "fewer where memory is short).", .least = 1,
         .most = SLOTS_MAX},
        {.name = "max-context", .kind = OPTION_INT, .value = &a.max_context, .argument = "N",
         .help = "Tokens of a sequence (default 4096, fewer where memory is short).", .least = 1,
         .most = CONTEXT_MAX},
        {.name = "max-rows", .kind = OPTION_INT, .value = &a.max_rows, .argument = "N",
         .help = "Token budget of a step (default 512).", .least = 1, .most = STEP_ROWS_MAX},
        {.name = "precision", .kind = OPTION_STRING, .value = &a.precision, .argument = "bf16|f32",
         .help = "Of activations and KV (default bf16)."},
        KV_FLAG_ROW(a.kv),
        {.name = "mtp", .kind = OPTION_FLAG, .value = &a.mtp,
         .help = "With the layers of multi-token prediction, on the last stage."},
        {.name = "reserve", .kind = OPTION_BYTES, .value = &a.reserve, .argument = "BYTES",
         .help = "Of each GPU, left to others (default 0)."},
        {.name = "explain", .kind = OPTION_FLAG, .value = &a.explain,
         .help = "Also every line in bytes, what bounds the pool, and what each pinned limit "
                 "costs."},
        {.name = "compare", .kind = OPTION_STRING, .value = &a.compare, .argument = "A,B,...",
         .help = "The plan and one with these layers, side by side."},
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
    struct plan_machines machines = {.nodes = 1};
    enum status status = options_parse(&o, argc, argv, &e);
    machines.nodes = (int) a.nodes;
    if (status == OK && a.vram != NULL) status = read_vram(a.vram, &machines, &e);
    if (status == OK && a.rates != NULL) status = read_rates(a.rates, &machines, &e);
    if (status != OK) return outcome_usage(o.program, &e);
    return o.help ? EXIT_DONE : answer(&a);
}
