#include "broker/claims.h"

#include "broker/loop.h"
#include "broker/pool.h"
#include "broker/queue_split.h"
#include "common/clock.h"
#include "common/log.h"

#include <stdlib.h>
#include <string.h>

enum {
    ROUND_MOST = 256,   // jobs claimed at once
    WINDOW_MOST = 64,   // headers of a tenant and class that are kept
    WINDOW_LOW = 16,    // fewer, and more there: they are read again
    ITEMS_MAX = 1024,   // jobs whose bytes are being read
    LOOK_MS = 1000,     // all windows are read again, without a sign of anything there
    REFUSAL_BYTES_MAX = 8192,
};
#define READ_BYTES_MAX (32 * MIB) // of messages and checkpoints being read

enum state {
    IDLE,
    LOOKING,  // windows are open
    CLAIMING, // the claim is
    UNSURE,   // its reply was lost: it is said again, with the same number
};

struct ready {
    char id[JOB_ID_MAX + 1]; // empty: it was chosen
    uint64_t need_blocks, steps;
    bool poison;
};

// The first ready jobs of a tenant and class, as Redis had them.
struct window {
    int n;
    bool stale; // to be read again
    bool more;  // are there
    struct ready ready[WINDOW_MOST];
    struct ready_job jobs[WINDOW_MOST]; // the same for dispatch
};

struct chosen {
    struct ready ready;
    struct dispatch_pick pick;
    bool unfit;     // can never run here
    uint64_t epoch; // of the pipeline it was promised to; 0: unfit
    char owner[GROUP_NAME_MAX + 1];
};

// A claimed job whose bytes the pool reads.
struct item {
    struct claims *claims;
    struct job_key key;
    struct prompt_limits limits;
    struct prompt prompt;
    struct error error;
    struct queue_usage prior; // of what was done for it before
    uint32_t starts;
    bool stream;
    int64_t admitted_ms;
    size_t n_message, n_resume;
    uint8_t bytes[]; // the checkpoint (ids, aligned), then the message
};

struct claims {
    struct claims_options options;
    struct pool *pool;
    struct prompt_scratch *scratch; // (n_threads)
    struct tenants tenants, tenants_next; // during a round they stay
    bool tenants_changed;
    uint64_t max_blocks;                // of one job; 0: no limit known
    bool stopped;                       // nothing is claimed any more
    enum state state;
    bool wanted;                        // look again
    int64_t looked_ms;
    int n_open;                         // windows being read
    int asked[JOB_CLASSES * TENANTS_MAX]; // tenant * JOB_CLASSES + class of each, in order
    int n_asked, n_told;
    bool failed;                        // a window of this round did
    struct window windows[TENANTS_MAX][JOB_CLASSES];
    struct dispatch dispatch;
    // For dispatch:
    struct dispatch_tenant budgets[TENANTS_MAX];
    struct ready_queue queues[TENANTS_MAX][JOB_CLASSES];
    // The claim:
    struct chosen chosen[ROUND_MOST];
    int n_chosen;
    uint64_t claim;                     // its number, of no other model's
    int n_items;
    size_t n_bytes;
};

static void step(struct claims *c);

// --- reading what was claimed

static void read_item(void *arg, void *work, int thread)
{
    struct claims *c = arg;
    struct item *item = work;
    prompt_read(&item->prompt, c->options.models, c->options.model, &item->limits,
                item->key.tenant, item->bytes + item->n_resume, item->n_message,
                &c->scratch[thread], &item->error);
}

static void drop_item(void *work)
{
    struct item *item = work;
    prompt_deinit(&item->prompt);
    free(item);
}

static void refuse(struct claims *c, const struct item *item)
{
    struct buffer result;
    struct error e;
    buffer_init(&result, REFUSAL_BYTES_MAX);
    if (prompt_refusal(item->key.id, item->prompt.job.custom_id, (int) item->starts, &item->error,
                       &result, &e) != OK) {
        buffer_clear(&result);
    }
    bool retryable = item->error.status == ERR_NOMEM;
    jobs_refuse(c->options.jobs, item->key.attempt, &item->error, retryable, result.data, result.n);
    buffer_deinit(&result);
}

