#include "broker/ingest.h"

#include "broker/loop.h"
#include "broker/map_reduce.h"
#include "broker/pool.h"
#include "common/clock.h"
#include "common/log.h"

#include <stdlib.h>
#include <string.h>

enum {
    ITEMS_MAX = 256,   // messages on the way: in the pool, or settled without Redis' reply
    POLLS_A_TICK = 16, // inboxes looked into without a sign of anything there
    PAUSE_MS = 500,    // after a call that failed
    REFUSAL_BYTES_MAX = 8192,
};
#define ITEM_BYTES_MAX (32 * MIB) // of all messages on the way

enum state { OFF, RECOVERING, TAKING };

// A message on its way.
struct item {
    struct ingest *ingest;
    uint64_t generation;
    uint64_t seq;
    struct prompt_limits limits;
    size_t n_bytes; // of the message, carried or not
    bool carried;   // else it was too large
    // What the pool makes of it:
    struct prompt prompt;
    struct error error;
    enum job_op op;
    int class, model;
    struct queue_header header; // id NULL: it is scheduled for later
    char id[JOB_ID_MAX + 1]; // empty: it cannot be read
    char tenant[TENANT_MAX + 1];
    uint8_t bytes[];
};

struct ingest {
    struct ingest_options options;
    struct pool *pool;
    struct prompt_scratch *scratch; // (n_threads)
    enum state state;
    uint64_t generation; // what was begun in an earlier one is dropped
    uint64_t after;      // recovering: the last sequence number seen
    bool asking;         // a take or recover is open
    uint64_t asking_generation;
    int asking_tenant;
    int n_items;
    size_t n_bytes;
    int64_t resume_ms;   // nothing is asked earlier
    struct tenants tenants;
    bool hot[TENANTS_MAX]; // the inbox may hold something
    int next, next_poll;   // whose turn it is
};

static void step(struct ingest *in);

// Begins again with what Redis has.
static void restart(struct ingest *in, int64_t pause_ms)
{
    in->generation++;
    in->state = RECOVERING;
    in->after = 0;
    in->resume_ms = clock_ms() + pause_ms;
}

// --- in the pool

static void read_item(void *arg, void *work, int thread)
{
    struct ingest *in = arg;
    struct item *item = work;
    item->op = JOB_CHAT;
    if (!item->carried) {
        error_set(&item->error, ERR_LIMIT, "too_large",
                  "the message has %zu bytes; at most %lld are allowed", item->n_bytes,
                  JOB_MESSAGE_MAX);
        return;
    }
    enum status status = prompt_read(&item->prompt, in->options.models, -1, &item->limits,
                                     item->tenant, item->bytes, item->n_bytes,
                                     &in->scratch[thread], &item->error);
    item->op = item->prompt.job.op;
    if (status == OK && item->op == JOB_MAP_REDUCE) {
        const struct map_reduce_context c = {in->options.models, item->prompt.model,
                                             &item->limits, item->tenant, &in->scratch[thread]};
        status = map_reduce_check(&c, &item->prompt.job, item->prompt.body_hash, &item->error);
    }
    if (status == OK) {
        snprintf(item->id, sizeof item->id, "%s", item->prompt.job.id);
    } else if (!job_id_peek(item->bytes, item->n_bytes, item->id, &item->op)) {
        item->id[0] = '\0';
    }
}

static void drop_item(void *work)
{
    struct item *item = work;
    prompt_deinit(&item->prompt);
    free(item);
}

// --- settling

static void item_gone(struct item *item)
{
    struct ingest *in = item->ingest;
    in->n_items--;
    in->n_bytes -= item->carried ? item->n_bytes : 0;
    drop_item(item);
}

// What a call's outcome means for those that follow: an outage of any kind begins anew.
static bool settled(struct item *item, const struct queue_reply *r, const char *call)
{
    struct ingest *in = item->ingest;
    const struct error *e = &r->error;
    if (e->status == OK) return true;
    if (item->generation != in->generation || e->status == ERR_ABORTED) return false;
    log_line(LOG_WARN, "ingest_failed", log_str("call", call), log_str("tenant", item->tenant),
             log_str("id", item->id), log_str("code", e->code), log_str("error", e->text));
    // Anything else is about this message alone: it stays in `raw` and is tried by the next broker.
    if (e->status == ERR_UNAVAILABLE || e->status == ERR_LIMIT) restart(in, PAUSE_MS);
    return false;
}

