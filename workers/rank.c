#include "workers/rank.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/seal.h"
#include "workers/pack.h"

#include <sched.h>
#include <string.h>

static int gpu_of(const struct stage_options *o, int rank)
{
    return o->n_gpus > 0 ? (o->gpu + rank) % o->n_gpus : o->gpu + rank;
}

static bool host_reads(const struct stage_options *o)
{
    return device_sizes(o->backend->kind)->host_reads;
}

struct placement rank_placement(const struct stage_options *o, int index)
{
    return (struct placement){o->first, o->last, o->head, o->tail, index, o->tp};
}

static enum status layout_rank(struct rank *r, struct carve *carve, struct carve *host)
{
    const struct stage_options *o = &r->stage->options;
    struct placement place = rank_placement(o, r->index);
    try(weights_layout(&r->weights, o->config, &place, o->checkpoint, o->backend, carve,
                       &r->error));
    const struct comms *c = &r->stage->comms;
    forward_layout(&r->forward, &r->weights, o->backend, r->device, c->device[r->index],
                   c->host[r->index], o->precision, &o->limits, carve, host);
    r->ledger = carve->ledger;
    return OK;
}

static uint64_t load_staging_bytes(const struct stage_options *o)
{
    struct load_options load = {.config = o->config, .place = rank_placement(o, 0)};
    return carve_aligned(load_memory_bytes(&load));
}

static char *scratch_of(const struct stage_options *o, int rank)
{
    return (char *) o->staging + load_staging_bytes(o) +
           (size_t) rank * carve_aligned(pack_scratch_bytes(o->config));
}

uint64_t rank_staging_bytes(const struct stage_options *o)
{
    return load_staging_bytes(o) + (uint64_t) o->tp * carve_aligned(pack_scratch_bytes(o->config));
}

static enum status pack_rank(struct rank *r)
{
    struct rank_stage *s = r->stage;
    const struct stage_options *o = &s->options;
    struct packer p = {.weights = &r->weights,
                       .backend = o->backend,
                       .device = r->device,
                       .scratch = scratch_of(o, r->index),
                       .scratch_bytes = pack_scratch_bytes(o->config)};
    struct load_batch batch;
    try(pack_constants(&p, &r->error));
    load_join(s->load);
    for (;;) {
        try(load_next(s->load, r->index, &batch, &r->error));
        if (batch.n == 0) return o->backend->sync(r->device, &r->error);
        for (int i = 0; i < batch.n; i++) try(pack_piece(&p, &batch.pieces[i], &r->error));
        load_done(s->load, r->index);
        atomic_fetch_add_explicit(&s->loaded, batch.bytes, memory_order_relaxed);
    }
}

// Takes the rank's arena. What does not fit is told by its ledger, as the plan would.
static enum status take_arena(struct rank *r, uint64_t bytes, void **base)
{
    const struct stage_options *o = &r->stage->options;
    if (o->memory_bytes == 0 || bytes <= o->memory_bytes) {
        enum status status = o->backend->arena(r->device, bytes, base, &r->error);
        if (status != OK) error_prefix(&r->error, "rank %d", r->index);
        return status;
    }
    enum ledger_line line = ledger_line_beyond(&r->ledger, o->memory_bytes);
    return error_set(&r->error, ERR_NOMEM, "does_not_fit",
                     "rank %d needs %llu bytes of its device, which may have %llu: %llu bytes are "
                     "lacking, from the line %s on, which is %llu bytes; give it more memory, or "
                     "plan with fewer KV blocks, slots or rows, or more stages", r->index,
                     (unsigned long long) bytes, (unsigned long long) o->memory_bytes,
                     (unsigned long long) (bytes - o->memory_bytes), ledger_name(line),
                     (unsigned long long) r->ledger.bytes[line]);
}

static enum status load_rank(struct rank *r)
{
    struct rank_stage *s = r->stage;
    const struct stage_options *o = &s->options;
    struct device_options device = {.precision = o->precision,
                                    .n_threads = o->n_threads,
                                    .memory_bytes = o->memory_bytes,
                                    .index = gpu_of(o, r->index)};
    try(o->backend->open(&r->device, &device, &r->error));
    bool apart = !host_reads(o);
    struct carve carve = {0}, beside = {0}, *host = apart ? &beside : &carve;
    try(layout_rank(r, &carve, host));
    void *base;
    try(take_arena(r, carve.used, &base));
    carve = (struct carve){.base = base, .size = carve.used};
    if (apart) {
        try(o->backend->host_memory(r->device, beside.used, &base, &r->error));
        beside = (struct carve){.base = base, .size = beside.used};
    }
    try(layout_rank(r, &carve, host));
    struct comm *comm = s->comms.device[r->index];
    try(comm->ops->attach(comm, r->device, r->forward.comm_memory, r->forward.comm_pinned,
                          &r->error));
    if (r->index == 0 && !o->tail && o->backend->pin != NULL) {
        try(o->backend->pin(r->device, o->memory, stage_memory_bytes(o), &r->error));
    }
    r->host_ledger = beside.ledger;
    r->host_ledger.bytes[LEDGER_STAGING] += device_sizes(o->backend->kind)->pinned;
    return pack_rank(r);
}

