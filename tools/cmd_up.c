// penstock up: everything on one machine. Redis with settings that lose nothing, the broker and the
// groups run as child processes; what dies is started again; Ctrl-C stops all in order.
#include "broker/http.h"
#include "broker/model.h"
#include "broker/redis.h"
#include "common/bars.h"
#include "common/clock.h"
#include "common/limits.h"
#include "common/memory.h"
#include "common/options.h"
#include "common/plan.h"
#include "kernels/precision.h"
#include "tools/commands.h"
#include "tools/engine_options.h"
#include "tools/outcome.h"
#include "tools/supervise.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { REDIS_STOP_MS = 30000, BROKER_STOP_MS = 10000, TURN_MS = 1000 };
_Static_assert(PP_MAX + 1 + BROKERS_MAX <= CHILDREN_MAX, "a group a stage, Redis and brokers");

struct served {
    char name[JOB_MODEL_MAX + 1];
    const char *dir;
    int n_stages;
};

struct up {
    struct option_list models, pp, layers;
    const char *redis, *data_dir, *queue, *precision, *kv, *metrics;
    int64_t brokers, broker_ports[BROKERS_MAX];
    int64_t pipelines, tp, spares, threads, redis_port, broker_port, device_memory, drain_s,
        max_context, slots, max_rows;
    bool quiet, log_json, accept_loss;
    // of the run
    char url[REDIS_HOST_MAX + 64]; // as it is shown: without a password
    char bin[PATH_MAX];
    struct served served[MODELS_MAX];
    struct supervisor supervisor;
    int first_group, first_broker; // indexes of children; Redis, if it is ours, is 0
    FILE *log;
    int n_serving; // times that a pipeline came up
    bool ready;
};

// --- ports and folders

static int bind_port(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t) port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    bool ok = fd >= 0 && bind(fd, (struct sockaddr *) &a, sizeof a) == 0 && listen(fd, 1) == 0 &&
              getsockname(fd, (struct sockaddr *) &a, &n) == 0;
    if (fd >= 0) close(fd);
    return ok ? ntohs(a.sin_port) : -1;
}

// A free port of loopback: the one that was asked for, or any one for 0.
static enum status take_port(int64_t *port, const char *flag, struct error *e)
{
    int got = bind_port((int) *port);
    if (got < 0) {
        return error_set(e, ERR_IO, "port_taken",
                         "port %lld of 127.0.0.1 is taken: give another one with --%s, or 0 for "
                         "any", (long long) *port, flag);
    }
    *port = got;
    return OK;
}

static enum status make_folder(const char *path, struct error *e)
{
    if (mkdir(path, 0700) == 0 || errno == EEXIST) return OK;
    return error_set(e, ERR_IO, NULL, "cannot make the folder %s: %s", path, strerror(errno));
}

static enum status make_folders(struct up *u, struct error *e)
{
    char path[PATH_MAX];
    try(make_folder(u->data_dir, e));
    snprintf(path, sizeof path, "%s/redis", u->data_dir);
    try(make_folder(path, e));
    snprintf(path, sizeof path, "%s/manifests", u->data_dir);
    try(make_folder(path, e));
    snprintf(path, sizeof path, "%s/penstock.log", u->data_dir);
    u->log = fopen(path, "ae");
    if (u->log == NULL) {
        return error_set(e, ERR_IO, NULL, "cannot write %s: %s", path, strerror(errno));
    }
    return OK;
}

// The folder of this program: broker and worker lie beside it.
static enum status find_programs(struct up *u, struct error *e)
{
    ssize_t n = readlink("/proc/self/exe", u->bin, sizeof u->bin - 1);
    if (n <= 0) return error_set(e, ERR_IO, NULL, "cannot find this program's folder");
    u->bin[n] = 0;
    *strrchr(u->bin, '/') = 0;
    return OK;
}

// --- children

static void add_redis(struct up *u)
{
    struct child *c = supervisor_add(&u->supervisor, "redis", REDIS_STOP_MS);
    child_arg(c, "redis-server");
    child_arg(c, "--port");
    child_arg(c, "%lld", (long long) u->redis_port);
    child_arg(c, "--bind");
    child_arg(c, "127.0.0.1");
    child_arg(c, "--dir");
    child_arg(c, "%s/redis", u->data_dir);
    static const char *const settings[] = {
        "--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction",
        "--notify-keyspace-events", "Kl", "--daemonize", "no", "--save", "",
        "--loglevel", "warning",
    };
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) child_arg(c, "%s", settings[i]);
}

