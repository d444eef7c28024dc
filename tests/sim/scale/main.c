// sim-scale [JOBS [PIPELINES]]: what the broker's decisions and tables cost with so many pipelines
// and a backlog without end, of which so many jobs are played. The true dispatch, credit and table
// of attempts, with larger limits, over a queue and heads that answer at once. Exit status 0, 1 if
// a job or a credit was lost, 2 for usage.
#include "broker/attempts.h"
#include "broker/dispatch.h"
#include "broker/jobs.h"
#include "common/log.h"
#include "common/result.h"

#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    TENANTS = 16,
    WINDOW = 64,       // headers of a tenant and class, as the broker keeps them
    ROUND = 256,       // jobs of a choice
    SLOTS = 32,        // of each pipeline
    BLOCKS = 640,
    NEED_MOST = 40,
    STEPS_LEAST = 200, STEPS_MOST = 1200, // that a job runs
    CHECK_EVERY = 512,
    JOBS_DEFAULT = 100000,
    RUNNING_MAX = JOBS_MAX,
};

struct job {
    struct job *next; // that ends at the same step, or free
    struct job_key key;
    int pipeline;
    uint64_t need;
};

struct completion {
    queue_fn *fn;
    void *arg;
};

static struct {
    struct jobs *jobs;
    struct dispatch dispatch;
    int n_pipelines;
    uint64_t granted_slots[PIPELINES_MAX], granted_blocks[PIPELINES_MAX];
    struct ready_job windows[TENANTS][JOB_CLASSES][WINDOW];
    uint64_t random, seq, attempt, n_left, n_started, n_ended;
    struct job pool[RUNNING_MAX], *free;
    struct job *ends[STEPS_MOST + 1]; // ring by step
    uint64_t step;
    struct completion done[RUNNING_MAX];
    int n_done, n_committed;
    int64_t view_ns, choose_ns, start_ns, end_ns;
    uint64_t n_views;
} room;

// Of the processor: others may use this machine, too.
static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t) t.tv_sec * 1000000000 + t.tv_nsec;
}

// --- the queue: it takes all that it is told

static enum status complete(queue_fn *fn, void *arg)
{
    room.done[room.n_done++] = (struct completion){fn, arg};
    return OK;
}

bool queue_ready(const struct queue *q)
{
    (void) q;
    return true;
}

enum status queue_done(struct queue *q, const struct queue_attempt *a,
                       const struct queue_outcome *o, queue_fn *fn, void *arg)
{
    (void) q, (void) a, (void) o;
    return complete(fn, arg);
}

enum status queue_fail(struct queue *q, const struct queue_attempt *a,
                       const struct queue_failure *f, queue_fn *fn, void *arg)
{
    (void) q, (void) a, (void) f, (void) fn, (void) arg;
    check(false, "no job fails here");
    return OK;
}

enum status queue_nack(struct queue *q, const struct queue_attempt *a, bool lost, queue_fn *fn,
                       void *arg)
{
    (void) q, (void) a, (void) lost, (void) fn, (void) arg;
    check(false, "no job is given back here");
    return OK;
}

enum status queue_renew(struct queue *q, int64_t lease_ms, const struct queue_attempt *attempts,
                        size_t n, queue_fn *fn, void *arg)
{
    (void) q, (void) lease_ms, (void) attempts, (void) n, (void) fn, (void) arg;
    return OK;
}

enum status queue_checkpoint(struct queue *q, const struct queue_attempt *a, uint64_t offset,
                             const uint8_t *bytes, size_t n, queue_fn *fn, void *arg)
{
    (void) q, (void) a, (void) offset, (void) bytes, (void) n, (void) fn, (void) arg;
    return OK;
}

enum status queue_stream(struct queue *q, const struct queue_attempt *a, uint64_t offset,
                         const uint8_t *bytes, size_t n, const struct queue_text *text,
                         queue_fn *fn, void *arg)
{
    (void) q, (void) a, (void) offset, (void) bytes, (void) n, (void) text, (void) fn, (void) arg;
    return OK;
}

// --- heads

static bool on_send(void *arg, const struct peer *to, const struct wire_message *m)
{
    (void) arg, (void) to;
    room.n_committed += m->command == WIRE_COMMITTED;
    return true;
}

static void on_freed(void *arg) { (void) arg; }
static void on_returned(void *arg, const char *tenant) { (void) arg, (void) tenant; }

static struct peer peer_of(int pipeline)
{
    struct peer p = {.n = sizeof pipeline};
    memcpy(p.bytes, &pipeline, sizeof pipeline);
    return p;
}

static uint64_t epoch_of(int pipeline) { return (uint64_t) pipeline + 1; }

static void say_credit(int pipeline)
{
    struct peer head = peer_of(pipeline);
    struct wire_message m = {.command = WIRE_CREDIT};
    m.credit = (struct wire_credit){epoch_of(pipeline), epoch_of(pipeline),
                                    room.granted_slots[pipeline], room.granted_blocks[pipeline]};
    jobs_message(room.jobs, &head, &m);
}

