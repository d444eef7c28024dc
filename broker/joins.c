#include "broker/joins.h"

#include "broker/loop.h"
#include "broker/map_reduce.h"
#include "broker/pool.h"
#include "common/clock.h"
#include "common/log.h"

#include <stdlib.h>
#include <string.h>

enum {
    ITEMS_MAX = 2, // a document of 8 MiB takes some tens of MiB while it is split
    THREADS = ITEMS_MAX,
    PAUSE_MS = 500, // after a call that failed
};
#define GATHER_BYTES_MAX (4 * MIB)   // of results in one reply

// A parent on its way.
struct item {
    struct joins *joins;
    char tenant[TENANT_MAX + 1], id[JOB_ID_MAX + 1];
    int model; // index
    int level, n_children;
    uint8_t *message; // owned
    size_t n_message;
    struct map_reduce_results results;
    struct prompt_limits limits;
    struct map_reduce_next next;
    struct error error; // the job's own fault
};

struct joins {
    struct joins_options options;
    struct pool *pool;
    struct prompt_scratch scratch[THREADS];
    struct item *items[ITEMS_MAX];
    struct prompt_limits limits; // max_context 0: not known yet
    bool asking; // a look is open
    int asked;   // its model
    int n_left;  // models that this round has not asked for
    bool wanted; // another round after this one
    int64_t resume_ms; // nothing is asked earlier
};

static void look(struct joins *j);
static void on_found(void *arg, const struct queue_reply *r);

static struct queue_parent parent_of(const struct item *item)
{
    return (struct queue_parent){item->tenant, item->id, item->level};
}

static void free_item(void *work)
{
    struct item *item = work;
    map_reduce_next_deinit(&item->next);
    map_reduce_results_deinit(&item->results);
    free(item->message);
    free(item);
}

static void item_gone(struct item *item)
{
    struct joins *j = item->joins;
    for (int i = 0; i < ITEMS_MAX; i++) {
        if (j->items[i] == item) j->items[i] = NULL;
    }
    free_item(item);
}

// --- in the pool

static void work_out(void *arg, void *work, int thread)
{
    struct joins *j = arg;
    struct item *item = work;
    const struct map_reduce_context c = {.models = j->options.models,
                                         .model = item->model,
                                         .limits = &item->limits,
                                         .tenant = item->tenant,
                                         .scratch = &j->scratch[thread]};
    map_reduce_take_on(&item->next, &c, item->message, item->n_message, item->level,
                       &item->results, &item->error);
}

// --- telling the queue

static bool failed(const struct item *item, const struct queue_reply *r, const char *call)
{
    const struct error *e = &r->error;
    if (e->status == OK) return false;
    item->joins->resume_ms = clock_ms() + PAUSE_MS;
    if (e->status == ERR_ABORTED || e->status == ERR_UNAVAILABLE) return true;
    log_line(LOG_WARN, "join_failed", log_str("call", call), log_str("tenant", item->tenant),
             log_str("id", item->id), log_str("code", e->code), log_str("error", e->text));
    return true;
}

static void tell_end(struct item *item);

static void on_told(void *arg, const struct queue_reply *r)
{
    static const char *const steps[] = {"split", "reduce", "joined"};
    struct item *item = arg;
    struct joins *j = item->joins;
    bool is_error = item->error.status != OK;
    const char *step = is_error ? "failed" : steps[item->next.step];
    if (failed(item, r, step)) {
        item_gone(item);
        return;
    }
    log_line(LOG_INFO, "join", log_str("tenant", item->tenant), log_str("id", item->id),
             log_int("level", item->level), log_str("step", step),
             log_int("children", item->next.n), log_str("word", queue_word_name(r->word)),
             log_str("code", item->error.code));
    if (r->word == QUEUE_ID_CONFLICT && !is_error) {
        error_set(&item->error, ERR_STATE, "id_conflict",
                  "one of the ids of its children, %s-m%d-1 to %s-m%d-%d, belongs to another job",
                  item->id, item->level + 1, item->id, item->level + 1, item->next.n);
        tell_end(item);
        return;
    }
    if (r->word == QUEUE_OK && !is_error) j->options.ready(j->options.arg, item->tenant);
    item_gone(item);
    look(j);
}