static void add_number(struct child *c, const char *flag, int64_t value)
{
    if (value == 0) return;
    child_arg(c, "--%s", flag);
    child_arg(c, "%lld", (long long) value);
}

static void add_text(struct child *c, const char *flag, const char *value)
{
    if (value == NULL) return;
    child_arg(c, "--%s", flag);
    child_arg(c, "%s", value);
}

static void add_list(struct child *c, const char *flag, const struct option_list *values)
{
    for (int i = 0; i < values->n; i++) add_text(c, flag, values->at[i]);
}

// The first broker's is where people look; of the others the log says.
static void add_metrics(struct up *u, struct child *c, int i)
{
    const char *colon = u->metrics != NULL ? strrchr(u->metrics, ':') : NULL;
    if (i == 0 || u->metrics == NULL) {
        add_text(c, "metrics", u->metrics);
    } else {
        child_arg(c, "--metrics");
        child_arg(c, "%.*s0", colon != NULL ? (int) (colon + 1 - u->metrics) : 0, u->metrics);
    }
}

// One leads, the others stand by.
static void add_broker(struct up *u, int i)
{
    char name[32] = "broker";
    if (i > 0) snprintf(name, sizeof name, "broker-%d", i + 1);
    struct child *c = supervisor_add(&u->supervisor, name, BROKER_STOP_MS);
    child_arg(c, "%s/penstock-broker", u->bin);
    add_text(c, "queue", u->queue); // where Redis is, the environment says: it may hold a password
    child_arg(c, "--listen");
    child_arg(c, "tcp://127.0.0.1:%lld", (long long) u->broker_ports[i]);
    add_list(c, "model", &u->models);
    add_list(c, "layers", &u->layers);
    add_list(c, "pp", &u->pp);
    add_number(c, "tp", u->tp);
    add_number(c, "pipelines", u->pipelines);
    add_number(c, "spares", u->spares);
    add_text(c, "precision", u->precision);
    add_text(c, "kv", u->kv);
    add_number(c, "max-context", u->max_context);
    add_number(c, "slots", u->slots);
    add_number(c, "max-rows", u->max_rows);
    add_metrics(u, c, i);
    if (u->accept_loss) child_arg(c, "--accept-loss");
    if (u->log_json) child_arg(c, "--log-json");
}

static void add_group(struct up *u, const struct served *served, int i)
{
    char name[32], brokers[BROKERS_MAX * 32] = "";
    snprintf(name, sizeof name, "group-%d", i);
    for (int k = 0; k < u->brokers; k++) {
        size_t n = strlen(brokers);
        snprintf(brokers + n, sizeof brokers - n, "%stcp://127.0.0.1:%lld", k > 0 ? "," : "",
                 (long long) u->broker_ports[k]);
    }
    struct child *c = supervisor_add(&u->supervisor, name, (int) u->drain_s * 1000 + 5000);
    child_arg(c, "%s/penstock-worker", u->bin);
    add_text(c, "broker", brokers);
    add_text(c, "model", served->dir);
    child_arg(c, "--devices");
    child_arg(c, "cpu:%lld", (long long) u->tp);
    add_text(c, "name", name);
    add_text(c, "precision", u->precision);
    add_number(c, "threads", u->threads);
    add_number(c, "device-memory", u->device_memory);
    child_arg(c, "--manifest");
    child_arg(c, "%s/manifests", u->data_dir);
    child_arg(c, "--drain");
    child_arg(c, "%lld", (long long) u->drain_s);
    if (u->log_json) child_arg(c, "--log-json");
}

// Groups with a stage.
static int64_t n_working(const struct up *u)
{
    int64_t n = 0;
    for (int i = 0; i < u->models.n; i++) n += u->served[i].n_stages * u->pipelines;
    return n;
}