static void open_pipelines(void)
{
    for (int i = 0; i < room.n_pipelines; i++) {
        const struct jobs_pipeline p = {.id = epoch_of(i), .epoch = epoch_of(i),
                                        .head = peer_of(i), .name = "head", .slots = SLOTS,
                                        .blocks = BLOCKS};
        jobs_up(room.jobs, &p);
        room.granted_slots[i] = SLOTS;
        room.granted_blocks[i] = BLOCKS;
        say_credit(i);
    }
}

static void end_job(struct job *j)
{
    struct buffer bytes;
    struct error e;
    struct peer head = peer_of(j->pipeline);
    struct result r = {.status = RESULT_OK, .finish_reason = RESULT_LENGTH, .attempts = 1};
    struct wire_message m = {.command = WIRE_RESULT};
    snprintf(r.id, sizeof r.id, "%s", j->key.id);
    buffer_init(&bytes, 4096);
    check(result_encode(&r, &bytes, &e) == OK);
    m.result.key = j->key;
    m.result.result = (struct wire_bytes){bytes.data, bytes.n};
    int64_t from = now_ns();
    jobs_message(room.jobs, &head, &m);
    room.granted_slots[j->pipeline]++;
    room.granted_blocks[j->pipeline] += j->need;
    say_credit(j->pipeline);
    room.end_ns += now_ns() - from;
    buffer_deinit(&bytes);
    j->next = room.free;
    room.free = j;
    room.n_ended++;
}

static void end_due(void)
{
    struct job **at = &room.ends[room.step % (STEPS_MOST + 1)];
    while (*at != NULL) {
        struct job *j = *at;
        *at = j->next;
        end_job(j);
    }
    struct queue_reply ok = {.word = QUEUE_OK};
    int64_t from = now_ns();
    for (int i = 0; i < room.n_done; i++) room.done[i].fn(room.done[i].arg, &ok);
    room.end_ns += now_ns() - from;
    room.n_done = 0;
}

// --- the backlog, and choosing

static uint64_t random_below(uint64_t n)
{
    uint64_t z = room.random += 0x9e3779b97f4a7c15u; // splitmix64
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z ^ (z >> 31)) % n;
}

static struct ready_job new_job(void)
{
    uint64_t need = 1 + random_below(NEED_MOST);
    return (struct ready_job){.need_blocks = need,
                              .cost = need * KV_BLOCK_ROWS,
                              .seq = ++room.seq,
                              .steps = STEPS_LEAST + random_below(STEPS_MOST - STEPS_LEAST)};
}

static void start_job(const struct dispatch_pick *p, uint64_t epoch)
{
    const struct ready_job *ready = &room.windows[p->tenant][p->class][p->nth];
    struct job *j = room.free;
    struct wire_job wire = {.max_tokens = 1, .attempts = 1};
    check(j != NULL, "more attempts than places");
    room.free = j->next;
    *j = (struct job){.key.attempt = ++room.attempt, .pipeline = (int) epoch - 1,
                      .need = ready->need_blocks};
    snprintf(j->key.tenant, sizeof j->key.tenant, "tenant-%d", p->tenant);
    snprintf(j->key.id, sizeof j->key.id, "job-%" PRIu64, room.attempt);
    wire.key = j->key;
    int64_t from = now_ns();
    jobs_promise(room.jobs, epoch, j->need, false);
    check(jobs_add(room.jobs, &j->key, j->need, ready->steps, false, epoch) == OK);
    jobs_start(room.jobs, &wire, j->need);
    room.start_ns += now_ns() - from;
    struct job **end = &room.ends[(room.step + ready->steps) % (STEPS_MOST + 1)];
    j->next = *end;
    *end = j;
    room.n_started++;
    room.n_left--;
}

// The windows stay full: the backlog has more of everything.
static void refill(const struct dispatch_pick *picks, int n)
{
    for (int i = 0; i < n; i++) {
        struct ready_job *w = room.windows[picks[i].tenant][picks[i].class];
        w[picks[i].nth].need_blocks = UINT64_MAX; // taken
    }
    for (int t = 0; t < TENANTS; t++) {
        for (int c = 0; c < JOB_CLASSES; c++) {
            struct ready_job *w = room.windows[t][c];
            int kept = 0;
            for (int k = 0; k < WINDOW; k++) {
                if (w[k].need_blocks != UINT64_MAX) w[kept++] = w[k];
            }
            while (kept < WINDOW) w[kept++] = new_job();
        }
    }
}