// What the driver and libraries have taken beside the arena, for the ledger that READY tells: more
// than is allowed for is said, and so is more than the device may have.
static void measure_rank(struct rank *r)
{
    const struct stage_options *o = &r->stage->options;
    const struct device_sizes *allowed = device_sizes(o->backend->kind);
    struct device_usage usage;
    if (o->backend->usage == NULL) return;
    o->backend->usage(r->device, &usage);
    bool beyond = usage.context + usage.libraries > allowed->context + allowed->libraries;
    uint64_t carved = ledger_total(&r->ledger);
    log_line(beyond && usage.alone ? LOG_WARN : LOG_INFO, "device_usage", log_int("rank", r->index),
             log_int("context", usage.context), log_int("context_allowed", allowed->context),
             log_int("libraries", usage.libraries),
             log_int("libraries_allowed", allowed->libraries), log_int("arena", carved),
             log_str("others", usage.alone ? "apart" : "among context"));
    if (!usage.alone) usage.context = allowed->context; // it may be anybody's
    r->ledger.bytes[LEDGER_CONTEXT] = usage.context;
    r->ledger.bytes[LEDGER_LIBRARIES] = usage.libraries;
    if (o->memory_bytes == 0 || ledger_total(&r->ledger) <= o->memory_bytes) return;
    // What other processes took of the GPU meanwhile is among the libraries: no reason to end.
    log_line(LOG_WARN, "device_beyond", log_int("rank", r->index),
             log_int("has", ledger_total(&r->ledger)), log_int("may_have", o->memory_bytes),
             log_str("remedy", "more --device-memory, or a plan with more --reserve"));
}

// --- steps

// By the rank's own clock.
static void count_step(struct rank *r, const struct step *step, uint64_t us)
{
    struct stage_figures *f = &r->figures;
    pthread_mutex_lock(&r->counting);
    f->busy_us[r->index] += us;
    if (r->index == 0) {
        f->rows += (uint64_t) step->n_rows;
        histogram_add(step->n_rows > step->n_runs ? &f->prefill : &f->decode, us);
        if (r->forward.sampler != NULL) {
            struct sampler_counts c = sampler_counts(r->forward.sampler);
            f->sampler_rows = c.rows;
            f->sampler_fallbacks = c.fallbacks;
            f->sampler_hosted = c.hosted;
        }
    }
    pthread_mutex_unlock(&r->counting);
}

void rank_count(struct rank *r, struct stage_figures *to)
{
    pthread_mutex_lock(&r->counting);
    const struct stage_figures *f = &r->figures;
    to->rows += f->rows;
    histogram_merge(&to->decode, &f->decode);
    histogram_merge(&to->prefill, &f->prefill);
    to->busy_us[r->index] += f->busy_us[r->index];
    to->sampler_rows += f->sampler_rows;
    to->sampler_fallbacks += f->sampler_fallbacks;
    to->sampler_hosted += f->sampler_hosted;
    pthread_mutex_unlock(&r->counting);
}

// Each rank brings its columns of the logits together for `penstock score`.
static void copy_logits(const struct rank *r, struct stage_step *step)
{
    const struct forward *f = &r->forward;
    size_t part = (size_t) r->weights.vocab.n, begin = (size_t) r->weights.vocab.begin;
    size_t vocab = (size_t) f->config->vocab_size;
    for (size_t i = 0; i < (size_t) step->step.n_out; i++) {
        f->backend->download(r->device, step->logits + i * vocab + begin, f->logits + i * part,
                             part * sizeof(float));
    }
}

static struct stage_step *step_at(struct rank_stage *s, uint64_t number)
{
    return &s->steps[number % (uint64_t) s->options.n_steps];
}

// A tail's logits lie in one place: those of a step follow when the one before it has its tokens.
static void put_logits(struct rank *r, uint64_t number)
{
    struct rank_stage *s = r->stage;
    forward_logits(&r->forward, &step_at(s, number)->step);
    if (!forward_overlaps(&r->forward)) return;
    s->options.backend->step_end(r->device, (int) (number % DEVICE_STEPS));
}

static enum status begin_step(struct rank *r, uint64_t number, bool alone)
{
    struct rank_stage *s = r->stage;
    struct stage_step *step = step_at(s, number);
    r->begun_ns[number % DEVICE_STEPS] = clock_ns();
    try(forward_begin(&r->forward, &step->step, step->in, r->index == 0 ? step->out : NULL,
                      &r->error));
    if (alone || !s->options.tail) put_logits(r, number);
    return OK;
}