static void start(struct claims *c, const struct item *item)
{
    const struct prompt *p = &item->prompt;
    const struct job_body *body = &p->body;
    int64_t queued_ms = clock_wall_ms() - item->admitted_ms;
    struct wire_job job = {
        .key = item->key,
        .max_tokens = p->max_tokens,
        .sampling = body->sampling,
        .n_stop_ids = body->n_stop_ids,
        .ignore_eos = body->ignore_eos,
        .class = p->job.class,
        .stream = item->stream,
        .attempts = (int) item->starts,
        .queued_ms = queued_ms > 0 ? (uint64_t) queued_ms : 0,
        .prior_prompt = item->prior.prompt,
        .prior_cached = item->prior.cached,
        .prior_completion = item->prior.completion,
        .ids = {p->ids.ids, (size_t) p->ids.n * sizeof *p->ids.ids},
        .resume = {item->bytes, item->n_resume},
        .n_stops = body->n_stops,
    };
    snprintf(job.custom_id, sizeof job.custom_id, "%s", p->job.custom_id);
    memcpy(job.stop_ids, body->stop_ids, sizeof job.stop_ids);
    for (int i = 0; i < body->n_stops; i++) {
        job.stops[i] = (struct wire_bytes){body->stops[i], body->stop_bytes[i]};
    }
    // More than it may have: of another job's life, or damaged. It begins anew.
    if (wire_ids_count(job.resume) > job.max_tokens) job.resume.n = 0;
    // Nobody keeps logprobs but the head that chose the tokens. What has been shown stays as it is.
    if (body->sampling.n_logprobs >= 0 && !item->stream) job.resume.n = 0;
    jobs_start(c->options.jobs, &job, p->need_blocks);
}

static int on_read(zloop_t *loop, zmq_pollitem_t *poll, void *arg)
{
    struct claims *c = arg;
    (void) loop, (void) poll;
    for (struct item *item; (item = pool_done(c->pool)) != NULL;) {
        if (item->error.status != OK) refuse(c, item);
        else start(c, item);
        c->n_items--;
        c->n_bytes -= item->n_message + item->n_resume;
        drop_item(item);
    }
    step(c);
    return 0;
}

static bool read_later(struct claims *c, const struct queue_job *j, const struct job_key *key)
{
    size_t n_resume = j->n_checkpoint / sizeof(int32_t) * sizeof(int32_t);
    struct item *item = malloc(sizeof *item + n_resume + j->n_bytes);
    if (item == NULL) return false;
    *item = (struct item){.claims = c,
                          .key = *key,
                          .limits = c->options.limits,
                          .prior = queue_usage_read(j->prior),
                          .starts = j->starts,
                          .stream = j->stream, // as admitted, whatever the message is by now
                          .admitted_ms = j->admitted_ms,
                          .n_message = j->n_bytes,
                          .n_resume = n_resume};
    item->limits.max_tokens = j->max_tokens <= CONTEXT_MAX ? (int) j->max_tokens : CONTEXT_MAX;
    memcpy(item->bytes, j->checkpoint, n_resume);
    memcpy(item->bytes + n_resume, j->bytes, j->n_bytes);
    if (!pool_submit(c->pool, item)) {
        free(item);
        return false;
    }
    c->n_items++;
    c->n_bytes += n_resume + j->n_bytes;
    return true;
}

// --- claiming

static void give_credit_back(struct claims *c, const struct chosen *r)
{
    dispatch_give_back(&c->dispatch, &r->pick);
    if (!r->unfit) jobs_withdraw(c->options.jobs, r->epoch, r->ready.need_blocks);
}

static void take(struct claims *c, const struct chosen *r, const struct queue_job *j)
{
    struct jobs *jobs = c->options.jobs;
    struct job_key key = {.attempt = j->attempt};
    snprintf(key.tenant, sizeof key.tenant, "%s", j->tenant);
    snprintf(key.id, sizeof key.id, "%s", j->id);
    enum status status = jobs_add(jobs, &key, r->ready.need_blocks, r->ready.steps,
                                  r->ready.poison, r->epoch);
    if (status != OK) { // its lease ends by itself
        give_credit_back(c, r);
        log_line(LOG_ERROR, "no_room", log_str("id", key.id), log_str("why", status_name(status)));
        return;
    }
    bool runs = !c->stopped && (r->unfit || jobs_serves(jobs, r->epoch));
    if (!runs || !read_later(c, j, &key)) jobs_give_back(jobs, key.attempt);
}

