// penstock-broker: flags and PENSTOCK_* environment; runs until SIGTERM and exits 0, or 1 when it
// cannot go on, or 2 for usage.
#include "broker/broker.h"
#include "broker/http.h"
#include "broker/queue_lead.h"
#include "common/kv_block.h"
#include "common/log.h"
#include "common/options.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { EXIT_USAGE = 2, POOL_THREADS_MOST = 64 };

struct settings {
    struct broker_options broker;
    const char *precision, *kv, *log_level;
    int64_t tp, pipelines, spares, slots, max_context, max_rows, chunk, kv_blocks,
        default_max_tokens, pool_threads, age, urgent_share, fill_ms, step_ms;
    bool log_json;
};

static enum status usage(struct error *e, const char *text)
{
    return error_set(e, ERR_INPUT, "bad_usage", "%s", text);
}

static enum status parse(struct settings *s, int argc, char **argv, bool *help, struct error *e)
{
    struct broker_options *b = &s->broker;
    struct option_spec specs[] = {
        {.name = "redis", .kind = OPTION_STRING, .value = &b->redis, .argument = "URL",
         .help = "redis://[USER:PASSWORD@]HOST:PORT[/DB], rediss:// for TLS, or unix:///PATH."},
        {.name = "queue", .kind = OPTION_STRING, .value = &b->queue, .argument = "NAME",
         .help = "Name of the queue."},
        {.name = "listen", .kind = OPTION_STRING, .value = &b->door.listen, .argument = "ENDPOINT",
         .help = "Where groups connect; beyond loopback only with keys."},
        {.name = "name", .kind = OPTION_STRING, .value = &b->name, .argument = "NAME",
         .help = "Of this broker among those of the queue (default: HOST:PORT)."},
        {.name = "key", .kind = OPTION_STRING, .value = &b->door.key, .argument = "FILE",
         .help = "Secret key of the broker: groups connect encrypted, if --allow has their key."},
        {.name = "allow", .kind = OPTION_STRING, .value = &b->door.allow, .argument = "DIR",
         .help = "Folder of the groups' public keys; may change while the broker runs."},
        {.name = "insecure", .kind = OPTION_FLAG, .value = &b->door.insecure,
         .help = "Beyond loopback without keys: anyone may pose as a group, and read all."},
        {.name = "model", .kind = OPTION_LIST, .value = &b->models, .argument = "[NAME=]DIR",
         .help = "Checkpoint directory, for each model; the first is for jobs that name none."},
        {.name = "pp", .kind = OPTION_LIST, .value = &b->pp, .argument = "[MODEL=]N",
         .help = "Stages of a pipeline (default 1), of all models or of one."},
        {.name = "layers", .kind = OPTION_LIST, .value = &b->layers, .argument = "[MODEL=]A,B,..",
         .help = "Layers of each stage, instead of --pp."},
        {.name = "pipelines", .kind = OPTION_INT, .value = &s->pipelines, .argument = "N",
         .help = "Most replicas of each model; 0: as many as there are groups for, the default.",
         .least = 0, .most = PIPELINES_MAX},
        {.name = "spares", .kind = OPTION_INT, .value = &s->spares, .argument = "N",
         .help = "Groups kept idle for each model before a further pipeline is formed.",
         .least = 0, .most = FLEET_GROUPS_MAX},
        {.name = "tp", .kind = OPTION_INT, .value = &s->tp, .argument = "N",
         .help = "Ranks that each group must have; 0: as many as the first one has.", .least = 0,
         .most = TP_MAX},
        {.name = "precision", .kind = OPTION_STRING, .value = &s->precision,
         .argument = "auto|f32|bf16", .help = "f32 is exact; auto: what the groups prefer."},
        {.name = "kv", .kind = OPTION_STRING, .value = &s->kv, .argument = "bf16|fp8",
         .help = "Of KV in memory: as activations (default), or FP8, little more than half of it."},
        {.name = "slots", .kind = OPTION_INT, .value = &s->slots, .argument = "N",
         .help = "Sequences at once; 0: chosen.", .least = 0, .most = SLOTS_MAX},
        {.name = "max-context", .kind = OPTION_INT, .value = &s->max_context, .argument = "N",
         .help = "Most tokens of prompt and output; 0: chosen.", .least = 0, .most = CONTEXT_MAX},
        {.name = "max-rows", .kind = OPTION_INT, .value = &s->max_rows, .argument = "N",
         .help = "Token budget of a step; 0: chosen.", .least = 0, .most = STEP_ROWS_MAX},
        {.name = "chunk", .kind = OPTION_INT, .value = &s->chunk, .argument = "N",
         .help = "Most prefill tokens of one sequence in a step; 0: the budget.", .least = 0,
         .most = STEP_ROWS_MAX},
        {.name = "wait-fill-ms", .kind = OPTION_INT, .value = &s->fill_ms, .argument = "MS",
         .help = "A step waits at most so long for more rows, which makes each of them cheaper; "
         "class 0 never does (default 5, 0: none does).", .least = 0, .most = WAIT_FILL_MS_MAX},
        {.name = "step-ms", .kind = OPTION_INT, .value = &s->step_ms, .argument = "MS",
         .help = "A step gets only so many prefill tokens that it takes no longer: first tokens "
         "wait for the steps before them (default 250, 0: any time).", .least = 0,
         .most = STEP_MS_MAX},
        {.name = "kv-blocks", .kind = OPTION_INT, .value = &s->kv_blocks, .argument = "N",
         .help = "KV blocks of the pool; 0: what fits.", .least = 0, .most = 1 << 28},
        {.name = "default-max-tokens", .kind = OPTION_INT, .value = &s->default_max_tokens,
         .argument = "N", .help = "Where a job gives no max_tokens.", .least = 1,
         .most = CONTEXT_MAX},
        {.name = "pool-threads", .kind = OPTION_INT, .value = &s->pool_threads, .argument = "N",
         .help = "Threads that tokenize, for each of intake and dispatch.", .least = 1,
         .most = POOL_THREADS_MOST},
        {.name = "age", .kind = OPTION_INT, .value = &s->age, .argument = "S",
         .help = "Seconds after which a ready job counts as a class higher; 0: never.", .least = 0,
         .most = 30 * 24 * 3600},
        {.name = "urgent-share", .kind = OPTION_INT, .value = &s->urgent_share,
         .argument = "PERCENT", .help = "Of each pipeline's slots and blocks, kept free for "
         "class 0 (default 5).", .least = 0, .most = 50},
        {.name = "max-queued-bytes", .kind = OPTION_BYTES, .value = &b->max_queued_bytes,
         .argument = "BYTES",
         .help = "Of all messages that wait or run; beyond, nothing is taken in; 0: no limit."},
        {.name = "accept-loss", .kind = OPTION_FLAG, .value = &b->accept_loss,
         .help = "Go on with settings of Redis that can lose acknowledged jobs."},
        {.name = "metrics", .kind = OPTION_STRING, .value = &b->metrics, .argument = "[IP:]PORT",
         .help = "Where Prometheus may read figures over HTTP, and /healthz is; without IP of this "
         "machine only."},
        {.name = "status", .kind = OPTION_STRING, .value = &b->status, .argument = "FILE",
         .help = "Where the broker writes how it is, for penstock health."},
        {.name = "log-json", .kind = OPTION_FLAG, .value = &s->log_json,
         .help = "Log lines as JSON objects."},
        {.name = "log-level", .kind = OPTION_STRING, .value = &s->log_level,
         .argument = "LEVEL", .help = "Least level that is logged: debug, info, warn, error."},
    };
    struct options o = {.program = "penstock-broker",
                        .usage = "--model [NAME=]DIR [OPTIONS]",
                        .about = "Takes jobs from Redis, gives them to worker groups and stores "
                                 "their results.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs,
                        .environment = true};
    enum status status = options_parse(&o, argc, argv, e);
    *help = o.help;
    return status;
}

