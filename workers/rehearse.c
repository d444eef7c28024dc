#include "workers/rehearse.h"

#include "common/clock.h"
#include "common/rank_layout.h"
#include "common/seal.h"
#include "workers/rehearse_comm.h"
#include "workers/rehearse_fill.h"
#include "workers/stage.h"

#include <stdlib.h>
#include <string.h>

enum {
    PEERS_MAX = 4 * 1024 * 1024, // values of the peers' stand-in, which is read again and again
    WARM = 2,                    // steps before the timed ones: the first may be recorded
    REPEATS_MAX = 20, REPEATS_LEAST = 3,
    MARKED = 3,                  // steps that are timed by op
};

static const double REPEAT_S = 1.0; // as many repeats as fit

struct rehearsal {
    struct rehearse_options options;
    const struct measures *measures;
    enum precision precision;
    struct device *device;
    struct weights weights;
    struct forward forward;
    struct rehearse_times times;
    struct rehearse_comm comm, host_comm;
    struct rehearse_noise noise;
    struct rehearse_memory memory;
    struct step step, before; // of a tail that overlaps: the step that has no tokens yet
    void *step_memory;        // of both
    char *links;         // the three that follow
    char *in, *out[DEVICE_STEPS]; // (max_rows, hidden) wire form
    int32_t *chosen;     // (max_rows, n_chosen), to count experts
    bool *touched;       // (n_routed_experts)
    float *host_peers;   // where the host reads the device's memory
    uint64_t number;     // of the last step
};

static struct placement place_of(const struct rehearse_options *o)
{
    const struct plan *p = o->plan;
    return (struct placement){.first = p->first[o->stage],
                              .last = p->first[o->stage] + p->layers[o->stage],
                              .head = o->stage == 0,
                              .tail = o->stage == p->pp - 1,
                              .tp_rank = o->rank,
                              .tp = p->tp};
}

static struct step_limits limits_of(const struct rehearse_options *o)
{
    const struct plan *p = o->plan;
    return (struct step_limits){.max_rows = p->max_rows, .slots = p->slots,
                                .max_blocks = p->max_blocks, .n_blocks = p->kv_blocks,
                                .max_out = p->max_out, .fp8_kv = o->request->fp8_kv,
                                .vocab_size = o->request->config->vocab_size};
}

// --- memory

static size_t peers_of(const struct rehearsal *r)
{
    const struct plan *p = r->options.plan;
    size_t n = (size_t) p->max_rows * (size_t) r->options.request->config->hidden_size;
    bool alone = p->tp > 1 && r->options.comm == NULL;
    return !alone ? 0 : n < PEERS_MAX ? n : PEERS_MAX;
}

static enum status lay_out(struct rehearsal *r, struct carve *carve, struct carve *host,
                           struct error *e)
{
    const struct rehearse_options *o = &r->options;
    struct placement place = place_of(o);
    struct step_limits limits = limits_of(o);
    bool apart = o->backend->host_memory != NULL;
    try(weights_layout(&r->weights, o->request->config, &place, NULL, o->backend, carve, e));
    forward_layout(&r->forward, &r->weights, &r->times.table, r->device, &r->comm.comm,
                   &r->host_comm.comm, r->precision, &limits, carve, host);
    if (!apart) return OK;
    carve_line(carve, LEDGER_LIBRARIES); // in place of those that the peers would need
    rehearse_comm_peers(&r->comm, carve_take(carve, peers_of(r) * sizeof(float)), peers_of(r));
    return OK;
}

// The lines that a process carves, alone.
static struct ledger carved_lines(const struct ledger *l)
{
    struct ledger only = *l;
    for (int i = 0; i < LEDGER_LINES; i++) {
        if (!ledger_is_carved((enum ledger_line) i)) only.bytes[i] = 0;
    }
    return only;
}