// The job ends here: with a result, or as a dead letter.
static void tell_end(struct item *item)
{
    struct queue *q = item->joins->options.queue;
    const struct queue_parent p = parent_of(item);
    const struct error *why = item->error.status != OK ? &item->error : NULL;
    const struct buffer *result = &item->next.bytes;
    struct queue_text text = {0};
    if (why == NULL && item->next.stream) {
        text = (struct queue_text){0, (const char *) item->next.text.data, item->next.text.n};
    }
    enum status status = queue_joined(q, &p, why, why == NULL ? result->data : NULL, result->n,
                                      &text, on_told, item);
    if (status != OK) item_gone(item);
}

static void tell(struct item *item)
{
    struct queue *q = item->joins->options.queue;
    const struct queue_parent p = parent_of(item);
    const struct map_reduce_next *next = &item->next;
    if (item->error.status == ERR_NOMEM) { // no fault of the job: later
        item_gone(item);
        return;
    }
    if (item->error.status != OK || next->step == MAP_REDUCE_END) {
        tell_end(item);
        return;
    }
    const struct queue_usage *usage = &item->results.usage;
    enum status status = next->step == MAP_REDUCE_RUN
                             ? queue_reduce(q, &p, usage, next->children, on_told, item)
                             : queue_split(q, &p, usage, next->children, (size_t) next->n, on_told,
                                           item);
    if (status != OK) item_gone(item);
}

static int on_done(zloop_t *loop, zmq_pollitem_t *poll, void *arg)
{
    struct joins *j = arg;
    (void) loop, (void) poll;
    for (struct item *item; (item = pool_done(j->pool)) != NULL;) tell(item);
    return 0;
}

// --- reading what there is

static void gather(struct item *item, int after);

static enum status keep(struct item *item, const struct queue_reply *r)
{
    if (item->message == NULL) {
        if (r->message == NULL || r->n_message == 0) {
            return error_set(&item->error, ERR_STATE, "bytes_lost",
                             "the bytes of the job are gone");
        }
        item->message = malloc(r->n_message);
        if (item->message == NULL) return ERR_NOMEM;
        memcpy(item->message, r->message, r->n_message);
        item->n_message = r->n_message;
        map_reduce_results_init(&item->results, r->prior);
    }
    for (size_t i = 0; i < r->n; i++) {
        const struct queue_child_result *c = &r->results[i];
        if (c->bytes == NULL) {
            return error_set(&item->error, ERR_STATE, "bytes_lost",
                             "the result of the child %s-m%d-%d is gone; enqueue the job again",
                             item->id, item->level, c->index);
        }
        try(map_reduce_results_add(&item->results, c->bytes, c->n_bytes, &item->error));
    }
    return OK;
}

static void on_gathered(void *arg, const struct queue_reply *r)
{
    struct item *item = arg;
    if (failed(item, r, "gather") || r->word != QUEUE_OK) {
        item_gone(item);
        return;
    }
    enum status status = keep(item, r);
    if (status == ERR_NOMEM) {
        item_gone(item);
    } else if (status != OK) {
        tell_end(item);
    } else if (item->results.n < item->n_children && r->n > 0) {
        gather(item, item->results.n);
    } else {
        bool submitted = pool_submit(item->joins->pool, item);
        check(submitted, "the pool has room for all items");
    }
}

static void gather(struct item *item, int after)
{
    const struct queue_parent p = parent_of(item);
    enum status status = queue_gather(item->joins->options.queue, &p, after, GATHER_BYTES_MAX,
                                      on_gathered, item);
    if (status != OK) item_gone(item);
}

// --- looking

