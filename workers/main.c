// penstock-worker: one worker group on this node, as a process. Flags and PENSTOCK_* environment;
// runs until SIGTERM (which drains) and exits 0, or 1 if its device fails.
#include "common/curve.h"
#include "common/layout.h"
#include "common/log.h"
#include "common/options.h"
#include "kernels/devices.h"
#include "kernels/precision.h"
#include "workers/brokers.h"
#include "workers/group.h"

#include <arpa/inet.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

enum { EXIT_USAGE = 2 };

static int stop_fd = -1;

static void on_signal(int signal)
{
    (void) signal;
    uint64_t one = 1;
    ssize_t n = write(stop_fd, &one, sizeof one);
    (void) n;
}

struct settings {
    const char *broker, *model, *devices, *bind, *name, *precision, *log_level, *key, *broker_key,
        *status, *manifest;
    int64_t data_port, threads, device_memory, drain_s, step_deadline_s;
    bool log_json, insecure, coarse_sums;
    char address[INET_ADDRSTRLEN]; // that --bind means
};

static enum status parse(struct settings *s, int argc, char **argv, bool *help, struct error *e)
{
    struct option_spec specs[] = {
        {.name = "broker", .kind = OPTION_STRING, .value = &s->broker, .argument = "URL,..",
         .help = "The broker's endpoint; with standbys, that of each, in any order."},
        {.name = "model", .kind = OPTION_STRING, .value = &s->model, .argument = "DIR",
         .help = "Checkpoint directory as published on the hub."},
        {.name = "devices", .kind = OPTION_STRING, .value = &s->devices,
         .argument = "cpu:N|cuda:N[/M]",
         .help = "N ranks on this node's CPUs, or on its first N (or M, in turn) GPUs."},
        {.name = "threads", .kind = OPTION_INT, .value = &s->threads, .argument = "N",
         .help = "Threads of each CPU rank; 0: the cores shared out.", .least = 0,
         .most = DEVICE_THREADS_MAX},
        {.name = "device-memory", .kind = OPTION_BYTES, .value = &s->device_memory,
         .argument = "BYTES", .help = "Memory of each rank; default: most of what is free."},
        {.name = "coarse-sums", .kind = OPTION_FLAG, .value = &s->coarse_sums,
         .help = "Large sums between GPUs travel over the host as 8 bits; not in f32."},
        {.name = "precision", .kind = OPTION_STRING, .value = &s->precision,
         .argument = "auto|f32|bf16", .help = "What this group prefers; the broker decides."},
        {.name = "bind", .kind = OPTION_STRING, .value = &s->bind, .argument = "IP|HOST",
         .help = "This node's address for stage links; default 127.0.0.1 with a broker there."},
        {.name = "key", .kind = OPTION_STRING, .value = &s->key, .argument = "FILE",
         .help = "Secret key of this group: the broker is spoken to encrypted."},
        {.name = "broker-key", .kind = OPTION_STRING, .value = &s->broker_key,
         .argument = "PUB|FILE,..",
         .help = "The broker's public key, or its file: one for all, or one for each broker."},
        {.name = "insecure", .kind = OPTION_FLAG, .value = &s->insecure,
         .help = "Beyond loopback without keys: prompts and outputs travel readable."},
        {.name = "data-port", .kind = OPTION_INT, .value = &s->data_port, .argument = "PORT",
         .help = "Port of the stage link; 0: any free one.", .least = 0, .most = 65535},
        {.name = "name", .kind = OPTION_STRING, .value = &s->name, .argument = "NAME",
         .help = "Name of the group, unique in the fleet; default NODE-PID."},
        {.name = "drain", .kind = OPTION_INT, .value = &s->drain_s, .argument = "S",
         .help = "Most seconds that running sequences get after SIGTERM.", .least = 0,
         .most = 86400},
        {.name = "step-deadline", .kind = OPTION_INT, .value = &s->step_deadline_s,
         .argument = "S", .help = "A step that takes longer ends the epoch.", .least = 1,
         .most = 86400},
        {.name = "manifest", .kind = OPTION_STRING, .value = &s->manifest, .argument = "DIR",
         .help = "Folder for the hashes of what was loaded: later loads are compared with them."},
        {.name = "status", .kind = OPTION_STRING, .value = &s->status, .argument = "FILE",
         .help = "Where the group writes how it is, for penstock health."},
        {.name = "log-json", .kind = OPTION_FLAG, .value = &s->log_json,
         .help = "Log lines as JSON objects."},
        {.name = "log-level", .kind = OPTION_STRING, .value = &s->log_level,
         .argument = "debug|info|warn|error", .help = "Least level that is logged."},
    };
    struct options o = {.program = "penstock-worker",
                        .usage = "--broker URL[,URL] --model DIR [OPTIONS]",
                        .about = "Runs one worker group: a stage of a pipeline and its ranks.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs,
                        .environment = true};
    enum status status = options_parse(&o, argc, argv, e);
    *help = o.help;
    return status;
}

