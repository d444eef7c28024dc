// penstock bench queue: a Redis and a broker of its own take in more and more jobs: jobs a second,
// the broker's memory, bytes a job in Redis and on disk, and whether a claim takes longer over a
// long backlog. Beside it what this disk and this Redis do at most.
#include "broker/queue_sync.h"
#include "common/buffer.h"
#include "common/clock.h"
#include "common/job.h"
#include "common/options.h"
#include "tools/commands.h"
#include "tools/csv.h"
#include "tools/outcome.h"
#include "tools/supervise.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <hiredis/hiredis.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    PUSH_MANY = 1000,      // messages of one push
    INBOX_MOST = 20000,    // pushed and not taken in: the producer waits
    CLAIM_MANY = 32,       // jobs of one claim
    CLAIM_ROUNDS = 50,
    PROBE_ROUNDS = 100,
    POINTS_MAX = 8,
    STOP_MS_MOST = 60000,
    PATIENCE_MS = 120000,  // without any progress
    REDIS = 0, BROKER = 1, // children
};

struct bench {
    const char *model, *csv_path;
    const char *dir;      // as asked for, or NULL
    int64_t n_jobs, port, pool_threads;
    // of the run
    char folder[PATH_MAX - 64], bin[PATH_MAX], url[64];
    struct supervisor supervisor;
    bool redis_up, broker_up, child_ended, stopping;
    struct queue_sync *queue;
    redisContext *redis;
    int64_t n_pushed, claim;
    double sync_ms, plain_rate; // probes
    FILE *csv;
};

struct point {
    int64_t backlog;
    double rate; // jobs a second, taken in since the point before
    double claim_ms[2]; // median, 99th percentile
    double broker_mib, redis_bytes, disk_bytes; // the latter two a job
};

// --- children

static void on_line(void *arg, struct child *c, const char *line)
{
    struct bench *b = arg;
    bool broker = c == &b->supervisor.children[BROKER];
    if (!broker && strstr(line, "Ready to accept") != NULL) b->redis_up = true;
    if (broker && strstr(line, "event=ready") != NULL) b->broker_up = true;
    if (broker && strstr(line, "level=info") == NULL) fprintf(stderr, "%s\n", line);
}

static void on_ended(void *arg, struct child *c, int status)
{
    struct bench *b = arg;
    (void) status;
    if (b->stopping) return;
    fprintf(stderr, "%s ended\n", c->name);
    b->child_ended = true;
}

static void add_redis(struct bench *b)
{
    struct child *c = supervisor_add(&b->supervisor, "redis", STOP_MS_MOST);
    static const char *const settings[] = {
        "--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "always",
        "--maxmemory-policy", "noeviction", "--notify-keyspace-events", "Kl", "--save", "",
        "--daemonize", "no",
    };
    child_arg(c, "redis-server");
    child_arg(c, "--port");
    child_arg(c, "%lld", (long long) b->port);
    child_arg(c, "--dir");
    child_arg(c, "%s", b->folder);
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) child_arg(c, "%s", settings[i]);
}

static void add_broker(struct bench *b)
{
    struct child *c = supervisor_add(&b->supervisor, "broker", STOP_MS_MOST);
    child_arg(c, "%s/penstock-broker", b->bin);
    child_arg(c, "--redis");
    child_arg(c, "%s", b->url);
    child_arg(c, "--model");
    child_arg(c, "bench=%s", b->model);
    child_arg(c, "--listen");
    child_arg(c, "ipc://%s/broker", b->folder);
    if (b->pool_threads > 0) {
        child_arg(c, "--pool-threads");
        child_arg(c, "%lld", (long long) b->pool_threads);
    }
}

static enum status wait_until(struct bench *b, const bool *up, const char *what, struct error *e)
{
    int64_t end_ms = clock_ms() + PATIENCE_MS;
    while (!*up) {
        try(supervisor_turn(&b->supervisor, 100, e));
        if (b->supervisor.n_stops > 0) return error_set(e, ERR_ABORTED, "stopped", "stopped");
        if (b->child_ended || clock_ms() > end_ms) {
            return error_set(e, ERR_STATE, "child_failed", "%s did not come up", what);
        }
    }
    return OK;
}