static enum status compare(const struct rehearsal *r, struct error *e)
{
    const struct rehearse_memory *m = &r->memory;
    struct ledger planned = carved_lines(&m->planned), carved = carved_lines(&m->carved);
    char text[ERROR_TEXT_SIZE];
    bool same = ledger_equal(&planned, "the plan", &carved, "the arena", text, sizeof text) &&
                ledger_equal(&m->host_planned, "the plan", &m->host_carved, "host memory", text,
                             sizeof text);
    return same ? OK : error_set(e, ERR_STATE, "bad_ledger", "%s", text);
}

static enum status check_room(const struct rehearsal *r, uint64_t arena, struct error *e)
{
    const struct rehearse_options *o = &r->options;
    uint64_t has = o->request->device_bytes[o->stage];
    const struct ledger *p = &r->memory.planned;
    uint64_t others = p->bytes[LEDGER_CONTEXT] + p->bytes[LEDGER_RESERVE];
    if (arena + others <= has) return OK;
    return error_set(e, ERR_NOMEM, "does_not_fit",
                     "an arena of %llu bytes and %llu for the driver do not fit in %llu",
                     (unsigned long long) arena, (unsigned long long) others,
                     (unsigned long long) has);
}

static enum status take_memory(struct rehearsal *r, struct error *e)
{
    const struct rehearse_options *o = &r->options;
    struct rehearse_memory *m = &r->memory;
    bool apart = o->backend->host_memory != NULL;
    struct carve carve = {0}, beside = {0}, *host = apart ? &beside : &carve;
    void *base;
    try(lay_out(r, &carve, host, e));
    m->carved = carve.ledger;
    m->host_carved = beside.ledger;
    if (apart) m->host_carved.bytes[LEDGER_STAGING] += device_sizes(o->backend->kind)->pinned;
    try(compare(r, e));
    try(check_room(r, carve.used, e));
    try(o->backend->arena(r->device, carve.used, &base, e));
    m->arena_bytes = carve.used;
    carve = (struct carve){.base = base, .size = carve.used};
    if (apart) {
        try(o->backend->host_memory(r->device, beside.used, &base, e));
        beside = (struct carve){.base = base, .size = beside.used};
    }
    if (!place_of(o).tail && o->backend->pin != NULL) {
        size_t link = (size_t) (r->out[0] - r->in);
        try(o->backend->pin(r->device, r->links, (1 + DEVICE_STEPS) * link, e));
    }
    return lay_out(r, &carve, host, e);
}

static enum status take_host(struct rehearsal *r, struct error *e)
{
    const struct model_config *c = r->options.request->config;
    struct step_limits limits = limits_of(&r->options);
    size_t rows = (size_t) limits.max_rows, link = rows * stage_row_bytes(c, r->precision);
    size_t step = carve_aligned(step_bytes(&limits));
    r->step_memory = calloc(2, step);
    r->links = calloc(1 + DEVICE_STEPS, link);
    r->chosen = calloc(rows * (size_t) (c->n_experts_per_token + 1), sizeof *r->chosen);
    r->touched = calloc((size_t) c->n_routed_experts + 1, sizeof *r->touched);
    if (r->options.backend->host_memory == NULL) {
        r->host_peers = calloc(peers_of(r) + 1, sizeof(float));
        rehearse_comm_peers(&r->comm, r->host_peers, peers_of(r));
    }
    if (r->step_memory == NULL || r->links == NULL || r->chosen == NULL || r->touched == NULL ||
        (r->options.backend->host_memory == NULL && r->host_peers == NULL)) {
        return error_set(e, ERR_NOMEM, NULL, "no memory for the steps of a rehearsal");
    }
    r->in = r->links;
    for (int i = 0; i < DEVICE_STEPS; i++) r->out[i] = r->links + (size_t) (i + 1) * link;
    step_init(&r->step, &limits, r->step_memory);
    step_init(&r->before, &limits, (char *) r->step_memory + step);
    rehearse_noise_wire(&r->noise, r->precision, r->in, rows * (size_t) c->hidden_size);
    return OK;
}