static void add_children(struct up *u)
{
    int64_t n_ranks = n_working(u) * u->tp, cores = sysconf(_SC_NPROCESSORS_ONLN);
    // A spare computes nothing until it stands in for another; memory it must have ready.
    int64_t n_held = n_ranks + u->models.n * u->spares * u->tp;
    if (u->threads == 0) u->threads = cores > n_ranks ? cores / n_ranks : 1;
    if (u->device_memory == 0) u->device_memory = (int64_t) memory_share(n_held);
    if (u->redis == NULL) add_redis(u);
    u->first_broker = u->supervisor.n_children;
    for (int i = 0; i < u->brokers; i++) add_broker(u, i);
    u->first_group = u->supervisor.n_children;
    for (int m = 0, n = 0; m < u->models.n; m++) {
        const struct served *served = &u->served[m];
        int64_t end = n + served->n_stages * u->pipelines + u->spares;
        while (n < end) add_group(u, served, n++);
    }
}

// --- what people see

static void say(struct up *u, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void say(struct up *u, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    bars_clear();
    fprintf(stderr, "penstock up: %s\n", text);
    fprintf(u->log, "penstock up: %s\n", text);
    fflush(u->log);
}

// The number that a log line has under `key`, in either form; false: it has none.
static bool number_of(const char *line, const char *key, uint64_t *value)
{
    const char *at = strstr(line, key);
    if (at == NULL) return false;
    at += strlen(key);
    while (*at == '"' || *at == ':' || *at == '=') at++;
    char *end;
    *value = strtoull(at, &end, 10);
    return end != at;
}

// On a terminal a group that loads is a bar, and its lines are only in the log.
static bool is_bar(const struct child *c, const char *line)
{
    uint64_t loaded, total;
    if (isatty(STDERR_FILENO) != 1) return false;
    if (strstr(line, "event=loaded ") != NULL || strstr(line, "\"event\":\"loaded\"") != NULL) {
        bars_drop(c->name);
    }
    if (!number_of(line, "loaded_bytes", &loaded) || !number_of(line, "load_bytes", &total)) {
        return false;
    }
    bars_show(c->name, loaded, total, clock_ms());
    return true;
}

static void on_line(void *arg, struct child *c, const char *line)
{
    struct up *u = arg;
    ptrdiff_t index = c - u->supervisor.children;
    bool broker = index >= u->first_broker && index < u->first_group;
    fprintf(u->log, "%s\n", line);
    fflush(u->log);
    if (is_bar(c, line)) return;
    bars_clear();
    bool redis = strcmp(c->name, "redis") == 0; // its banner is no news
    bool warns = strstr(line, "level=warn") != NULL || strstr(line, "level=error") != NULL ||
                 (!redis && strncmp(line, "t=", 2) != 0 && line[0] != '{');
    if (!u->quiet || warns) fprintf(stderr, "%s\n", line);
    if (!broker || (strstr(line, "event=serving") == NULL &&
                    strstr(line, "\"event\":\"serving\"") == NULL)) {
        return;
    }
    u->n_serving++;
    if (u->ready || u->n_serving < u->models.n * u->pipelines) return;
    say(u, "serving; give it jobs with: penstock enqueue --redis %s --prompt TEXT", u->url);
    u->ready = true;
    printf("ready redis=%s\n", u->url); // once, for programs
    fflush(stdout);
}

static void on_started(void *arg, struct child *c)
{
    struct up *u = arg;
    say(u, "%s %s, pid %d", c->name, c->n_starts > 1 ? "started again" : "started", (int) c->pid);
}

static void on_ended(void *arg, struct child *c, int status)
{
    struct up *u = arg;
    bars_drop(c->name);
    if (WIFSIGNALED(status)) {
        say(u, "%s ended by signal %d", c->name, WTERMSIG(status));
    } else {
        say(u, "%s ended with status %d", c->name, WEXITSTATUS(status));
    }
}

// --- the run

// The children read the URL from the environment, where other users do not see it.
static enum status find_redis(struct up *u, struct error *e)
{
    struct redis_url url;
    if (u->redis == NULL) {
        try(take_port(&u->redis_port, "redis-port", e));
        snprintf(u->url, sizeof u->url, "redis://127.0.0.1:%lld", (long long) u->redis_port);
    } else {
        try(redis_url_parse(u->redis, &url, e));
        redis_url_show(&url, u->url, sizeof u->url);
    }
    if (setenv("PENSTOCK_REDIS", u->redis != NULL ? u->redis : u->url, 1) == 0) return OK;
    return error_set(e, ERR_NOMEM, NULL, "no memory for the environment");
}

// What would only show in a child's log is said here.
static enum status check_plan(struct up *u, struct served *served, const char *spec,
                              struct error *e)
{
    struct model_config config;
    enum precision precision;
    struct plan plan;
    struct plan_request r = {.config = &config, .tp = (int) u->tp, .slots = (int) u->slots,
                             .max_context = (int) u->max_context, .max_rows = (int) u->max_rows};
    try(model_spec(spec, served->name, &served->dir, e));
    try(options_stages(&u->pp, &u->layers, served->name, r.layers, &r.pp, e));
    try(precision_parse(u->precision, backend_cpu(), &precision, e));
    try(kv_parse(u->kv, &r.fp8_kv, e));
    try(redis_name_check("queue", u->queue, QUEUE_NAME_MAX, e));
    try(model_config_load(&config, served->dir, e));
    served->n_stages = r.pp;
    for (int i = 0; i < r.pp; i++) r.device_bytes[i] = UINT64_MAX / 2; // the broker knows them
    return plan_make(&plan, &r, e);
}

static enum status prepare(struct up *u, struct error *e)
{
    int64_t most = CHILDREN_MAX - 1 - u->brokers;
    if (u->models.n == 0) return error_set(e, ERR_INPUT, "bad_usage", "--model is needed");
    if (u->models.n > MODELS_MAX) {
        return error_set(e, ERR_INPUT, "bad_usage", "more than %d models", MODELS_MAX);
    }
    for (int i = 0; i < u->models.n; i++) {
        try(check_plan(u, &u->served[i], u->models.at[i], e));
    }
    if (n_working(u) + u->models.n * u->spares > most) {
        return error_set(e, ERR_INPUT, "bad_usage", "at most %d groups, spares among them",
                         (int) most);
    }
    if (u->metrics != NULL) try(http_free(u->metrics, e));
    try(find_redis(u, e));
    u->broker_ports[0] = u->broker_port;
    for (int i = 0; i < u->brokers; i++) try(take_port(&u->broker_ports[i], "broker-port", e));
    try(find_programs(u, e));
    return make_folders(u, e);
}

static void stop_all(struct up *u)
{
    struct supervisor *s = &u->supervisor;
    say(u, "stopping; Ctrl-C again stops at once");
    supervisor_stop(s, u->first_group, s->n_children - u->first_group);
    supervisor_stop(s, u->first_broker, (int) u->brokers);
    if (u->redis == NULL) supervisor_stop(s, 0, 1);
}

static enum status run(struct up *u, struct error *e)
{
    struct supervisor *s = &u->supervisor;
    try(prepare(u, e));
    try(supervisor_init(s, e));
    s->arg = u;
    s->line = on_line;
    s->started = on_started;
    s->ended = on_ended;
    add_children(u);
    enum status status = OK;
    while (status == OK && s->n_stops == 0) status = supervisor_turn(s, TURN_MS, e);
    stop_all(u);
    supervisor_deinit(s);
    fclose(u->log);
    return status;
}

int cmd_up(int argc, char **argv)
{
    struct up u = {.pipelines = 1, .tp = 1, .brokers = 1, .redis_port = 6379, .broker_port = 7300,
                   .drain_s = 20, .data_dir = "penstock-data", .queue = "default",
                   .precision = "auto",
                   .kv = "bf16"};
    struct option_spec specs[] = {
        {.name = "model", .kind = OPTION_LIST, .value = &u.models, .argument = "[NAME=]DIR",
         .help = "Checkpoint directory as published on the hub; once for each model."},
        {.name = "pp", .kind = OPTION_LIST, .value = &u.pp, .argument = "[MODEL=]N",
         .help = "Stages (default 1), of all models or of one: a group, a process, for each."},
        {.name = "layers", .kind = OPTION_LIST, .value = &u.layers, .argument = "[MODEL=]A,B,..",
         .help = "Layers of each stage, instead of --pp."},
        {.name = "pipelines", .kind = OPTION_INT, .value = &u.pipelines, .argument = "N",
         .help = "Replicas of each model (default 1).", .least = 1, .most = PIPELINES_MAX},
        {.name = "spares", .kind = OPTION_INT, .value = &u.spares, .argument = "N",
         .help = "Further groups of each model, each ready to take over any stage.", .least = 0,
         .most = 16},
        {.name = "tp", .kind = OPTION_INT, .value = &u.tp, .argument = "N",
         .help = "Ranks (threads) of each group (default 1).", .least = 1, .most = TP_MAX},
        {.name = "redis", .kind = OPTION_STRING, .value = &u.redis, .argument = "URL",
         .help = "Uses this server instead of starting one."},
        {.name = "redis-port", .kind = OPTION_INT, .value = &u.redis_port, .argument = "PORT",
         .help = "Port of the Redis that is started (default 6379); 0: any free one.", .least = 0,
         .most = 65535},
        {.name = "broker-port", .kind = OPTION_INT, .value = &u.broker_port, .argument = "PORT",
         .help = "Port of the broker (default 7300); 0: any free one.", .least = 0, .most = 65535},
        {.name = "brokers", .kind = OPTION_INT, .value = &u.brokers, .argument = "N",
         .help = "Brokers (default 1): one leads, the others stand by, on any free ports.",
         .least = 1, .most = BROKERS_MAX},
        {.name = "data-dir", .kind = OPTION_STRING, .value = &u.data_dir, .argument = "DIR",
         .help = "Where queue, manifests and penstock.log are kept (default penstock-data)."},
        {.name = "queue", .kind = OPTION_STRING, .value = &u.queue, .argument = "NAME",
         .help = "Name of the queue (default: default)."},
        {.name = "precision", .kind = OPTION_STRING, .value = &u.precision,
         .argument = "auto|f32|bf16", .help = "f32 is exact; auto: bf16 where the CPU has it."},
        KV_FLAG_ROW(u.kv),
        {.name = "threads", .kind = OPTION_INT, .value = &u.threads, .argument = "N",
         .help = "Threads of each rank; 0: the cores shared out.", .least = 0,
         .most = DEVICE_THREADS_MAX},
        {.name = "device-memory", .kind = OPTION_BYTES, .value = &u.device_memory,
         .argument = "BYTES", .help = "Memory of each rank; default: what is free, shared out."},
        {.name = "max-context", .kind = OPTION_INT, .value = &u.max_context, .argument = "N",
         .help = "Most tokens of a sequence, prompt and output.", .least = 0, .most = CONTEXT_MAX},
        {.name = "slots", .kind = OPTION_INT, .value = &u.slots, .argument = "N",
         .help = "Sequences at once; 0: chosen by the plan.", .least = 0, .most = SLOTS_MAX},
        {.name = "max-rows", .kind = OPTION_INT, .value = &u.max_rows, .argument = "N",
         .help = "Token budget of a step; 0: chosen by the plan.", .least = 0,
         .most = STEP_ROWS_MAX},
        {.name = "metrics", .kind = OPTION_STRING, .value = &u.metrics, .argument = "[IP:]PORT",
         .help = "Where the broker's figures are, for Prometheus; default: nowhere."},
        {.name = "drain", .kind = OPTION_INT, .value = &u.drain_s, .argument = "S",
         .help = "Most seconds that running sequences get after Ctrl-C (default 20).", .least = 0,
         .most = 86400},
        {.name = "accept-loss", .kind = OPTION_FLAG, .value = &u.accept_loss,
         .help = "With --redis: goes on though its settings may lose jobs."},
        {.name = "quiet", .kind = OPTION_FLAG, .value = &u.quiet,
         .help = "Only warnings and errors of the children are shown; the log has all."},
        {.name = "log-json", .kind = OPTION_FLAG, .value = &u.log_json,
         .help = "The children's log lines as JSON objects."},
    };
    struct options o = {.program = "penstock up",
                        .usage = "--model [NAME=]DIR [OPTIONS]",
                        .about = "Runs Redis, broker and worker groups on this machine until "
                                 "Ctrl-C. One line on standard output, \"ready redis=URL\", says "
                                 "that all pipelines serve.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs,
                        .environment = true};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    unsetenv("PENSTOCK_METRICS"); // each broker is told its own
    return run(&u, &e) == OK ? EXIT_DONE : outcome_failed(o.program, &e, false);
}