static void on_claimed(void *arg, const struct queue_reply *r)
{
    struct claims *c = arg;
    if (r->error.status == ERR_UNAVAILABLE || r->error.status == ERR_ABORTED) {
        c->state = UNSURE;
        return;
    }
    if (r->error.status != OK) {
        log_line(LOG_ERROR, "claim_failed", log_str("code", r->error.code),
                 log_str("error", r->error.text));
    }
    for (int i = 0; i < c->n_chosen; i++) {
        const struct queue_job *j = r->error.status == OK ? &r->jobs[i] : NULL;
        const struct dispatch_pick *p = &c->chosen[i].pick;
        bool there = j == NULL || j->word == QUEUE_LATER; // still
        if (there) c->windows[p->tenant][p->class].stale = true;
        if (j != NULL && j->word == QUEUE_OK) take(c, &c->chosen[i], j);
        else give_credit_back(c, &c->chosen[i]);
    }
    c->state = IDLE;
    c->n_chosen = 0;
    c->wanted = r->error.status == OK;
    step(c);
}

static void call_claim(struct claims *c)
{
    struct queue_key keys[ROUND_MOST];
    for (int i = 0; i < c->n_chosen; i++) {
        const struct chosen *r = &c->chosen[i];
        keys[i] = (struct queue_key){r->owner, c->tenants.at[r->pick.tenant].name, r->ready.id};
    }
    size_t room = c->n_bytes < (size_t) READ_BYTES_MAX ? (size_t) READ_BYTES_MAX - c->n_bytes : 1;
    enum status status = queue_claim(c->options.queue, c->claim, LEASE_MS, room, keys,
                                     (size_t) c->n_chosen, on_claimed, c);
    c->state = status == OK ? CLAIMING : UNSURE;
}

// --- choosing

// One without a need has no record any more: the claim finds it gone.
static bool is_unfit(const struct claims *c, const struct ready *r)
{
    return r->need_blocks == 0 || (c->max_blocks > 0 && r->need_blocks > c->max_blocks);
}

static void count_active(void *arg, const char *tenant, uint64_t need_blocks)
{
    struct claims *c = arg;
    int t = tenants_find(&c->tenants, tenant);
    if (t < 0) return;
    struct dispatch_tenant *b = &c->budgets[t];
    b->idle = false;
    if (b->jobs != UINT64_MAX && b->jobs > 0) b->jobs--;
    if (b->blocks != UINT64_MAX) b->blocks = b->blocks > need_blocks ? b->blocks - need_blocks : 0;
}

static void make_budgets(struct claims *c)
{
    bool any = false;
    for (int i = 0; i < c->tenants.n; i++) {
        const struct tenant *t = &c->tenants.at[i];
        bool paused = t->paused || c->tenants.paused || t->name[0] == '\0';
        uint64_t blocks = (t->max_tokens + KV_BLOCK_ROWS - 1) / KV_BLOCK_ROWS;
        c->budgets[i] = (struct dispatch_tenant){.weight = paused ? 0 : t->weight,
                                                 .jobs = t->max_jobs > 0 ? t->max_jobs : UINT64_MAX,
                                                 .blocks = blocks > 0 ? blocks : UINT64_MAX,
                                                 .idle = true};
        any = any || t->max_jobs > 0 || t->max_tokens > 0;
    }
    if (any) c->options.each_active(c->options.arg, count_active, c);
}

static void make_queues(struct claims *c)
{
    for (int t = 0; t < c->tenants.n; t++) {
        for (int class = 0; class < JOB_CLASSES; class++) {
            struct window *w = &c->windows[t][class];
            c->queues[t][class] = (struct ready_queue){w->jobs, w->n};
            for (int i = 0; i < w->n; i++) {
                bool unfit = is_unfit(c, &w->ready[i]);
                w->jobs[i].need_blocks = unfit ? 0 : w->ready[i].need_blocks;
                w->jobs[i].poison = w->ready[i].poison && !unfit;
            }
        }
    }
}

// A job leaves its window for a claim, with the credit that it needs.
static void prepare(struct claims *c, const struct dispatch_pick *pick, uint64_t epoch)
{
    struct chosen *r = &c->chosen[c->n_chosen++];
    struct ready *ready = &c->windows[pick->tenant][pick->class].ready[pick->nth];
    *r = (struct chosen){.ready = *ready, .pick = *pick};
    r->unfit = is_unfit(c, ready);
    ready->id[0] = '\0';
    if (r->unfit) return;
    r->epoch = epoch;
    const char *owner = jobs_promise(c->options.jobs, r->epoch, r->ready.need_blocks);
    snprintf(r->owner, sizeof r->owner, "%s", owner);
}