// --- steps

// Puts the step at hand on the device, as the i-th of those that overlap.
static enum status begin(struct rehearsal *r, int i, struct error *e)
{
    bool tail = r->weights.place.tail;
    step_expand(&r->step);
    return forward_begin(&r->forward, &r->step, r->in, tail ? NULL : r->out[i], e);
}

static enum status run(struct rehearsal *r, struct error *e)
{
    try(begin(r, 0, e));
    forward_logits(&r->forward, &r->step);
    try(forward_choose(&r->forward, &r->step, e));
    return r->options.backend->sync(r->device, e);
}

// Every slot has a sequence; where the pool is too small, later ones have blocks of earlier ones.
static enum status open_slots(struct rehearsal *r, struct error *e)
{
    struct step *s = &r->step;
    const struct plan *p = r->options.plan;
    step_reset(s, ++r->number);
    for (int slot = 0; slot < p->slots; slot++) {
        s->opens[s->n_opens++] = (struct step_open){.slot = slot, .n_blocks = p->max_blocks,
                                                    .first_block = s->n_blocks,
                                                    .n_prompt = r->options.context,
                                                    .sampling = sampling_default()};
        for (int i = 0; i < p->max_blocks; i++, s->n_blocks++) {
            s->blocks[s->n_blocks] = s->n_blocks % p->kv_blocks;
        }
    }
    return run(r, e);
}

// Ids whose embedding this rank has: others would be rows of zeros.
static void put_ids(struct rehearsal *r)
{
    struct range vocab = r->weights.vocab;
    for (int i = 0; i < r->step.n_rows; i++) {
        r->step.ids[i] = (int32_t) (vocab.begin + rehearse_noise_bits(&r->noise) % vocab.n);
    }
}

static void put_decode(struct rehearsal *r, int rows)
{
    struct step *s = &r->step;
    step_reset(s, ++r->number);
    for (int i = 0; i < rows; i++) {
        s->runs[s->n_runs++] = (struct step_run){i, r->options.context - 1, 1, RUN_LAST_ROW};
    }
    s->n_rows = rows;
    put_ids(r);
}

static void put_prefill(struct rehearsal *r, int pos, int n, bool last)
{
    struct step *s = &r->step;
    step_reset(s, ++r->number);
    s->runs[s->n_runs++] = (struct step_run){0, pos, n, last ? RUN_LAST_ROW : RUN_NO_LOGITS};
    s->n_rows = n;
    put_ids(r);
}

// What is timed: rows that decode, or a prompt.
struct work {
    bool prefill;
    int rows;
};

// How a step is run: by itself, with marks at its ops or at its layers, whose seconds are added to
// `ops` or `layers`; or while the one before it ends, if `overlaps`.
struct way {
    double *ops, *layers;
    bool overlaps;
    int64_t begun; // steps that overlap
    bool more;     // work
    int next;      // rows of the step that follows; 0: none does
};

// A tail's step gets its tokens while the device has the next one.
static enum status choose_before(struct rehearsal *r, const struct way *way, struct error *e)
{
    const struct backend *b = r->options.backend;
    if (!r->weights.place.tail || way->begun == 0) return OK;
    b->apart(r->device, true);
    enum status status = forward_choose(&r->forward, &r->before, e);
    b->apart(r->device, false);
    return status;
}

static void swap_steps(struct rehearsal *r)
{
    struct step now = r->step;
    r->step = r->before;
    r->before = now;
}

// Of steps one by one only what the next one brings from the stage before comes meanwhile.
static enum status run_with_next(struct rehearsal *r, int next, struct error *e)
{
    try(begin(r, 0, e));
    forward_logits(&r->forward, &r->step);
    struct step after = {.n_rows = next};
    if (next > 0) forward_ahead(&r->forward, &after, r->in);
    try(forward_choose(&r->forward, &r->step, e));
    return r->options.backend->sync(r->device, e);
}

