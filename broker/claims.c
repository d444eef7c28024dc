#include "broker/claims.h"

#include "broker/loop.h"
#include "broker/reader.h"
#include "common/clock.h"
#include "common/log.h"

#include <stdlib.h>
#include <string.h>

enum {
    ROUND_MOST = 256,   // jobs claimed at once
    URGENT_MOST = 32,   // of class 0 beside an open claim
    WINDOW_MOST = 64,   // headers of a tenant and class that are kept
    WINDOW_LOW = 16,    // fewer, and more there: they are read again
    LOOK_MS = 1000,     // all windows are read again, without a sign of anything there
    URGENT_THREADS = 1,
};

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
    int n_open; // calls that read it
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

// From looking to reading. All classes take part in the first one; the other one is for jobs of
// class 0 that come while it is under way and other classes wait, so that they need not wait for
// it, nor be read behind what it claimed.
struct round {
    struct claims *claims;
    enum state state;
    bool wanted; // look again
    int n_open;  // windows being read
    int asked[JOB_CLASSES * TENANTS_MAX]; // tenant * JOB_CLASSES + class of each, in order
    int n_asked, n_told;
    bool failed; // a window of this round did
    struct chosen chosen[ROUND_MOST];
    int n_chosen;
    uint64_t claim; // its number: no other claim of this term has it
    struct reader *reader;
};

enum { ALL, URGENT, ROUNDS };

struct claims {
    struct claims_options options;
    struct tenants tenants, tenants_next; // during a round they stay
    bool tenants_changed;
    uint64_t max_blocks; // of one job; 0: no limit known
    bool stopped;        // nothing is claimed any more
    int64_t looked_ms;
    uint64_t claim;      // the number of the last claim, of no other model's
    struct window windows[TENANTS_MAX][JOB_CLASSES];
    struct dispatch dispatch;
    // For dispatch:
    struct dispatch_tenant budgets[TENANTS_MAX];
    struct ready_queue queues[TENANTS_MAX][JOB_CLASSES];
    struct round rounds[ROUNDS];
};

static void step(struct claims *c);

// --- claiming

static void give_credit_back(struct claims *c, const struct chosen *r)
{
    dispatch_give_back(&c->dispatch, &r->pick);
    if (r->unfit) return;
    jobs_withdraw(c->options.jobs, r->epoch, r->ready.need_blocks, r->ready.poison);
}

static void take(struct round *round, const struct chosen *r, const struct queue_job *j)
{
    struct claims *c = round->claims;
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
    bool unfit = c->max_blocks > 0 && j->need_blocks > c->max_blocks;
    bool read = runs && reader_add(round->reader, j, &key, unfit ? c->max_blocks : 0);
    if (!read) jobs_give_back(jobs, key.attempt);
}

static void on_claimed(void *arg, const struct queue_reply *r)
{
    struct round *round = arg;
    struct claims *c = round->claims;
    if (r->error.status == ERR_UNAVAILABLE || r->error.status == ERR_ABORTED) {
        round->state = UNSURE;
        return;
    }
    if (r->error.status != OK) {
        log_line(LOG_ERROR, "claim_failed", log_str("code", r->error.code),
                 log_str("error", r->error.text));
    }
    for (int i = 0; i < round->n_chosen; i++) {
        const struct queue_job *j = r->error.status == OK ? &r->jobs[i] : NULL;
        const struct dispatch_pick *p = &round->chosen[i].pick;
        bool there = j == NULL || j->word == QUEUE_LATER; // still
        if (there) c->windows[p->tenant][p->class].stale = true;
        if (j != NULL && j->word == QUEUE_OK) take(round, &round->chosen[i], j);
        else give_credit_back(c, &round->chosen[i]);
    }
    round->state = IDLE;
    round->n_chosen = 0;
    round->wanted = r->error.status == OK;
    step(c);
}

static void call_claim(struct round *round)
{
    const struct claims *c = round->claims;
    struct queue_key keys[ROUND_MOST];
    for (int i = 0; i < round->n_chosen; i++) {
        const struct chosen *r = &round->chosen[i];
        keys[i] = (struct queue_key){r->owner, c->tenants.at[r->pick.tenant].name, r->ready.id};
    }
    enum status status = queue_claim(c->options.queue, round->claim, LEASE_MS,
                                     reader_bytes_room(round->reader), keys,
                                     (size_t) round->n_chosen, on_claimed, round);
    round->state = status == OK ? CLAIMING : UNSURE;
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
            c->queues[t][class] = (struct ready_queue){w->jobs, w->n, w->more};
            for (int i = 0; i < w->n; i++) {
                bool unfit = is_unfit(c, &w->ready[i]);
                w->jobs[i].need_blocks = unfit ? 0 : w->ready[i].need_blocks;
                w->jobs[i].poison = w->ready[i].poison && !unfit;
            }
        }
    }
}