static enum status look_around(struct bench *b, struct error *e)
{
    try(supervisor_turn(&b->supervisor, 0, e));
    if (b->supervisor.n_stops > 0) return error_set(e, ERR_ABORTED, "stopped", "stopped");
    if (b->child_ended) return error_set(e, ERR_STATE, "child_failed", "a child has ended");
    return OK;
}

// --- probes

static int by_size(const void *a, const void *b)
{
    double x = *(const double *) a, y = *(const double *) b;
    return x < y ? -1 : x > y;
}

// Milliseconds of an append of 4 KiB that reaches the disk: the median.
static enum status probe_disk(struct bench *b, struct error *e)
{
    char path[PATH_MAX], bytes[4096] = {1};
    double times[PROBE_ROUNDS];
    snprintf(path, sizeof path, "%s/probe", b->folder);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) return error_set(e, ERR_IO, NULL, "cannot write %s: %s", path, strerror(errno));
    bool ok = true;
    for (int i = 0; i < PROBE_ROUNDS && ok; i++) {
        int64_t from = clock_ns();
        ok = write(fd, bytes, sizeof bytes) == sizeof bytes && fdatasync(fd) == 0;
        times[i] = (double) (clock_ns() - from) / 1e6;
    }
    close(fd);
    unlink(path);
    if (!ok) return error_set(e, ERR_IO, NULL, "cannot write to %s", b->folder);
    qsort(times, PROBE_ROUNDS, sizeof *times, by_size);
    b->sync_ms = times[PROBE_ROUNDS / 2];
    return OK;
}

static enum status make_message(int64_t i, struct buffer *to, struct error *e)
{
    char body[256];
    struct job job = job_default();
    snprintf(job.id, sizeof job.id, "bench-%lld", (long long) i);
    int n = snprintf(body, sizeof body,
                     "{\"messages\":[{\"role\":\"user\",\"content\":\"What is %lld and %lld?\"}],"
                     "\"max_tokens\":16}", (long long) i, (long long) i * 7 % 1000);
    job.op = JOB_CHAT;
    job.class = JOB_CLASSES - 1;
    job.body_form = JOB_BODY_JSON;
    job.body = (struct job_text){body, (size_t) n};
    return job_encode(&job, to, e);
}

// Jobs [from, from + n) into the inbox of a tenant, at once.
static enum status push(struct bench *b, const char *tenant, int64_t from, size_t n,
                        struct error *e)
{
    struct buffer bytes;
    size_t ends[PUSH_MANY + 1] = {0}, pushed;
    struct queue_bytes messages[PUSH_MANY];
    buffer_init(&bytes, 16 << 20);
    enum status status = OK;
    for (size_t i = 0; i < n && status == OK; i++) {
        status = make_message(from + (int64_t) i, &bytes, e);
        ends[i + 1] = bytes.n;
    }
    for (size_t i = 0; i < n; i++) {
        messages[i] = (struct queue_bytes){bytes.data + ends[i], ends[i + 1] - ends[i]};
    }
    if (status == OK) status = queue_sync_push_many(b->queue, tenant, messages, n, &pushed, e);
    buffer_deinit(&bytes);
    return status;
}

// What Redis takes from a producer that does nothing else, with nobody on the other side.
static enum status probe_redis(struct bench *b, struct error *e)
{
    int64_t from = clock_ns();
    for (int i = 0; i < 20; i++) try(push(b, "probe", i * PUSH_MANY, PUSH_MANY, e));
    b->plain_rate = 20.0 * PUSH_MANY / ((double) (clock_ns() - from) / 1e9);
    redisReply *r = redisCommand(b->redis, "DEL ps:{default}:in:probe");
    enum status status = redis_reply_check(r, e);
    if (r != NULL) freeReplyObject(r);
    return status;
}

// --- taking in