// What was chosen is gone.
static void close_up(struct window *w)
{
    int n = 0;
    for (int i = 0; i < w->n; i++) {
        if (w->ready[i].id[0] == '\0') continue;
        w->ready[n] = w->ready[i];
        w->jobs[n++] = w->jobs[i];
    }
    w->n = n;
}

static void choose(struct claims *c)
{
    struct dispatch_pick picks[ROUND_MOST];
    struct dispatch_pipeline pipelines[PIPELINES_MAX];
    int room = ITEMS_MAX - c->n_items < ROUND_MOST ? ITEMS_MAX - c->n_items : ROUND_MOST;
    c->state = IDLE;
    if (c->stopped) return;
    int n_pipelines = jobs_view(c->options.jobs, c->options.model, pipelines);
    if (n_pipelines == 0) return;
    make_budgets(c);
    make_queues(c);
    const struct dispatch_view view = {.n_pipelines = n_pipelines,
                                       .pipelines = pipelines,
                                       .n_tenants = c->tenants.n,
                                       .tenants = c->budgets,
                                       .queues = (const void *) c->queues,
                                       .now_ms = clock_ms()};
    int n = dispatch_choose(&c->dispatch, &view, picks, room);
    if (n == 0) return;
    c->claim += MODELS_MAX;
    for (int i = 0; i < n; i++) prepare(c, &picks[i], pipelines[picks[i].pipeline].id);
    for (int i = 0; i < n; i++) close_up(&c->windows[picks[i].tenant][picks[i].class]);
    call_claim(c);
}

void claims_each_chosen(const struct claims *c, claims_active_fn *fn, void *arg)
{
    for (int i = 0; i < c->n_chosen; i++) {
        const struct chosen *r = &c->chosen[i];
        if (!r->unfit) fn(arg, c->tenants.at[r->pick.tenant].name, r->ready.need_blocks);
    }
}

// --- looking

// At most: a prompt goes in by a block of rows a step, beside those of others, and then each token
// takes one.
static uint64_t steps_of(const struct queue_header *h)
{
    return (h->n_prompt + KV_BLOCK_ROWS - 1) / KV_BLOCK_ROWS + h->max_tokens;
}

static void read_window(struct window *w, const struct queue_reply *r)
{
    int64_t now_ms = clock_ms();
    w->n = 0;
    for (size_t i = 0; i < r->n && i < WINDOW_MOST; i++) {
        const struct queue_header *h = &r->headers[i];
        struct ready *to = &w->ready[w->n];
        *to = (struct ready){.need_blocks = h->need_blocks, .poison = h->poison,
                             .steps = steps_of(h)};
        snprintf(to->id, sizeof to->id, "%s", h->id);
        w->jobs[w->n++] = (struct ready_job){.cost = h->n_prompt + h->max_tokens,
                                             .since_ms = now_ms - h->waited_ms,
                                             .seq = h->seq,
                                             .steps = to->steps};
    }
    w->more = w->n == WINDOW_MOST;
}

static void on_window(void *arg, const struct queue_reply *r)
{
    struct claims *c = arg;
    int asked = c->asked[c->n_told++]; // replies come in the order of the calls
    struct window *w = &c->windows[asked / JOB_CLASSES][asked % JOB_CLASSES];
    c->n_open--;
    if (r->error.status == OK) read_window(w, r);
    else w->stale = c->failed = true;
    if (c->n_open > 0) return;
    if (c->failed) c->state = IDLE;
    else choose(c);
}

static void look(struct claims *c)
{
    const char *model = c->options.models->at[c->options.model].name;
    c->wanted = c->failed = false;
    c->n_asked = c->n_told = 0;
    c->state = LOOKING;
    for (int t = 0; t < c->tenants.n; t++) {
        for (int class = 0; class < JOB_CLASSES && c->tenants.at[t].name[0] != '\0'; class++) {
            struct window *w = &c->windows[t][class];
            if (!w->stale && !(w->more && w->n < WINDOW_LOW)) continue;
            enum status status = queue_window(c->options.queue, class, c->tenants.at[t].name,
                                              model, 0, WINDOW_MOST, on_window, c);
            w->stale = status != OK;
            if (status != OK) c->failed = true;
            else c->asked[c->n_asked++] = t * JOB_CLASSES + class;
        }
    }
    c->n_open = c->n_asked;
    if (c->n_open > 0) return;
    if (c->failed) c->state = IDLE;
    else choose(c);
}