// A job leaves its window for a claim, with the credit that it needs.
static void prepare(struct round *round, const struct dispatch_pick *pick, uint64_t epoch)
{
    struct claims *c = round->claims;
    struct chosen *r = &round->chosen[round->n_chosen++];
    struct ready *ready = &c->windows[pick->tenant][pick->class].ready[pick->nth];
    *r = (struct chosen){.ready = *ready, .pick = *pick};
    r->unfit = is_unfit(c, ready);
    ready->id[0] = '\0';
    if (r->unfit) return;
    r->epoch = epoch;
    const char *owner = jobs_promise(c->options.jobs, r->epoch, r->ready.need_blocks,
                                     r->ready.poison);
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

static void choose(struct round *round)
{
    struct claims *c = round->claims;
    struct dispatch_pick picks[ROUND_MOST];
    struct dispatch_pipeline pipelines[PIPELINES_MAX];
    bool urgent = round == &c->rounds[URGENT];
    int most = urgent ? URGENT_MOST : ROUND_MOST, room = reader_room(round->reader);
    round->state = IDLE;
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
                                       .urgent = urgent,
                                       .now_ms = clock_ms()};
    int n = dispatch_choose(&c->dispatch, &view, picks, room < most ? room : most);
    if (n == 0) return;
    round->claim = c->claim += MODELS_MAX;
    for (int i = 0; i < n; i++) prepare(round, &picks[i], pipelines[picks[i].pipeline].id);
    for (int i = 0; i < n; i++) close_up(&c->windows[picks[i].tenant][picks[i].class]);
    call_claim(round);
}

void claims_each_chosen(const struct claims *c, claims_active_fn *fn, void *arg)
{
    for (int k = 0; k < ROUNDS; k++) {
        for (int i = 0; i < c->rounds[k].n_chosen; i++) {
            const struct chosen *r = &c->rounds[k].chosen[i];
            if (!r->unfit) fn(arg, c->tenants.at[r->pick.tenant].name, r->ready.need_blocks);
        }
    }
}

// --- looking

// At most: a prompt goes in by a block of rows a step, beside those of others, and then each token
// takes one.
static uint64_t steps_of(const struct queue_header *h)
{
    return (h->n_prompt + KV_BLOCK_ROWS - 1) / KV_BLOCK_ROWS + h->max_tokens;
}

static void add_ready(struct window *w, const struct queue_header *h, int64_t now_ms)
{
    struct ready *to = &w->ready[w->n];
    *to = (struct ready){.need_blocks = h->need_blocks, .poison = h->poison,
                         .steps = steps_of(h)};
    snprintf(to->id, sizeof to->id, "%s", h->id);
    w->jobs[w->n++] = (struct ready_job){.cost = h->n_prompt + h->max_tokens,
                                         .since_ms = now_ms - h->waited_ms,
                                         .seq = h->seq,
                                         .steps = to->steps};
}

// The window may be older than the other round's claim.
static bool is_chosen(const struct claims *c, int tenant, const char *id)
{
    for (int k = 0; k < ROUNDS; k++) {
        for (int i = 0; i < c->rounds[k].n_chosen; i++) {
            const struct chosen *r = &c->rounds[k].chosen[i];
            if (r->pick.tenant == tenant && strcmp(r->ready.id, id) == 0) return true;
        }
    }
    return false;
}

static void read_window(struct claims *c, int tenant, int class, const struct queue_reply *r)
{
    struct window *w = &c->windows[tenant][class];
    int64_t now_ms = clock_ms();
    w->n = 0;
    for (size_t i = 0; i < r->n && i < WINDOW_MOST; i++) {
        if (!is_chosen(c, tenant, r->headers[i].id)) add_ready(w, &r->headers[i], now_ms);
    }
    w->more = r->n == WINDOW_MOST;
}

static void on_window(void *arg, const struct queue_reply *r)
{
    struct round *round = arg;
    struct claims *c = round->claims;
    int asked = round->asked[round->n_told++]; // replies come in the order of the calls
    int tenant = asked / JOB_CLASSES, class = asked % JOB_CLASSES;
    round->n_open--;
    c->windows[tenant][class].n_open--;
    if (r->error.status == OK) read_window(c, tenant, class, r);
    else c->windows[tenant][class].stale = round->failed = true;
    if (round->n_open > 0) return;
    if (round->failed) round->state = IDLE;
    else choose(round);
    step(c); // the other round may have waited for this one to be under way
}