static enum status choose(struct rank *r, struct stage_step *step)
{
    try(forward_choose(&r->forward, &step->step, &r->error));
    if (step->logits != NULL) copy_logits(r, step);
    if (step->tokens != NULL && r->index == 0) {
        forward_tokens(&r->forward, &step->step, step->tokens);
    }
    return OK;
}

static enum status end_step(struct rank *r, uint64_t number)
{
    const struct backend *b = r->stage->options.backend;
    struct stage_step *step = step_at(r->stage, number);
    bool overlaps = forward_overlaps(&r->forward), tail = r->stage->options.tail;
    enum status status = OK;
    if (tail && overlaps) b->apart(r->device, true);
    if (tail) status = choose(r, step);
    if (tail && overlaps) b->apart(r->device, false);
    if (status != OK) return status;
    return overlaps ? b->step_wait(r->device, (int) (number % DEVICE_STEPS), &r->error)
                    : b->sync(r->device, &r->error);
}

// While a step runs that no other overlaps with, what the next one brings comes, if it is there.
static void bring_next(struct rank *r, uint64_t number)
{
    struct rank_stage *s = r->stage;
    if (forward_overlaps(&r->forward) || atomic_load(&s->ring.submitted) <= number) return;
    const struct stage_step *step = step_at(s, number);
    forward_ahead(&r->forward, &step->step, step->in);
}

// Of overlapping steps each has the time since the one before it ended.
static void count_end(struct rank *r, uint64_t number, enum status status)
{
    int64_t begun_ns = r->begun_ns[number % DEVICE_STEPS], now_ns = clock_ns();
    if (begun_ns < r->ended_ns) begun_ns = r->ended_ns;
    r->ended_ns = now_ns;
    count_step(r, &step_at(r->stage, number)->step, (uint64_t) (now_ns - begun_ns) / 1000);
    ring_finish(&r->stage->ring, r->index, status, &r->error);
}

// The next step is begun as soon as it is there and the device has room for it; until then the
// oldest is asked whether it has passed.
static void run_steps(struct rank *r)
{
    struct rank_stage *s = r->stage;
    const struct backend *b = s->options.backend;
    uint64_t begun = 0, ended = 0, depth = forward_overlaps(&r->forward) ? DEVICE_STEPS : 1;
    enum status status = OK;
    while (status == OK) {
        if (begun == ended && !ring_wait(&s->ring, begun)) return;
        bool full = begun - ended == depth;
        bool goes = begun == ended || !atomic_load(&s->ring.stop); // what was waited for is begun
        if (!full && goes && atomic_load(&s->ring.submitted) > begun) {
            status = begin_step(r, begun, begun == ended);
            begun++;
        } else if (full || b->step_passed(r->device, (int) (ended % DEVICE_STEPS))) {
            bring_next(r, begun);
            status = end_step(r, ended);
            if (status != OK) break;
            count_end(r, ended++, status);
            if (s->options.tail && begun > ended) put_logits(r, ended);
        } else {
            sched_yield();
        }
    }
    count_end(r, ended, status); // first: what the others end with then is not the cause
    comms_abort(&s->comms);
}

static void *rank_main(void *arg)
{
    struct rank *r = arg;
    struct rank_stage *s = r->stage;
    char name[STAGE_THREAD_NAME_MAX];
    stage_thread_name(name, s->options.first, r->index);
    pthread_setname_np(pthread_self(), name); // threads that it starts inherit it
    enum status status = load_rank(r);
    if (status == OK) status = forward_prepare(&r->forward, &r->error);
    if (status == OK) measure_rank(r);
    r->status = status;
    atomic_store(&r->state, status == OK ? STAGE_READY : STAGE_FAILED);
    if (status != OK) comms_abort(&s->comms); // nobody waits for this rank
    ring_notify(&s->ring);
    seal_set(true);
    if (status == OK) run_steps(r);
    seal_set(false);
    forward_deinit(&r->forward);
    weights_deinit(&r->weights);
    if (r->device != NULL) {
        struct comm *comm = s->comms.device[r->index];
        comm->ops->detach(comm);
        s->options.backend->close(&r->device);
    }
    ring_leave(&s->ring, r->index); // last: until then its device may read a step
    return NULL;
}

// --- the leader's side

enum stage_state rank_state(const struct rank *r) { return atomic_load(&r->state); }

enum status rank_start(struct rank *r, struct rank_stage *stage, int index, struct error *e)
{
    *r = (struct rank){.stage = stage, .index = index};
    pthread_mutex_init(&r->counting, NULL);
    int failed = pthread_create(&r->thread, NULL, rank_main, r);
    if (failed == 0) return OK;
    pthread_mutex_destroy(&r->counting);
    return error_set(e, ERR_IO, NULL, "cannot start the thread of rank %d: %s", index,
                     strerror(failed));
}

void rank_join(struct rank *r)
{
    pthread_join(r->thread, NULL);
    pthread_mutex_destroy(&r->counting);
}