static enum status fill(struct bench *b, int64_t backlog, double *rate, struct error *e)
{
    int64_t begin = clock_ns(), moved_ms = clock_ms();
    int64_t ready = b->n_pushed, before = b->n_pushed;
    while (ready < backlog) {
        struct queue_stats stats;
        try(look_around(b, e));
        try(queue_sync_stats(b->queue, &stats, e));
        if ((int64_t) stats.ready != ready) moved_ms = clock_ms();
        ready = (int64_t) stats.ready;
        if (clock_ms() - moved_ms > PATIENCE_MS) {
            return error_set(e, ERR_TIMEOUT, "stuck", "nothing was taken in for %d s; %lld of %lld",
                             PATIENCE_MS / 1000, (long long) ready, (long long) backlog);
        }
        int64_t left = backlog - b->n_pushed;
        if (left > 0 && stats.inbox < INBOX_MOST) {
            size_t n = (size_t) (left < PUSH_MANY ? left : PUSH_MANY);
            try(push(b, "default", b->n_pushed, n, e));
            b->n_pushed += (int64_t) n;
        } else {
            try(supervisor_turn(&b->supervisor, 5, e)); // for news, or this long
        }
    }
    *rate = (double) (backlog - before) / ((double) (clock_ns() - begin) / 1e9);
    return OK;
}

// --- claims

static enum status fcall(struct bench *b, int n, const char **words, redisReply **reply,
                         struct error *e)
{
    redisReply *r = redisCommandArgv(b->redis, n, words, NULL);
    enum status status = redis_reply_check(r, e);
    if (status == OK) *reply = r;
    else if (r != NULL) freeReplyObject(r);
    return status;
}

static enum status give_back(struct bench *b, const char *term, const redisReply *claimed,
                             struct error *e)
{
    for (size_t i = 0; i < claimed->elements; i++) {
        const redisReply *job = claimed->element[i];
        if (strcmp(job->element[0]->str, "ok") != 0) {
            return error_set(e, ERR_STATE, "not_claimed", "job %s could not be claimed",
                             job->element[2]->str);
        }
        const char *words[] = {"FCALL", "nack", "1", "ps:{default}:term", term,
                               job->element[1]->str, job->element[2]->str, job->element[3]->str,
                               "0"};
        redisReply *r;
        try(fcall(b, 9, words, &r, e));
        freeReplyObject(r);
    }
    return OK;
}

// One round as the broker makes it: a window of headers, then the claim. Milliseconds of both.
static enum status claim_once(struct bench *b, const char *term, double *ms, struct error *e)
{
    const char *window[] = {"FCALL", "window", "1", "ps:{default}:term", term, "3", "default",
                            "bench", "0", "64"};
    const char *claim[8 + 3 * CLAIM_MANY];
    char number[24];
    redisReply *headers, *claimed;
    int n = 0;
    snprintf(number, sizeof number, "%lld", (long long) ++b->claim);
    const char *first[] = {"FCALL", "claim", "1", "ps:{default}:term", term, "30000",
                           "33554432", number};
    for (; n < 8; n++) claim[n] = first[n];
    int64_t from = clock_ns();
    try(fcall(b, 10, window, &headers, e));
    for (size_t i = 0; i < headers->elements && i < CLAIM_MANY; i++) {
        claim[n++] = "bench";
        claim[n++] = "default";
        claim[n++] = headers->element[i]->element[0]->str;
    }
    enum status status = fcall(b, n, claim, &claimed, e);
    *ms = (double) (clock_ns() - from) / 1e6;
    if (status == OK) {
        status = give_back(b, term, claimed, e);
        freeReplyObject(claimed);
    }
    freeReplyObject(headers);
    return status;
}

static enum status time_claims(struct bench *b, double ms[2], struct error *e)
{
    double times[CLAIM_ROUNDS];
    struct queue_stats stats;
    char term[24];
    try(queue_sync_stats(b->queue, &stats, e));
    snprintf(term, sizeof term, "%llu", (unsigned long long) stats.term);
    for (int i = 0; i < CLAIM_ROUNDS; i++) try(claim_once(b, term, &times[i], e));
    qsort(times, CLAIM_ROUNDS, sizeof *times, by_size);
    ms[0] = times[CLAIM_ROUNDS / 2];
    ms[1] = times[CLAIM_ROUNDS * 99 / 100];
    return OK;
}

// --- sizes