static void all_stale(struct claims *c)
{
    for (int t = 0; t < c->tenants.n; t++) {
        for (int class = 0; class < JOB_CLASSES; class++) c->windows[t][class].stale = true;
    }
}

// A place that another tenant has now begins anew.
static void change_tenants(struct claims *c)
{
    c->tenants_changed = false;
    for (int t = 0; t < c->tenants_next.n; t++) {
        if (strcmp(c->tenants.at[t].name, c->tenants_next.at[t].name) == 0) continue;
        dispatch_forget(&c->dispatch, t);
        for (int class = 0; class < JOB_CLASSES; class++) {
            c->windows[t][class].n = 0;
            c->windows[t][class].stale = true;
        }
    }
    c->tenants = c->tenants_next;
}

static void step(struct claims *c)
{
    if (!queue_ready(c->options.queue)) return;
    if (c->state == UNSURE) {
        call_claim(c);
        return;
    }
    if (c->state != IDLE) return;
    if (c->tenants_changed) change_tenants(c);
    bool room = c->n_bytes < (size_t) READ_BYTES_MAX / 2 && c->n_items < ITEMS_MAX;
    if (c->wanted && room && !c->stopped && jobs_room(c->options.jobs, c->options.model)) look(c);
}

void claims_wake(struct claims *c)
{
    c->wanted = true;
    step(c);
}

void claims_changed(struct claims *c, const char *tenant, int class)
{
    int t = tenants_find(&c->tenants, tenant);
    for (int k = 0; t >= 0 && k < JOB_CLASSES; k++) {
        if (class < 0 || class == k) c->windows[t][k].stale = true;
    }
    claims_wake(c);
}

void claims_ready(struct claims *c)
{
    all_stale(c);
    claims_wake(c);
}

void claims_tick(struct claims *c, int64_t now_ms)
{
    if (now_ms - c->looked_ms >= LOOK_MS) {
        c->looked_ms = now_ms;
        all_stale(c);
        c->wanted = true;
    }
    step(c);
}

bool claims_idle(const struct claims *c)
{
    return c->state == IDLE || c->state == LOOKING;
}

void claims_set_limits(struct claims *c, int max_context, uint64_t max_blocks)
{
    c->options.limits.max_context[c->options.model] = max_context;
    c->max_blocks = max_blocks;
}

void claims_set_tenants(struct claims *c, const struct tenants *tenants)
{
    c->tenants_next = *tenants;
    c->tenants_changed = true;
    claims_wake(c);
}

void claims_stop(struct claims *c) { c->stopped = true; }

// --- life

static enum status create_scratch(struct claims *c, struct error *e)
{
    const struct claims_options *o = &c->options;
    c->scratch = calloc((size_t) o->n_threads, sizeof *c->scratch);
    if (c->scratch == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for the pool");
    for (int i = 0; i < o->n_threads; i++) {
        try(prompt_scratch_init(&c->scratch[i], o->models, o->model, e));
    }
    return OK;
}

enum status claims_create(struct claims **claims, const struct claims_options *o, struct error *e)
{
    struct claims *c = calloc(1, sizeof *c);
    *claims = c;
    if (c == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for claims");
    c->options = *o;
    c->dispatch.age_ms = o->age_ms;
    c->dispatch.urgent_percent = o->urgent_percent;
    c->claim = (uint64_t) o->model + 1;
    enum status status = create_scratch(c, e);
    if (status == OK) status = pool_create(&c->pool, o->n_threads, ITEMS_MAX, read_item, c, e);
    if (status != OK) {
        claims_destroy(claims);
        return status;
    }
    zmq_pollitem_t poll = {.fd = pool_fd(c->pool), .events = ZMQ_POLLIN};
    check(zloop_poller(o->loop, &poll, on_read, c) == 0);
    return OK;
}

void claims_destroy(struct claims **claims)
{
    struct claims *c = *claims;
    if (c == NULL) return;
    *claims = NULL;
    if (c->pool != NULL) {
        zmq_pollitem_t poll = {.fd = pool_fd(c->pool)};
        zloop_poller_end(c->options.loop, &poll);
        pool_destroy(&c->pool, drop_item);
    }
    for (int i = 0; c->scratch != NULL && i < c->options.n_threads; i++) {
        prompt_scratch_deinit(&c->scratch[i]);
    }
    free(c->scratch);
    free(c);
}