// A name becomes the address that others are told; containers know their own names only.
static enum status resolve_bind(struct settings *s, const struct brokers *b, struct error *e)
{
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found = NULL;
    int why = getaddrinfo(s->bind, NULL, &hints, &found);
    if (why != 0) {
        return error_set(e, ERR_INPUT, "bad_usage",
                         "--bind wants an IPv4 address of this node or a name of one, not \"%s\": "
                         "%s", s->bind, gai_strerror(why));
    }
    const struct sockaddr_in *a = (const void *) found->ai_addr;
    inet_ntop(AF_INET, &a->sin_addr, s->address, sizeof s->address);
    freeaddrinfo(found);
    bool named = strcmp(s->bind, s->address) != 0;
    if (named && curve_is_local(s->address) && brokers_beyond_loopback(b) != NULL) {
        return error_set(e, ERR_INPUT, "bad_usage",
                         "--bind %s: that name is %s here, which no other machine can reach",
                         s->bind, s->address);
    }
    s->bind = s->address;
    return OK;
}

// Beyond this machine it takes keys, or --insecure.
static enum status check_reach(struct settings *s, const struct brokers *b, struct error *e)
{
    if ((s->key != NULL) != (s->broker_key != NULL)) {
        return error_set(e, ERR_INPUT, "bad_usage", "--key and --broker-key belong together");
    }
    bool told = s->bind != NULL;
    if (!told) s->bind = "127.0.0.1";
    if (strcmp(s->bind, "0.0.0.0") == 0 || strcmp(s->bind, "*") == 0) {
        return error_set(e, ERR_INPUT, "bad_usage",
                         "--bind %s: other groups are told this address, so it must be one of "
                         "this node's", s->bind);
    }
    try(resolve_bind(s, b, e));
    const char *far = curve_is_local(s->bind) ? brokers_beyond_loopback(b) : s->bind;
    if (far == NULL) return OK;
    if (s->key == NULL && !s->insecure) {
        return error_set(e, ERR_INPUT, "bad_usage",
                         "%s is beyond loopback: give --key and --broker-key (penstock keygen "
                         "makes keys), or --insecure to do without encryption", far);
    }
    if (told) return OK;
    return error_set(e, ERR_INPUT, "bad_usage",
                     "with a broker beyond loopback --bind says at which address of this node "
                     "other groups reach it (127.0.0.1, if all are on this one)");
}

static enum status read_keys(const struct settings *s, struct curve_pair *pair,
                             struct brokers *b, struct group_options *o, struct error *e)
{
    struct control_options *c = &o->control;
    if (s->key == NULL) {
        if (curve_is_local(s->bind) && brokers_beyond_loopback(b) == NULL) return OK;
        log_line(LOG_WARN, "insecure",
                 log_str("note", "no encryption and no keys: whoever sees the traffic reads "
                                 "prompts and outputs, and can pose as the broker"));
        return OK;
    }
    try(curve_read_secret(pair, s->key, e));
    try(brokers_read_keys(b, s->broker_key, e));
    memcpy(c->brokers, b->at, sizeof c->brokers);
    c->pair = pair;
    return OK;
}