static enum status run_overlapping(struct rehearsal *r, struct way *way, struct error *e)
{
    if (!forward_overlaps(&r->forward)) return run_with_next(r, way->next, e);
    const struct backend *b = r->options.backend;
    int place = (int) (way->begun % DEVICE_STEPS);
    if (way->begun >= DEVICE_STEPS) try(b->step_wait(r->device, place, e));
    try(begin(r, place, e));
    try(choose_before(r, way, e));
    forward_logits(&r->forward, &r->step);
    b->step_end(r->device, place);
    swap_steps(r);
    way->begun++;
    return OK;
}

static enum status run_way(struct rehearsal *r, struct way *way, struct error *e)
{
    if (way->overlaps) return run_overlapping(r, way, e);
    if (way->ops != NULL) rehearse_times_begin(&r->times);
    else rehearse_times_layers_begin(&r->times);
    enum status status = run(r, e);
    if (way->ops != NULL) rehearse_times_end(&r->times, way->ops);
    else *way->layers += rehearse_times_layers(&r->times);
    return status;
}

static int least_of(int a, int b) { return a < b ? a : b; }

static enum status run_work(struct rehearsal *r, const struct work *w, struct way *way,
                            struct error *e)
{
    int chunk = w->prefill ? r->options.plan->chunk : w->rows;
    int first = least_of(w->rows, chunk);
    if (!w->prefill) {
        put_decode(r, w->rows);
        way->next = way->more ? first : 0;
        return run_way(r, way, e);
    }
    for (int pos = 0; pos < w->rows; pos += chunk) {
        int left = w->rows - pos, n = least_of(left, chunk);
        put_prefill(r, pos, n, n == left);
        way->next = left - n > 0 ? least_of(left - n, chunk) : way->more ? first : 0;
        try(run_way(r, way, e));
    }
    return OK;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *) a, y = *(const double *) b;
    return (x > y) - (x < y);
}

static double median(double *values, int n)
{
    qsort(values, (size_t) n, sizeof *values, by_size);
    return values[n / 2];
}

static void count_experts(struct rehearsal *r, struct rehearse_time *t)
{
    const struct model_config *c = r->options.request->config;
    int n = r->step.n_rows * c->n_experts_per_token;
    if (r->weights.place.last <= c->n_dense_layers) return;
    r->options.backend->download(r->device, r->chosen, r->forward.chosen, (size_t) n * 4);
    memset(r->touched, 0, (size_t) c->n_routed_experts);
    for (int i = 0; i < n; i++) {
        int expert = r->chosen[i];
        if (expert < 0 || expert >= c->n_routed_experts) continue; // of padding
        t->experts += !r->touched[expert];
        r->touched[expert] = true;
    }
}

static enum status time_ops(struct rehearsal *r, const struct work *w, struct rehearse_time *t,
                            struct error *e)
{
    double all[MARKED][REHEARSE_OPS] = {{0}}, of_op[MARKED];
    for (int i = 0; i < MARKED; i++) try(run_work(r, w, &(struct way){.ops = all[i]}, e));
    for (int op = 0; op < REHEARSE_OPS; op++) {
        for (int i = 0; i < MARKED; i++) of_op[i] = all[i][op];
        t->ops[op] = median(of_op, MARKED);
    }
    return OK;
}