static void on_admitted(void *arg, const struct queue_reply *r)
{
    struct item *item = arg;
    struct ingest *in = item->ingest;
    if (settled(item, r, "admit")) {
        log_line(LOG_INFO, "admitted", log_str("tenant", item->tenant), log_str("id", item->id),
                 log_int("seq", item->seq), log_int("class", item->class),
                 log_str("word", queue_word_name(r->word)));
        bool waits = item->op == JOB_MAP_REDUCE;
        if (r->word == QUEUE_OK && waits) in->options.waiting(in->options.arg);
        if (r->word == QUEUE_OK && !waits) {
            const struct queue_header *h = item->header.id != NULL ? &item->header : NULL;
            in->options.admitted(in->options.arg, item->tenant, item->class, item->model, h);
        }
    }
    item_gone(item);
    step(in);
}

// A cancel that cannot be read must not take the name of the job that it meant.
static bool is_named(const struct item *item)
{
    return item->id[0] != '\0' && item->op != JOB_CANCEL;
}

// Under which id the message becomes a dead letter.
static const char *dead_id(const struct item *item, char made[JOB_ID_MAX + 1])
{
    snprintf(made, JOB_ID_MAX + 1, "raw-%llu", (unsigned long long) item->seq);
    return is_named(item) ? item->id : made;
}

static void on_rejected(void *arg, const struct queue_reply *r)
{
    struct item *item = arg;
    struct ingest *in = item->ingest;
    if (settled(item, r, "reject")) {
        char made[JOB_ID_MAX + 1];
        log_line(LOG_INFO, "rejected", log_str("tenant", item->tenant),
                 log_str("id", dead_id(item, made)),
                 log_int("seq", item->seq), log_str("code", item->error.code),
                 log_str("error", item->error.text));
    }
    item_gone(item);
    step(in);
}

static void on_cancelled(void *arg, const struct queue_reply *r)
{
    struct item *item = arg;
    struct ingest *in = item->ingest;
    if (settled(item, r, "cancel")) {
        log_line(LOG_INFO, "cancel", log_str("tenant", item->tenant), log_str("id", item->id),
                 log_str("word", queue_word_name(r->word)));
        if (r->word == QUEUE_RUNNING) {
            in->options.cancel(in->options.arg, item->tenant, item->id, r->number);
        }
    }
    item_gone(item);
    step(in);
}

static enum status admit(struct item *item)
{
    const struct prompt *p = &item->prompt;
    const struct job *job = &p->job;
    item->class = job->class;
    item->model = p->model;
    if (job->at_ms <= clock_wall_ms()) {
        item->header = (struct queue_header){.id = item->id,
                                             .seq = item->seq,
                                             .need_blocks = p->need_blocks,
                                             .n_prompt = (uint64_t) p->ids.n,
                                             .max_tokens = (uint64_t) p->max_tokens};
    }
    const struct queue_admit a = {
        .tenant = item->tenant,
        .id = item->id,
        .seq = item->seq,
        .class = job->class,
        .body_hash = p->body_hash,
        .need_blocks = p->need_blocks,
        .n_prompt = (uint64_t) p->ids.n,
        .max_tokens = (uint64_t) p->max_tokens,
        .at_ms = job->at_ms,
        .deadline_ms = job->deadline_ms,
        .ttl_ms = job->ttl_ms,
        .attempts = job->attempts,
        .stream = job->stream,
        .custom_id = job->custom_id,
        .batch = job->batch,
        .model = item->ingest->options.models->at[p->model].name,
    };
    return queue_admit(item->ingest->options.queue, &a, on_admitted, item);
}