static bool is_on_its_way(const struct joins *j, const struct queue_join *q)
{
    for (int i = 0; i < ITEMS_MAX; i++) {
        const struct item *item = j->items[i];
        if (item == NULL) continue;
        if (strcmp(item->tenant, q->tenant) == 0 && strcmp(item->id, q->id) == 0) return true;
    }
    return false;
}

static struct item **free_place(struct joins *j)
{
    for (int i = 0; i < ITEMS_MAX; i++) {
        if (j->items[i] == NULL) return &j->items[i];
    }
    return NULL;
}

static void begin(struct joins *j, const struct queue_join *q)
{
    struct item **place = free_place(j), *item;
    if (place == NULL || is_on_its_way(j, q)) return;
    item = calloc(1, sizeof *item);
    if (item == NULL) return;
    item->joins = j;
    item->model = j->asked;
    item->level = q->level;
    item->n_children = q->n_children;
    item->limits = j->limits;
    snprintf(item->tenant, sizeof item->tenant, "%s", q->tenant);
    snprintf(item->id, sizeof item->id, "%s", q->id);
    *place = item;
    gather(item, 0);
}

// The next model of the round.
static void ask(struct joins *j)
{
    const struct models *models = j->options.models;
    for (; j->n_left > 0 && !j->asking; j->n_left--) {
        j->asked = (j->asked + 1) % models->n;
        if (j->limits.max_context[j->asked] == 0 || free_place(j) == NULL) continue;
        // Those on their way are named, too.
        j->asking = queue_joins(j->options.queue, models->at[j->asked].name, 2 * ITEMS_MAX,
                                on_found, j) == OK;
    }
}

static void on_found(void *arg, const struct queue_reply *r)
{
    struct joins *j = arg;
    j->asking = false;
    for (size_t i = 0; r->error.status == OK && i < r->n; i++) begin(j, &r->joins[i]);
    ask(j);
    if (j->wanted && !j->asking) look(j);
}

// Asks for all models, once the round that goes on is over.
static void look(struct joins *j)
{
    j->wanted = j->asking;
    if (j->asking || free_place(j) == NULL || clock_ms() < j->resume_ms) return;
    j->n_left = j->options.models->n;
    ask(j);
}

void joins_wake(struct joins *j) { look(j); }

void joins_tick(struct joins *j)
{
    if (!j->asking) look(j);
}

void joins_set_max_context(struct joins *j, int model, int max_context)
{
    j->limits.max_context[model] = max_context;
    look(j);
}

// --- life

enum status joins_create(struct joins **joins, const struct joins_options *o, struct error *e)
{
    struct joins *j = calloc(1, sizeof *j);
    *joins = j;
    if (j == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for joins");
    j->options = *o;
    j->limits.default_max_tokens = o->default_max_tokens;
    enum status status = pool_create(&j->pool, THREADS, ITEMS_MAX, work_out, j, e);
    for (int i = 0; i < THREADS && status == OK; i++) {
        status = prompt_scratch_init(&j->scratch[i], o->models, -1, e);
    }
    if (status != OK) {
        joins_destroy(joins);
        return status;
    }
    zmq_pollitem_t poll = {.fd = pool_fd(j->pool), .events = ZMQ_POLLIN};
    check(zloop_poller(o->loop, &poll, on_done, j) == 0);
    return OK;
}

void joins_destroy(struct joins **joins)
{
    struct joins *j = *joins;
    if (j == NULL) return;
    *joins = NULL;
    if (j->pool != NULL) {
        zmq_pollitem_t poll = {.fd = pool_fd(j->pool)};
        zloop_poller_end(j->options.loop, &poll);
        pool_destroy(&j->pool, NULL); // items are freed below
    }
    for (int i = 0; i < ITEMS_MAX; i++) {
        if (j->items[i] != NULL) free_item(j->items[i]);
    }
    for (int i = 0; i < THREADS; i++) prompt_scratch_deinit(&j->scratch[i]);
    free(j);
}