static int choose(void)
{
    static struct dispatch_pipeline pipelines[PIPELINES_MAX];
    static struct ready_queue queues[TENANTS][JOB_CLASSES];
    struct dispatch_tenant tenants[TENANTS];
    struct dispatch_pick picks[ROUND];
    int most = room.n_left < ROUND ? (int) room.n_left : ROUND;
    for (int t = 0; t < TENANTS; t++) {
        tenants[t] = (struct dispatch_tenant){.weight = (uint32_t) t + 1, .jobs = UINT64_MAX,
                                              .blocks = UINT64_MAX};
        for (int c = 0; c < JOB_CLASSES; c++) {
            queues[t][c] = (struct ready_queue){room.windows[t][c], WINDOW, true};
        }
    }
    int64_t from = now_ns();
    int n_pipelines = jobs_view(room.jobs, 0, pipelines);
    int64_t seen = now_ns();
    const struct dispatch_view view = {.n_pipelines = n_pipelines, .pipelines = pipelines,
                                       .n_tenants = TENANTS, .tenants = tenants,
                                       .queues = (const void *) queues};
    int n = dispatch_choose(&room.dispatch, &view, picks, most);
    room.view_ns += seen - from;
    room.choose_ns += now_ns() - seen;
    room.n_views++;
    for (int i = 0; i < n; i++) start_job(&picks[i], pipelines[picks[i].pipeline].id);
    refill(picks, n);
    return n;
}

static void check_credit(void)
{
    for (int i = 0; i < room.jobs->n_accounts; i++) {
        const struct credit *c = &room.jobs->accounts[i].credit;
        check(c->taken_slots <= c->granted_slots && c->taken_blocks <= c->granted_blocks,
              "credit below zero");
    }
}

// --- all

static uint64_t heap_bytes(void) { return mallinfo2().uordblks; }

static void play(void)
{
    uint64_t empty = heap_bytes(), most = 0;
    while (room.n_ended < room.n_started || room.n_left > 0) {
        end_due();
        while (room.n_left > 0 && choose() == ROUND) {}
        if (room.step++ % CHECK_EVERY == 0) check_credit();
        if (room.step % CHECK_EVERY == 0 && heap_bytes() > most) most = heap_bytes();
    }
    end_due();
    double n = (double) room.n_ended;
    printf("# %.0f jobs over %d pipelines of %d slots, %d tenants, %" PRIu64 " choices\n", n,
           room.n_pipelines, SLOTS, TENANTS, room.n_views);
    printf("# ns a job: looking at the pipelines %.0f, choosing %.0f, starting %.0f, ending %.0f\n",
           (double) room.view_ns / n, (double) room.choose_ns / n, (double) room.start_ns / n,
           (double) room.end_ns / n);
    printf("# us a choice: looking %.1f, choosing %.1f\n",
           (double) room.view_ns / (double) room.n_views / 1e3,
           (double) room.choose_ns / (double) room.n_views / 1e3);
    double all = (double) (room.view_ns + room.choose_ns + room.start_ns + room.end_ns) / n;
    printf("# 10 million jobs: %.0f s of one core\n", all * 1e7 / 1e9);
    printf("# bytes: table %zu, of which %zu a pipeline; attempts %" PRIu64 " at most, %zu each\n",
           sizeof *room.jobs, sizeof(struct account), most > empty ? most - empty : 0,
           sizeof(struct attempt));
}

int main(int argc, char **argv)
{
    struct error e;
    const struct jobs_options o = {NULL, NULL, on_send, on_freed, on_returned};
    room.n_left = argc > 1 ? strtoull(argv[1], NULL, 10) : JOBS_DEFAULT;
    room.n_pipelines = argc > 2 ? atoi(argv[2]) : 1000;
    bool good = argc <= 3 && room.n_left > 0 && room.n_pipelines >= 1 &&
                room.n_pipelines <= PIPELINES_MAX && room.n_pipelines * SLOTS <= RUNNING_MAX;
    if (!good) {
        fprintf(stderr, "usage: sim-scale [JOBS [PIPELINES]], at most %d of these\n",
                PIPELINES_MAX);
        return 2;
    }
    uint64_t n = room.n_left;
    log_init("scale", LOG_ERROR, false);
    check(jobs_create(&room.jobs, &o, &e) == OK);
    for (int i = 0; i < RUNNING_MAX; i++) {
        room.pool[i].next = room.free;
        room.free = &room.pool[i];
    }
    for (int t = 0; t < TENANTS; t++) {
        for (int c = 0; c < JOB_CLASSES; c++) {
            for (int k = 0; k < WINDOW; k++) room.windows[t][c][k] = new_job();
        }
    }
    open_pipelines();
    play();
    bool all = room.n_ended == n && (uint64_t) room.n_committed == n && room.jobs->n == 0;
    for (int i = 0; i < room.n_pipelines; i++) {
        const struct credit *c = &room.jobs->accounts[i].credit;
        all = all && credit_slots(c) == SLOTS && credit_blocks(c) == BLOCKS;
    }
    printf("%sok 1 - every job ended once, and every credit is back\n1..1\n", all ? "" : "not ");
    jobs_destroy(&room.jobs);
    return all ? 0 : 1;
}