static double resident_bytes(pid_t pid)
{
    char path[64], line[256];
    long long kib = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int) pid);
    FILE *f = fopen(path, "re");
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        if (sscanf(line, "VmRSS: %lld", &kib) == 1) break;
    }
    if (f != NULL) fclose(f);
    return (double) kib * 1024;
}

static double redis_bytes(struct bench *b)
{
    long long bytes = 0;
    redisReply *r = redisCommand(b->redis, "INFO memory");
    const char *at = NULL;
    if (r != NULL && r->type == REDIS_REPLY_STRING) at = strstr(r->str, "used_memory:");
    if (at != NULL) sscanf(at, "used_memory:%lld", &bytes);
    if (r != NULL) freeReplyObject(r);
    return (double) bytes;
}

// Of the append-only file's parts.
static double disk_bytes(const struct bench *b)
{
    char folder[PATH_MAX], path[PATH_MAX + NAME_MAX + 2];
    struct stat s;
    double bytes = 0;
    snprintf(folder, sizeof folder, "%s/appendonlydir", b->folder);
    DIR *d = opendir(folder);
    for (struct dirent *entry; d != NULL && (entry = readdir(d)) != NULL;) {
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (stat(path, &s) == 0 && S_ISREG(s.st_mode)) bytes += (double) s.st_size;
    }
    if (d != NULL) closedir(d);
    return bytes;
}

// --- the table

static void print_head(const struct bench *b)
{
    printf("this disk: an append of 4 KiB is safe after %.2f ms (median); this Redis alone takes "
           "%.0f pushes/s\n", b->sync_ms, b->plain_rate);
    printf("%10s %10s %8s %10s %10s %11s %11s %11s\n", "backlog", "jobs/s", "of push", "claim ms",
           "p99 ms", "broker MiB", "Redis B/job", "disk B/job");
    if (b->csv == NULL) return;
    fprintf(b->csv, "backlog,jobs_s,push_s,sync_ms,claim_ms,claim_p99_ms,broker_mib,"
                    "redis_bytes_a_job,disk_bytes_a_job\n");
}

static void print_point(const struct bench *b, const struct point *p)
{
    printf("%10lld %10.0f %7.0f%% %10.2f %10.2f %11.1f %11.0f %11.0f\n", (long long) p->backlog,
           p->rate, 100 * p->rate / b->plain_rate, p->claim_ms[0], p->claim_ms[1], p->broker_mib,
           p->redis_bytes, p->disk_bytes);
    fflush(stdout);
    if (b->csv == NULL) return;
    fprintf(b->csv, "%lld,%.0f,%.0f,%.3f,%.3f,%.3f,%.2f,%.0f,%.0f\n", (long long) p->backlog,
            p->rate, b->plain_rate, b->sync_ms, p->claim_ms[0], p->claim_ms[1], p->broker_mib,
            p->redis_bytes, p->disk_bytes);
}

static enum status measure(struct bench *b, struct error *e)
{
    double empty = redis_bytes(b), disk = disk_bytes(b);
    int64_t points[POINTS_MAX];
    int n = 0;
    for (int64_t at = b->n_jobs; at >= 1000 && n < POINTS_MAX; at /= 10) points[n++] = at;
    print_head(b);
    while (n-- > 0) {
        struct point p = {.backlog = points[n]};
        try(fill(b, p.backlog, &p.rate, e));
        try(time_claims(b, p.claim_ms, e));
        p.broker_mib = resident_bytes(b->supervisor.children[BROKER].pid) / (1 << 20);
        p.redis_bytes = (redis_bytes(b) - empty) / (double) p.backlog;
        p.disk_bytes = (disk_bytes(b) - disk) / (double) p.backlog;
        print_point(b, &p);
    }
    return OK;
}

// --- the run