static enum status time_steps(struct rehearsal *r, const struct work *w, struct rehearse_time *t,
                              struct error *e)
{
    double seconds[REPEATS_MAX], layers[REPEATS_MAX] = {0};
    int64_t begun_ns, before_ns;
    for (int i = 0; i < WARM; i++) try(run_work(r, w, &(struct way){.layers = layers}, e));
    begun_ns = before_ns = clock_ns();
    while (t->repeats < REPEATS_MAX) {
        double all = (double) (before_ns - begun_ns) * 1e-9;
        bool enough = t->repeats >= REPEATS_LEAST && all > REPEAT_S;
        int given = r->options.comm != NULL ? r->options.repeats : 0;
        if (given > 0 ? t->repeats == given : enough) break;
        layers[t->repeats] = 0;
        try(run_work(r, w, &(struct way){.layers = &layers[t->repeats]}, e));
        int64_t now_ns = clock_ns();
        seconds[t->repeats++] = (double) (now_ns - before_ns) * 1e-9;
        before_ns = now_ns;
    }
    t->seconds = median(seconds, t->repeats);
    t->layers = median(layers, t->repeats);
    return OK;
}

// As a rank runs steps that follow each other: the device never waits for the host or for links.
static enum status time_pace(struct rehearsal *r, const struct work *w, struct rehearse_time *t,
                             struct error *e)
{
    struct way way = {.overlaps = true};
    t->pace = t->seconds;
    if (r->options.backend->step_end == NULL) return OK;
    int64_t begun_ns = clock_ns();
    for (int i = 0; i < t->repeats; i++) {
        way.more = i + 1 < t->repeats;
        try(run_work(r, w, &way, e));
    }
    try(choose_before(r, &way, e));
    if (way.begun > 0) swap_steps(r); // the last one is at hand again
    try(r->options.backend->sync(r->device, e));
    t->pace = (double) (clock_ns() - begun_ns) * 1e-9 / t->repeats;
    return OK;
}

static enum status time_work(struct rehearsal *r, const struct work *w, struct rehearse_time *t,
                             struct error *e)
{
    const struct plan *p = r->options.plan;
    *t = (struct rehearse_time){.rows = w->rows};
    int64_t blocks = (int64_t) w->rows * p->max_blocks;
    t->shared_kv = !w->prefill && blocks > p->kv_blocks;
    bool was = seal_set(true);
    uint64_t before = seal_counts().broken;
    enum status status = time_steps(r, w, t, e);
    if (status == OK) status = time_pace(r, w, t, e);
    r->memory.heap_calls += seal_counts().broken - before;
    seal_set(was);
    if (status == OK) count_experts(r, t);
    return status == OK ? time_ops(r, w, t, e) : status;
}

struct rehearse_own rehearse_time_own(const struct rehearse_time *t)
{
    double reduce = t->ops[REHEARSE_REDUCE];
    return (struct rehearse_own){t->seconds - reduce, t->pace - reduce};
}

enum status rehearse_decode(struct rehearsal *r, int rows, struct rehearse_time *t,
                            struct error *e)
{
    check(rows >= 1 && rows <= r->options.plan->slots && rows <= r->options.plan->max_rows);
    return time_work(r, &(struct work){false, rows}, t, e);
}

enum status rehearse_prefill(struct rehearsal *r, int rows, struct rehearse_time *t,
                             struct error *e)
{
    check(rows >= 1 && rows <= r->options.plan->max_context);
    return time_work(r, &(struct work){true, rows}, t, e);
}

// --- life

static enum status open_device(struct rehearsal *r, struct error *e)
{
    const struct rehearse_options *o = &r->options;
    struct rehearse_memory *m = &r->memory;
    struct placement place = place_of(o);
    struct device_options device = {.precision = r->precision, .n_threads = o->n_threads,
                                    .index = o->gpu};
    struct rank_shape shape = {.config = o->request->config, .place = place,
                               .device = o->backend->kind, .f32 = o->request->f32,
                               .fp8_kv = o->request->fp8_kv,
                               .slots = o->plan->slots, .max_blocks = o->plan->max_blocks,
                               .n_blocks = o->plan->kv_blocks, .max_rows = o->plan->max_rows,
                               .max_out = o->plan->max_out};
    m->planned = plan_rank_ledger(o->plan, o->request, o->stage, o->rank);
    m->host_planned = rank_host_ledger(&shape);
    m->heap_watched = seal_counts().watched;
    try(o->backend->open(&r->device, &device, e));
    try(rehearse_times_create(&r->times, o->backend, r->measures, r->device, &r->weights,
                              place.last - place.first, e));
    rehearse_comm_init(&r->comm, o->rank, o->plan->tp, &r->times, r->device, false);
    rehearse_comm_init(&r->host_comm, o->rank, o->plan->tp, &r->times, r->device, true);
    if (o->comm != NULL) rehearse_comm_real(&r->comm, o->comm);
    return OK;
}