static enum status reject(struct item *item)
{
    char made[JOB_ID_MAX + 1];
    struct buffer result;
    struct error e;
    buffer_init(&result, REFUSAL_BYTES_MAX);
    if (prompt_refusal(dead_id(item, made), item->prompt.job.custom_id, 0, &item->error, &result,
                       &e) != OK) {
        buffer_clear(&result); // the library makes a plainer one
    }
    const struct queue_reject r = {
        .tenant = item->tenant,
        .seq = item->seq,
        .id = is_named(item) ? item->id : NULL,
        .custom_id = item->prompt.job.custom_id,
        .code = item->error.code,
        .text = item->error.text,
        .result = result.n > 0 ? result.data : NULL,
        .n_result = result.n,
    };
    enum status status = queue_reject(item->ingest->options.queue, &r, on_rejected, item);
    buffer_deinit(&result);
    return status;
}

static void settle(struct item *item)
{
    struct ingest *in = item->ingest;
    if (item->generation != in->generation) {
        item_gone(item);
        return;
    }
    enum status status;
    if (item->error.status == ERR_NOMEM) {
        status = ERR_NOMEM; // no fault of the message: later
    } else if (item->error.status != OK) {
        status = reject(item);
    } else if (item->op == JOB_CANCEL) {
        status = queue_cancel(in->options.queue, item->tenant, item->seq, item->id, on_cancelled,
                              item);
    } else {
        status = admit(item);
    }
    // What the call needs was copied; the ids are only counted.
    prompt_deinit(&item->prompt);
    if (status == OK) return;
    item_gone(item);
    restart(in, PAUSE_MS);
}

static int on_done(zloop_t *loop, zmq_pollitem_t *poll, void *arg)
{
    struct ingest *in = arg;
    (void) loop, (void) poll;
    for (struct item *item; (item = pool_done(in->pool)) != NULL;) settle(item);
    step(in);
    return 0;
}

// --- taking

static bool add(struct ingest *in, const struct queue_message *m)
{
    size_t n_carried = m->bytes != NULL ? m->n_bytes : 0;
    struct item *item = malloc(sizeof *item + n_carried);
    if (item == NULL) return false;
    *item = (struct item){.ingest = in,
                          .generation = in->generation,
                          .seq = m->seq,
                          .limits = in->options.limits,
                          .n_bytes = m->n_bytes,
                          .carried = m->bytes != NULL};
    snprintf(item->tenant, sizeof item->tenant, "%s", m->tenant);
    if (n_carried > 0) memcpy(item->bytes, m->bytes, n_carried);
    in->n_items++;
    in->n_bytes += n_carried;
    bool submitted = pool_submit(in->pool, item);
    check(submitted, "the pool has room for all items");
    return true;
}

// False if what follows cannot be relied on.
static bool add_all(struct ingest *in, const struct queue_reply *r)
{
    in->asking = false;
    if (in->asking_generation != in->generation || in->state == OFF) return false;
    if (r->error.status == ERR_ABORTED) return false;
    if (r->error.status != OK) {
        if (r->error.status != ERR_UNAVAILABLE) {
            log_line(LOG_WARN, "take_failed", log_str("code", r->error.code),
                     log_str("error", r->error.text));
        }
        restart(in, PAUSE_MS);
        return false;
    }
    for (size_t i = 0; i < r->n; i++) {
        if (!add(in, &r->messages[i])) {
            restart(in, PAUSE_MS);
            return false;
        }
        in->after = r->messages[i].seq;
    }
    return true;
}

static void on_recovered(void *arg, const struct queue_reply *r)
{
    struct ingest *in = arg;
    if (add_all(in, r) && r->n == 0) in->state = TAKING;
    step(in);
}

static void on_taken(void *arg, const struct queue_reply *r)
{
    struct ingest *in = arg;
    // Over a budget in bytes nothing comes: the next poll asks again.
    if (add_all(in, r)) in->hot[in->asking_tenant] = r->number > 0 && r->n > 0;
    step(in);
}

// The next inbox with something in it, or -1.
static int next_hot(struct ingest *in)
{
    for (int i = 0; i < in->tenants.n; i++) {
        int t = (in->next + i) % in->tenants.n;
        if (!in->hot[t] || in->tenants.at[t].name[0] == '\0') continue;
        in->next = (t + 1) % in->tenants.n;
        return t;
    }
    return -1;
}