static enum status prepare(struct bench *b, struct error *e)
{
    ssize_t n = readlink("/proc/self/exe", b->bin, sizeof b->bin - 1);
    if (n <= 0) return error_set(e, ERR_IO, NULL, "cannot find this program's folder");
    b->bin[n] = 0;
    *strrchr(b->bin, '/') = 0;
    const char *base = b->dir != NULL ? b->dir : getenv("TMPDIR");
    snprintf(b->folder, sizeof b->folder, "%s/penstock-bench-XXXXXX", base != NULL ? base : "/tmp");
    if (mkdtemp(b->folder) == NULL) {
        return error_set(e, ERR_IO, NULL, "cannot make %s: %s", b->folder, strerror(errno));
    }
    snprintf(b->url, sizeof b->url, "redis://127.0.0.1:%lld", (long long) b->port);
    return csv_open(&b->csv, b->csv_path, e);
}

static enum status run_all(struct bench *b, struct error *e)
{
    try(probe_disk(b, e));
    add_redis(b);
    try(wait_until(b, &b->redis_up, "Redis", e));
    try(queue_sync_open(&b->queue, b->url, "default", e));
    b->redis = redisConnect("127.0.0.1", (int) b->port);
    if (b->redis == NULL || b->redis->err != 0) {
        return error_set(e, ERR_UNAVAILABLE, NULL, "cannot connect to Redis");
    }
    try(probe_redis(b, e));
    add_broker(b);
    try(wait_until(b, &b->broker_up, "the broker", e));
    return measure(b, e);
}

static void remove_folder(const char *folder, int depth)
{
    DIR *d = opendir(folder);
    for (struct dirent *entry; d != NULL && (entry = readdir(d)) != NULL;) {
        char *path;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (asprintf(&path, "%s/%s", folder, entry->d_name) < 0) continue;
        if (unlink(path) != 0 && depth > 0) remove_folder(path, depth - 1);
        free(path);
    }
    if (d != NULL) closedir(d);
    rmdir(folder);
}

static enum status run(struct bench *b, struct error *e)
{
    try(prepare(b, e));
    enum status status = supervisor_init(&b->supervisor, e);
    if (status == OK) {
        b->supervisor.arg = b;
        b->supervisor.line = on_line;
        b->supervisor.ended = on_ended;
        status = run_all(b, e);
        b->stopping = true;
        for (int i = b->supervisor.n_children - 1; i >= 0; i--) {
            supervisor_stop(&b->supervisor, i, 1);
        }
        supervisor_deinit(&b->supervisor);
    }
    if (b->queue != NULL) queue_sync_close(&b->queue);
    if (b->redis != NULL) redisFree(b->redis);
    status = csv_close(b->csv, b->csv_path, status, e);
    remove_folder(b->folder, 1);
    return status;
}

int bench_queue(int argc, char **argv)
{
    struct bench b = {.n_jobs = 100000, .port = 6479};
    struct option_spec specs[] = {
        {.name = "model", .kind = OPTION_STRING, .value = &b.model, .argument = "DIR",
         .help = "Checkpoint directory: its tokenizer and chat template are used, no weights."},
        {.name = "jobs", .kind = OPTION_INT, .value = &b.n_jobs, .argument = "N",
         .help = "The longest backlog (default 100000); measured at each tenth, too.",
         .least = 1000, .most = 100000000},
        {.name = "dir", .kind = OPTION_STRING, .value = &b.dir, .argument = "DIR",
         .help = "On whose disk the queue is kept meanwhile (default: TMPDIR or /tmp)."},
        {.name = "redis-port", .kind = OPTION_INT, .value = &b.port, .argument = "PORT",
         .help = "Port of the Redis that is started (default 6479).", .least = 1, .most = 65535},
        {.name = "pool-threads", .kind = OPTION_INT, .value = &b.pool_threads, .argument = "N",
         .help = "The broker's threads that tokenize; 0: its own default.", .least = 0,
         .most = 64},
        CSV_FLAG_ROW(b.csv_path),
    };
    struct options o = {.program = "penstock bench queue",
                        .usage = "--model DIR [OPTIONS]",
                        .about = "Times how a broker takes in jobs, with a Redis of its own that "
                                 "loses nothing.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if (b.model == NULL) {
        error_set(&e, ERR_INPUT, "bad_usage", "--model is needed");
        return outcome_usage(o.program, &e);
    }
    if (run(&b, &e) == OK) return EXIT_DONE;
    return outcome_failed(o.program, &e, false);
}