static void look(struct round *round)
{
    struct claims *c = round->claims;
    const char *model = c->options.models->at[c->options.model].name;
    int n_classes = round == &c->rounds[URGENT] ? 1 : JOB_CLASSES;
    round->wanted = round->failed = false;
    round->n_asked = round->n_told = 0;
    round->state = LOOKING;
    for (int t = 0; t < c->tenants.n; t++) {
        for (int class = 0; class < n_classes && c->tenants.at[t].name[0] != '\0'; class++) {
            struct window *w = &c->windows[t][class];
            if (!w->stale && !(w->more && w->n < WINDOW_LOW)) continue;
            enum status status = queue_window(c->options.queue, class, c->tenants.at[t].name,
                                              model, 0, WINDOW_MOST, on_window, round);
            w->stale = status != OK;
            if (status != OK) round->failed = true;
            else round->asked[round->n_asked++] = t * JOB_CLASSES + class;
            w->n_open += status == OK;
        }
    }
    round->n_open = round->n_asked;
    if (round->n_open > 0) return;
    if (round->failed) round->state = IDLE;
    else choose(round);
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

// Jobs of other classes are being claimed, or wait.
static bool others_are_there(const struct claims *c)
{
    const struct round *all = &c->rounds[ALL];
    for (int i = 0; i < all->n_chosen; i++) {
        if (all->chosen[i].pick.class > 0) return true;
    }
    for (int t = 0; t < c->tenants.n; t++) {
        for (int class = 1; class < JOB_CLASSES; class++) {
            if (c->windows[t][class].n > 0) return true;
        }
    }
    return false;
}

static bool may_look(const struct claims *c, int k)
{
    const struct round *round = &c->rounds[k], *all = &c->rounds[ALL];
    bool room = reader_bytes_room(round->reader) > (size_t) READER_BYTES_MAX / 2 &&
                reader_room(round->reader) > 0;
    if (round->state != IDLE || !round->wanted || !room || c->stopped) return false;
    if (c->tenants_changed || !jobs_room(c->options.jobs, c->options.model)) return false;
    // Without a reason for it jobs of class 0 go with the others.
    return k == ALL || ((all->state != IDLE || !reader_idle(all->reader)) && others_are_there(c));
}

static void step(struct claims *c)
{
    if (!queue_ready(c->options.queue)) return;
    bool idle = true;
    for (int k = 0; k < ROUNDS; k++) {
        if (c->rounds[k].state == UNSURE) call_claim(&c->rounds[k]);
        idle = idle && c->rounds[k].state == IDLE;
    }
    if (c->tenants_changed && idle) change_tenants(c);
    for (int k = 0; k < ROUNDS; k++) {
        if (may_look(c, k)) look(&c->rounds[k]);
    }
}

static void want_urgent(struct claims *c)
{
    for (int t = 0; t < c->tenants.n; t++) {
        const struct window *w = &c->windows[t][0];
        if (w->n > 0 || w->stale) c->rounds[URGENT].wanted = true;
    }
}

void claims_wake(struct claims *c)
{
    c->rounds[ALL].wanted = true;
    want_urgent(c);
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

void claims_admitted(struct claims *c, const char *tenant, int class,
                     const struct queue_header *h)
{
    int t = tenants_find(&c->tenants, tenant);
    struct window *w = t >= 0 ? &c->windows[t][class] : NULL;
    // A read that is open may have been before it.
    bool all = w != NULL && !w->stale && !w->more && w->n_open == 0 && w->n < WINDOW_MOST;
    if (h == NULL || !all || (w->n > 0 && w->jobs[w->n - 1].seq > h->seq)) {
        claims_changed(c, tenant, class);
        return;
    }
    add_ready(w, h, clock_ms());
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
        c->rounds[ALL].wanted = true;
    }
    step(c);
}

bool claims_idle(const struct claims *c)
{
    bool idle = true;
    for (int k = 0; k < ROUNDS; k++) {
        idle = idle && (c->rounds[k].state == IDLE || c->rounds[k].state == LOOKING);
    }
    return idle;
}

void claims_set_limits(struct claims *c, int max_context, uint64_t max_blocks)
{
    for (int k = 0; k < ROUNDS; k++) reader_set_context(c->rounds[k].reader, max_context);
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

static void on_read(void *arg) { step(arg); }

static enum status create_rounds(struct claims *c, struct error *e)
{
    const struct claims_options *o = &c->options;
    struct reader_options options = {.loop = o->loop, .jobs = o->jobs, .models = o->models,
                                     .model = o->model, .limits = o->limits, .arg = c,
                                     .read = on_read};
    for (int k = 0; k < ROUNDS; k++) {
        struct round *round = &c->rounds[k];
        round->claims = c;
        options.n_threads = k == URGENT ? URGENT_THREADS : o->n_threads;
        try(reader_create(&round->reader, &options, e));
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
    enum status status = create_rounds(c, e);
    if (status != OK) claims_destroy(claims);
    return status;
}

void claims_destroy(struct claims **claims)
{
    struct claims *c = *claims;
    if (c == NULL) return;
    *claims = NULL;
    for (int k = 0; k < ROUNDS; k++) reader_destroy(&c->rounds[k].reader);
    free(c);
}