// Asks for more if there is room.
static void step(struct ingest *in)
{
    size_t room = (size_t) (ITEMS_MAX - in->n_items);
    size_t most = (size_t) ITEM_BYTES_MAX, bytes = in->n_bytes < most ? most - in->n_bytes : 0;
    bool may = in->state != OFF && !in->asking && clock_ms() >= in->resume_ms;
    // A message that fits no budget is carried alone.
    if (!may || room == 0 || (bytes < (size_t) JOB_MESSAGE_MAX && in->n_items > 0)) return;
    enum status status;
    if (in->state == RECOVERING) {
        status = queue_recover(in->options.queue, in->after, room, bytes, on_recovered, in);
    } else {
        int t = next_hot(in);
        if (t < 0) return;
        in->hot[t] = false;
        in->asking_tenant = t;
        status = queue_take(in->options.queue, in->tenants.at[t].name, room, bytes,
                            in->options.max_queued_bytes, on_taken, in);
        if (status != OK) in->hot[t] = true;
    }
    in->asking = status == OK;
    in->asking_generation = in->generation;
}

void ingest_tick(struct ingest *in, int64_t now_ms)
{
    (void) now_ms;
    for (int i = 0; i < POLLS_A_TICK && i < in->tenants.n; i++) {
        in->next_poll = (in->next_poll + 1) % in->tenants.n;
        in->hot[in->next_poll] = true;
    }
    step(in);
}

// --- the queue's events

void ingest_ready(struct ingest *in)
{
    restart(in, 0);
    step(in);
}

void ingest_down(struct ingest *in)
{
    in->generation++;
    in->state = OFF;
}

void ingest_pushed(struct ingest *in, const char *tenant)
{
    int t = tenants_find(&in->tenants, tenant);
    if (t >= 0) in->hot[t] = true;
    step(in);
}

void ingest_set_tenants(struct ingest *in, const struct tenants *tenants)
{
    for (int i = 0; i < tenants->n; i++) {
        bool same = strcmp(in->tenants.at[i].name, tenants->at[i].name) == 0;
        if (!same) in->hot[i] = true;
    }
    in->tenants = *tenants;
    step(in);
}

void ingest_set_max_context(struct ingest *in, int model, int max_context)
{
    in->options.limits.max_context[model] = max_context;
}

// --- life

static enum status create_scratch(struct ingest *in, struct error *e)
{
    in->scratch = calloc((size_t) in->options.n_threads, sizeof *in->scratch);
    if (in->scratch == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for the pool");
    for (int i = 0; i < in->options.n_threads; i++) {
        try(prompt_scratch_init(&in->scratch[i], in->options.models, -1, e));
    }
    return OK;
}

enum status ingest_create(struct ingest **ingest, const struct ingest_options *o, struct error *e)
{
    struct ingest *in = calloc(1, sizeof *in);
    *ingest = in;
    if (in == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for ingest");
    in->options = *o;
    enum status status = create_scratch(in, e);
    if (status == OK) status = pool_create(&in->pool, o->n_threads, ITEMS_MAX, read_item, in, e);
    if (status != OK) {
        ingest_destroy(ingest);
        return status;
    }
    zmq_pollitem_t poll = {.fd = pool_fd(in->pool), .events = ZMQ_POLLIN};
    check(zloop_poller(o->loop, &poll, on_done, in) == 0);
    return OK;
}

void ingest_destroy(struct ingest **ingest)
{
    struct ingest *in = *ingest;
    if (in == NULL) return;
    *ingest = NULL;
    if (in->pool != NULL) {
        zmq_pollitem_t poll = {.fd = pool_fd(in->pool)};
        zloop_poller_end(in->options.loop, &poll);
        pool_destroy(&in->pool, drop_item);
    }
    for (int i = 0; in->scratch != NULL && i < in->options.n_threads; i++) {
        prompt_scratch_deinit(&in->scratch[i]);
    }
    free(in->scratch);
    free(in);
}