static enum status read_precision(const char *text, enum groups_precision *to, struct error *e)
{
    static const char *const names[] = {"auto", "f32", "bf16"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(text, names[i]) != 0) continue;
        *to = (enum groups_precision) i;
        return OK;
    }
    return usage(e, "--precision wants auto, f32 or bf16");
}

// What is wrong with the flags in themselves is said before anything starts.
static enum status check_stages(const struct broker_options *b, struct error *e)
{
    for (int i = 0; i < b->models.n; i++) {
        char name[JOB_MODEL_MAX + 1];
        const char *dir;
        int layers[PP_MAX], pp;
        try(model_spec(b->models.at[i], name, &dir, e));
        try(options_stages(&b->pp, &b->layers, name, layers, &pp, e));
    }
    return OK;
}

static enum status settle(struct settings *s, enum log_level *level, struct error *e)
{
    struct broker_options *b = &s->broker;
    if (b->models.n == 0) return usage(e, "--model is missing");
    try(check_stages(b, e));
    try(read_precision(s->precision, &b->precision, e));
    try(kv_parse(s->kv, &b->fp8_kv, e));
    try(log_level_parse(s->log_level, level, e));
    try(door_check(&b->door, e));
    if (b->metrics != NULL) try(http_check(b->metrics, e));
    if (b->name != NULL) try(queue_lead_check_name(b->name, e));
    b->pipelines = (int) s->pipelines;
    b->spares = (int) s->spares;
    b->tp = (int) s->tp;
    b->slots = (int) s->slots;
    b->max_context = (int) s->max_context;
    b->max_rows = (int) s->max_rows;
    b->chunk = (int) s->chunk;
    b->kv_blocks = (int) s->kv_blocks;
    b->fill_ms = (int) s->fill_ms;
    b->step_ms = (int) s->step_ms;
    b->default_max_tokens = (int) s->default_max_tokens;
    b->pool_threads = (int) s->pool_threads;
    b->age_ms = s->age * 1000;
    b->urgent_percent = (int) s->urgent_share;
    return OK;
}

static int64_t default_threads(void)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > 4 ? 4 : n;
}

int main(int argc, char **argv)
{
    struct settings s = {.broker = {.redis = "redis://127.0.0.1:6379",
                                    .queue = "default",
                                    .door.listen = "tcp://127.0.0.1:7300"},
                         .precision = "auto",
                         .kv = "bf16",
                         .log_level = "info",
                         .age = 600,
                         .urgent_share = 5,
                         .fill_ms = WAIT_FILL_MS,
                         .step_ms = STEP_MS,
                         .default_max_tokens = DEFAULT_MAX_TOKENS,
                         .pool_threads = default_threads()};
    struct error e = {0};
    enum log_level level = LOG_INFO;
    bool help = false;
    enum status status = parse(&s, argc, argv, &help, &e);
    if (help) return 0;
    if (status == OK) status = settle(&s, &level, &e);
    if (status != OK) {
        fprintf(stderr, "penstock-broker: %s\n", e.text);
        return EXIT_USAGE;
    }
    log_init("broker", level, s.log_json);
    status = broker_run(&s.broker, &e);
    if (status == OK) return 0;
    log_line(LOG_ERROR, "failed", log_str("code", e.code), log_str("error", e.text));
    return strcmp(e.code, "bad_usage") == 0 || strcmp(e.code, "bad_plan") == 0 ? EXIT_USAGE : 1;
}