static enum status fill(struct rehearsal *r, struct error *e)
{
    const struct rehearse_options *o = &r->options;
    int64_t begun_ns = clock_ns();
    try(rehearse_fill_weights(&r->weights, o->backend, r->measures, r->device, &r->noise, e));
    try(forward_prepare(&r->forward, e));
    try(open_slots(r, e));
    try(rehearse_fill_kv(&r->forward, o->plan->slots, o->context, &r->noise, e));
    r->memory.fill_s = (double) (clock_ns() - begun_ns) * 1e-9;
    return OK;
}

static enum status ready(struct rehearsal *r, struct error *e)
{
    struct rehearse_memory *m = &r->memory;
    try(r->measures->memory(r->device, &m->free_ready, &m->total, e));
    m->free_now = m->free_ready;
    if (r->options.backend->usage == NULL) return OK;
    struct device_usage usage;
    r->options.backend->usage(r->device, &usage);
    m->alone = usage.alone;
    m->stand_in = m->carved.bytes[LEDGER_LIBRARIES];
    m->carved.bytes[LEDGER_CONTEXT] = usage.context;
    m->carved.bytes[LEDGER_LIBRARIES] += usage.libraries;
    return OK;
}

enum status rehearse_open(struct rehearsal **rehearsal, const struct rehearse_options *o,
                          struct error *e)
{
    struct rehearsal *r = *rehearsal = calloc(1, sizeof *r);
    if (r == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a rehearsal");
    check(o->plan->fits && o->stage < o->plan->pp && o->rank < o->plan->tp &&
          o->context <= o->plan->max_context && o->repeats <= REPEATS_MAX);
    r->options = *o;
    r->precision = o->request->f32 ? PRECISION_F32 : PRECISION_BF16;
    r->measures = measures_of(o->backend->kind);
    enum status status = rehearse_noise_create(&r->noise, o->request->config, e);
    if (status == OK) status = open_device(r, e);
    if (status == OK) status = take_host(r, e);
    if (status == OK) status = take_memory(r, e);
    if (status == OK) {
        status = r->comm.comm.ops->attach(&r->comm.comm, r->device, r->forward.comm_memory,
                                          r->forward.comm_pinned, e);
    }
    if (status == OK) status = fill(r, e);
    if (status == OK) status = ready(r, e);
    if (status != OK) rehearse_close(rehearsal);
    return status;
}

enum status rehearse_memory(struct rehearsal *r, struct rehearse_memory *m, struct error *e)
{
    uint64_t total;
    try(r->measures->memory(r->device, &r->memory.free_now, &total, e));
    *m = r->memory;
    return OK;
}

void rehearse_close(struct rehearsal **rehearsal)
{
    struct rehearsal *r = *rehearsal;
    if (r == NULL) return;
    rehearse_times_destroy(&r->times);
    forward_deinit(&r->forward);
    weights_deinit(&r->weights);
    if (r->device != NULL) {
        if (r->comm.comm.ops != NULL) r->comm.comm.ops->detach(&r->comm.comm);
        r->options.backend->close(&r->device);
    }
    rehearse_noise_destroy(&r->noise);
    free(r->step_memory);
    free(r->links);
    free(r->chosen);
    free(r->touched);
    free(r->host_peers);
    free(r);
    *rehearsal = NULL;
}