static enum status fill(struct group_options *o, struct settings *s, struct brokers *b,
                        char *data, size_t n_data, struct error *e)
{
    if (s->broker == NULL || s->model == NULL) {
        return error_set(e, ERR_INPUT, "bad_usage", "--broker and --model are needed");
    }
    try(brokers_parse(b, s->broker, e));
    try(check_reach(s, b, e));
    struct devices devices;
    try(devices_parse(s->devices, &devices, e));
    o->backend = devices.backend;
    o->tp = devices.n;
    o->n_gpus = devices.n_gpus;
    try(precision_parse(s->precision, o->backend, &o->precision, e));
    if (s->data_port > 0) snprintf(data, n_data, "tcp://%s:%d", s->bind, (int) s->data_port);
    else snprintf(data, n_data, "tcp://%s:*", s->bind);
    memcpy(o->control.brokers, b->at, sizeof o->control.brokers);
    o->control.n_brokers = b->n;
    o->data = data;
    o->n_threads = (int) s->threads;
    o->coarse_sums = s->coarse_sums;
    o->memory_bytes = (uint64_t) s->device_memory; // 0: what the devices have, see main
    o->step_deadline_ms = s->step_deadline_s * 1000;
    o->status = s->status;
    o->drain_ms = s->drain_s * 1000;
    return OK;
}

// A file for each model, for whichever stages the groups of a node have.
static enum status manifest_path(const char *model_hash, const char *dir, char *path, size_t n,
                                 struct error *e)
{
    int all = snprintf(path, n, "%s/%s.json", dir, model_hash);
    if (all > 0 && (size_t) all < n) return OK;
    return error_set(e, ERR_INPUT, "bad_usage", "--manifest: the path is too long");
}

static enum status run(struct group_options *o, const char *model, const char *manifest,
                       struct error *e)
{
    char path[PATH_MAX];
    struct model_config config;
    struct checkpoint *checkpoint = NULL;
    struct tokenizer *tokenizer = NULL;
    char hash[33];
    try(model_config_load(&config, model, e));
    enum status status = checkpoint_open(&checkpoint, model, e);
    if (status == OK) status = layout_check_checkpoint(&config, checkpoint, e);
    if (status == OK) status = layout_check_tp(&config, o->tp, e);
    if (status == OK) {
        status = tokenizer_load(&tokenizer, model, e);
        if (strcmp(e->code, "no_tokenizer") == 0) status = OK; // ids only
    }
    if (status == OK) {
        *e = (struct error){0};
        checkpoint_manifest_hash(checkpoint, hash);
        o->config = &config;
        o->checkpoint = checkpoint;
        o->tokenizer = tokenizer;
        o->model_hash = hash;
        if (manifest != NULL) {
            status = manifest_path(hash, manifest, path, sizeof path, e);
            o->manifest = path;
        }
    }
    if (status == OK) {
        o->zmq = zmq_ctx_new();
        status = group_run(o, e);
        zmq_ctx_term(o->zmq);
    }
    tokenizer_destroy(&tokenizer);
    checkpoint_close(&checkpoint);
    return status;
}

int main(int argc, char **argv)
{
    struct settings s = {.devices = "cpu:1", .precision = "auto",
                         .log_level = "info", .drain_s = 60, .step_deadline_s = 120};
    struct error e = {0};
    bool help;
    char data[ENDPOINT_MAX], node[GROUP_NAME_MAX - 16] = "node", name[GROUP_NAME_MAX];
    struct group_options o = {.report_tokens = 32, .report_ms = 250};
    struct curve_pair pair;
    static struct brokers brokers;
    enum log_level level = LOG_INFO;
    enum status status = parse(&s, argc, argv, &help, &e);
    if (status == OK && help) return 0;
    if (status == OK) status = log_level_parse(s.log_level, &level, &e);
    if (status == OK) status = fill(&o, &s, &brokers, data, sizeof data, &e);
    if (status != OK) {
        fprintf(stderr, "penstock-worker: %s\n", e.text);
        return EXIT_USAGE;
    }
    gethostname(node, sizeof node - 1);
    snprintf(name, sizeof name, "%s-%d", node, (int) getpid());
    o.node = node;
    o.name = s.name != NULL ? s.name : name;
    log_init(o.name, level, s.log_json);
    o.stop_fd = stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    struct devices devices = {o.backend, o.tp, o.n_gpus};
    if (o.memory_bytes == 0) status = devices_memory(&devices, &o.memory_bytes, &e);
    if (status == OK) status = read_keys(&s, &pair, &brokers, &o, &e);
    if (status == OK) status = run(&o, s.model, s.manifest, &e);
    if (status == OK) return 0;
    log_line(LOG_ERROR, "ended", log_str("code", e.code), log_str("error", e.text));
    return 1;
}
