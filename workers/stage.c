#include "workers/stage.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/rank_layout.h"
#include "common/seal.h"
#include "kernels/comm.h"
#include "workers/forward.h"
#include "workers/load.h"
#include "workers/pack.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct rank {
    struct stage *stage;
    int index;
    pthread_t thread;
    struct device *device;
    struct weights weights;
    struct forward forward;
    struct ledger ledger, host_ledger; // of its device; of host memory beside it
    int64_t begun_ns[DEVICE_STEPS]; // of the steps that its device has begun
    int64_t ended_ns;               // of the last step
    enum status status;
    struct error error;
};

struct stage {
    struct stage_options options;
    int fd;
    struct rank *ranks;  // (tp)
    int n_started;
    struct comm *comms[TP_MAX];      // of activations, which lie in the ranks' devices
    struct comm *host_comms[TP_MAX]; // of what the sampler has in host memory; often the same
    struct stage_step *steps; // (n_steps)
    struct load *load;        // until READY
    _Atomic uint64_t loaded;  // bytes that ranks are done with, all ranks together
    uint64_t load_bytes;      // of the stage's tensors
    int64_t load_ns;          // of the load that has ended
    atomic_bool stop;

    pthread_mutex_t mutex; // guards what follows
    pthread_cond_t work;   // submitted, done or stop changed
    int n_loaded, n_failed; // ranks
    _Atomic uint64_t submitted; // steps given to the ranks; written under the mutex
    uint64_t released;     // steps the leader is done with
    uint64_t *done;        // (tp) steps each rank has finished
    struct stage_figures figures;
    enum status status;    // of the first failed step
    struct error error;
};

size_t stage_row_bytes(const struct model_config *c, enum precision p)
{
    return (size_t) c->hidden_size * (p == PRECISION_F32 ? 4 : 2);
}

void stage_thread_name(char to[STAGE_THREAD_NAME_MAX], int first, int rank)
{
    snprintf(to, STAGE_THREAD_NAME_MAX, "rank-%u-%u", (unsigned) first % 10000,
             (unsigned) rank % 100);
}

static void notify(struct stage *s)
{
    uint64_t one = 1;
    ssize_t n = write(s->fd, &one, sizeof one);
    check(n == sizeof one || errno == EAGAIN, "eventfd: %s", strerror(errno));
}

// --- the rank's thread

static int gpu_of(const struct stage_options *o, int rank)
{
    return o->n_gpus > 0 ? (o->gpu + rank) % o->n_gpus : o->gpu + rank;
}

static bool host_reads(const struct stage_options *o)
{
    return device_sizes(o->backend->kind)->host_reads;
}

static struct placement place_of(const struct stage_options *o, int rank)
{
    return (struct placement){o->first, o->last, o->head, o->tail, rank, o->tp};
}

static enum status layout_rank(struct rank *r, struct carve *carve, struct carve *host)
{
    const struct stage_options *o = &r->stage->options;
    struct placement place = place_of(o, r->index);
    try(weights_layout(&r->weights, o->config, &place, o->checkpoint, o->backend, carve,
                       &r->error));
    forward_layout(&r->forward, &r->weights, o->backend, r->device, r->stage->comms[r->index],
                   r->stage->host_comms[r->index], o->precision, &o->limits, carve, host);
    r->ledger = carve->ledger;
    return OK;
}

static char *scratch_of(const struct stage_options *o, int rank)
{
    return (char *) o->staging + carve_aligned(load_memory_bytes(&(struct load_options){
               .config = o->config, .place = place_of(o, 0)})) +
           (size_t) rank * carve_aligned(pack_scratch_bytes(o->config));
}

static enum status pack_rank(struct rank *r)
{
    struct stage *s = r->stage;
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
    struct stage *s = r->stage;
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
    struct comm *comm = s->comms[r->index];
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

// Ends all collectives. Any thread.
static void abort_comms(struct stage *s)
{
    s->comms[0]->ops->abort(s->comms[0]);
    s->host_comms[0]->ops->abort(s->host_comms[0]);
}

// Waits for step number `next` (counted from 0). False when the stage ends.
static bool wait_for_step(struct stage *s, uint64_t next)
{
    pthread_mutex_lock(&s->mutex);
    while (s->submitted <= next && !atomic_load(&s->stop)) pthread_cond_wait(&s->work, &s->mutex);
    bool go = !atomic_load(&s->stop);
    pthread_mutex_unlock(&s->mutex);
    return go;
}

// By the rank's own clock; rank 0 counts for all. The mutex is held.
static void count_step(struct rank *r, const struct step *step, uint64_t us)
{
    struct stage_figures *f = &r->stage->figures;
    f->busy_us[r->index] += us;
    if (r->index != 0) return;
    f->rows += (uint64_t) step->n_rows;
    histogram_add(step->n_rows > step->n_runs ? &f->prefill : &f->decode, us);
    if (r->forward.sampler == NULL) return;
    struct sampler_counts c = sampler_counts(r->forward.sampler);
    f->sampler_rows = c.rows;
    f->sampler_fallbacks = c.fallbacks;
}

static void finish_step(struct rank *r, const struct step *step, uint64_t us, enum status status)
{
    struct stage *s = r->stage;
    pthread_mutex_lock(&s->mutex);
    count_step(r, step, us);
    if (status != OK && s->status == OK) {
        s->status = status;
        s->error = r->error;
    }
    uint64_t mine = ++s->done[r->index], least = mine;
    for (int i = 0; i < s->options.tp; i++) {
        if (s->done[i] < least) least = s->done[i];
    }
    bool last = least == mine; // nobody is behind: this rank finished the step
    if (last || status != OK) pthread_cond_broadcast(&s->work); // stage_reset may wait
    pthread_mutex_unlock(&s->mutex);
    if (last || status != OK) notify(s);
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

// How many steps the rank begins before it ends the first. A tail's host has something to do in the
// middle of each.
static uint64_t depth_of(const struct stage *s)
{
    return s->options.backend->step_end != NULL && !s->options.tail ? DEVICE_STEPS : 1;
}

static struct stage_step *step_at(struct stage *s, uint64_t number)
{
    return &s->steps[number % (uint64_t) s->options.n_steps];
}

static enum status begin_step(struct rank *r, uint64_t number)
{
    struct stage *s = r->stage;
    struct stage_step *step = step_at(s, number);
    r->begun_ns[number % DEVICE_STEPS] = clock_ns();
    try(forward_begin(&r->forward, &step->step, step->in, r->index == 0 ? step->out : NULL,
                      &r->error));
    if (depth_of(s) > 1) s->options.backend->step_end(r->device, (int) (number % DEVICE_STEPS));
    return OK;
}

static enum status end_step(struct rank *r, uint64_t number)
{
    const struct backend *b = r->stage->options.backend;
    struct stage_step *step = step_at(r->stage, number);
    bool overlaps = depth_of(r->stage) > 1;
    try(overlaps ? b->step_wait(r->device, (int) (number % DEVICE_STEPS), &r->error)
                 : b->sync(r->device, &r->error));
    if (step->logits != NULL) copy_logits(r, step);
    if (step->tokens != NULL && r->index == 0) {
        forward_tokens(&r->forward, &step->step, step->tokens);
    }
    return OK;
}

// Of overlapping steps each has the time since the one before it ended.
static void count_end(struct rank *r, uint64_t number, enum status status)
{
    int64_t begun_ns = r->begun_ns[number % DEVICE_STEPS], now_ns = clock_ns();
    if (begun_ns < r->ended_ns) begun_ns = r->ended_ns;
    r->ended_ns = now_ns;
    finish_step(r, &step_at(r->stage, number)->step, (uint64_t) (now_ns - begun_ns) / 1000, status);
}

// The next step is begun as soon as it is there and the device has room for it; until then the
// oldest is asked whether it has passed.
static void run_steps(struct rank *r)
{
    struct stage *s = r->stage;
    const struct backend *b = s->options.backend;
    uint64_t begun = 0, ended = 0, depth = depth_of(s);
    enum status status = OK;
    while (status == OK) {
        if (begun == ended && !wait_for_step(s, begun)) return;
        bool room = begun - ended < depth;
        bool goes = begun == ended || !atomic_load(&s->stop); // what was waited for is begun
        if (room && goes && atomic_load(&s->submitted) > begun) {
            status = begin_step(r, begun++);
        } else if (!room || b->step_passed(r->device, (int) (ended % DEVICE_STEPS))) {
            status = end_step(r, ended);
            if (status == OK) count_end(r, ended++, status);
        } else {
            sched_yield();
        }
    }
    count_end(r, ended, status); // first: what the others end with then is not the cause
    abort_comms(s);
}

static void *rank_main(void *arg)
{
    struct rank *r = arg;
    struct stage *s = r->stage;
    char name[STAGE_THREAD_NAME_MAX];
    stage_thread_name(name, s->options.first, r->index);
    pthread_setname_np(pthread_self(), name); // threads that it starts inherit it
    enum status status = load_rank(r);
    if (status == OK) status = forward_prepare(&r->forward, &r->error);
    if (status == OK) measure_rank(r);
    if (status != OK) abort_comms(s); // nobody waits for this rank
    pthread_mutex_lock(&s->mutex);
    r->status = status;
    *(status == OK ? &s->n_loaded : &s->n_failed) += 1;
    pthread_mutex_unlock(&s->mutex);
    notify(s);
    seal_set(true);
    if (status == OK) run_steps(r);
    seal_set(false);
    forward_deinit(&r->forward);
    weights_deinit(&r->weights);
    if (r->device == NULL) return NULL;
    s->comms[r->index]->ops->detach(s->comms[r->index]);
    s->options.backend->close(&r->device);
    return NULL;
}

// --- the leader's side

// Returns the steps; NULL while counting.
static struct stage_step *carve_steps(const struct stage_options *o, struct carve *c)
{
    uint64_t out = (uint64_t) o->limits.max_out;
    struct stage_step *steps = carve_take(c, (uint64_t) o->n_steps * sizeof *steps);
    for (int i = 0; i < o->n_steps; i++) {
        struct stage_step *step = steps != NULL ? &steps[i] : &(struct stage_step){0};
        step->index = i;
        void *arrays = carve_take(c, step_bytes(&o->limits));
        if (arrays != NULL) step_init(&step->step, &o->limits, arrays);
        if (!o->tail) {
            step->out = carve_take(c, (uint64_t) o->limits.max_rows *
                                          stage_row_bytes(o->config, o->precision));
            continue;
        }
        step->tokens = carve_take(c, out * sizeof *step->tokens);
        if (o->limits.score) {
            step->logits = carve_take(c, out * (uint64_t) o->config->vocab_size * 4);
        }
    }
    return steps;
}

uint64_t stage_memory_bytes(const struct stage_options *o)
{
    struct carve c = {0};
    carve_steps(o, &c);
    return c.used;
}

uint64_t stage_staging_bytes(const struct stage_options *o)
{
    struct load_options load = {.config = o->config, .place = place_of(o, 0)};
    return carve_aligned(load_memory_bytes(&load)) +
           (uint64_t) o->tp * carve_aligned(pack_scratch_bytes(o->config));
}

// What a collective in host memory holds at most; rank 0 has the largest slice of the vocabulary.
static void comm_sizes(const struct stage_options *o, size_t *elements, size_t *gather)
{
    struct rank_shape first = {.config = o->config,
                               .place = {.tp = o->tp},
                               .device = o->backend->kind,
                               .slots = o->limits.slots,
                               .max_blocks = o->limits.max_blocks,
                               .max_out = o->limits.max_out};
    struct sampler_shape widest = rank_sampler_shape(&first);
    *elements = host_reads(o) ? (size_t) o->limits.max_rows * (size_t) o->config->hidden_size : 0;
    *gather = sampler_gather_max(&widest);
}

uint64_t stage_comm_bytes(const struct stage_options *o)
{
    size_t elements, gather;
    comm_sizes(o, &elements, &gather);
    return comm_local_bytes(o->tp, elements, gather);
}

// With one rank no collective touches what it is given, so that one kind does.
static enum status create_comms(struct stage *s, struct error *e)
{
    const struct stage_options *o = &s->options;
    size_t elements, gather;
    comm_sizes(o, &elements, &gather);
    try(comm_local_create(s->host_comms, o->tp, elements, gather, o->collective_deadline_ms,
                          o->comm, e));
    if (host_reads(o) || o->tp == 1) {
        memcpy(s->comms, s->host_comms, sizeof s->comms);
        return OK;
    }
    struct comm_cuda_options options = {.tp = o->tp, .deadline_ms = o->collective_deadline_ms};
    return comm_cuda_create(s->comms, &options, e);
}

static void destroy_comms(struct stage *s)
{
    for (int i = 0; i < s->options.tp; i++) {
        if (s->comms[i] != NULL && s->comms[i] != s->host_comms[i]) {
            s->comms[i]->ops->destroy(&s->comms[i]);
        }
        if (s->host_comms[i] != NULL) s->host_comms[i]->ops->destroy(&s->host_comms[i]);
    }
}

static enum status start_ranks(struct stage *s, struct error *e)
{
    const struct stage_options *o = &s->options;
    try(create_comms(s, e));
    struct load_options load = {.config = o->config,
                                .checkpoint = o->checkpoint,
                                .place = place_of(o, 0),
                                .manifest = o->manifest,
                                .memory = o->staging};
    try(load_create(&s->load, &load, e));
    s->load_bytes = load_bytes(s->load);
    for (int i = 0; i < o->tp; i++) {
        s->ranks[i] = (struct rank){.stage = s, .index = i};
        int failed = pthread_create(&s->ranks[i].thread, NULL, rank_main, &s->ranks[i]);
        if (failed != 0) {
            return error_set(e, ERR_IO, NULL, "cannot start the thread of rank %d: %s", i,
                             strerror(failed));
        }
        s->n_started++;
    }
    return OK;
}

enum status stage_create(struct stage **stage, const struct stage_options *options,
                         struct error *e)
{
    struct stage *s = calloc(1, sizeof *s);
    *stage = s;
    if (s == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a stage");
    s->options = *options;
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->work, NULL);
    s->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    s->ranks = calloc((size_t) options->tp, sizeof *s->ranks);
    s->done = calloc((size_t) options->tp, sizeof *s->done);
    enum status status = OK;
    if (s->fd < 0 || s->ranks == NULL || s->done == NULL) {
        status = error_set(e, ERR_NOMEM, NULL, "no memory or descriptor for %d ranks", options->tp);
    }
    struct carve c = {.base = options->memory, .size = stage_memory_bytes(options)};
    s->steps = carve_steps(options, &c);
    if (status == OK) status = start_ranks(s, e);
    if (status != OK) stage_destroy(stage);
    return status;
}

// Of the ranks that failed: not of one that only waited for another.
static const struct error *first_error(const struct stage *s)
{
    const struct error *first = NULL;
    for (int i = 0; i < s->options.tp; i++) {
        const struct rank *r = &s->ranks[i];
        if (r->status == OK || (first != NULL && r->status == ERR_ABORTED)) continue;
        if (first == NULL || first->status == ERR_ABORTED) first = &r->error;
    }
    return first;
}

enum stage_state stage_state(struct stage *s, struct error *e)
{
    pthread_mutex_lock(&s->mutex);
    enum stage_state state = s->n_failed > 0                   ? STAGE_FAILED
                             : s->n_loaded == s->options.tp ? STAGE_READY
                                                               : STAGE_LOADING;
    if (state == STAGE_FAILED && e != NULL) *e = *first_error(s);
    pthread_mutex_unlock(&s->mutex);
    if (state == STAGE_READY && s->load != NULL) {
        s->load_ns = load_ns(s->load);
        load_destroy(&s->load);
    }
    return state;
}

void stage_figures(struct stage *s, struct stage_figures *to)
{
    pthread_mutex_lock(&s->mutex);
    *to = s->figures;
    pthread_mutex_unlock(&s->mutex);
}

int64_t stage_load_ns(const struct stage *s) { return s->load_ns; }

int stage_fd(const struct stage *s) { return s->fd; }

void stage_progress(const struct stage *s, uint64_t *loaded, uint64_t *total)
{
    uint64_t of_all = atomic_load_explicit(&s->loaded, memory_order_relaxed);
    *loaded = of_all / (uint64_t) s->options.tp;
    *total = s->load_bytes;
}

struct ledger stage_rank_ledger(const struct stage *s, int rank) { return s->ranks[rank].ledger; }

struct ledger stage_ledger(const struct stage *s)
{
    int most = 0;
    for (int i = 1; i < s->options.tp; i++) {
        if (ledger_total(&s->ranks[i].ledger) > ledger_total(&s->ranks[most].ledger)) most = i;
    }
    return s->ranks[most].ledger;
}

struct ledger stage_host_ledger(const struct stage *s)
{
    struct ledger all = {0};
    for (int i = 0; i < s->options.tp; i++) ledger_add(&all, &s->ranks[i].host_ledger);
    return all;
}

struct stage_step *stage_place(struct stage *s, int i) { return &s->steps[i]; }

struct stage_step *stage_next(struct stage *s)
{
    pthread_mutex_lock(&s->mutex);
    uint64_t used = s->submitted - s->released, next = s->submitted;
    pthread_mutex_unlock(&s->mutex);
    if (used == (uint64_t) s->options.n_steps) return NULL;
    return &s->steps[next % (uint64_t) s->options.n_steps];
}

void stage_submit(struct stage *s)
{
    pthread_mutex_lock(&s->mutex);
    s->submitted++;
    pthread_cond_broadcast(&s->work);
    pthread_mutex_unlock(&s->mutex);
}

struct stage_step *stage_done(struct stage *s, enum status *status, struct error *e)
{
    struct stage_step *step = NULL;
    pthread_mutex_lock(&s->mutex);
    *status = s->status;
    if (s->status != OK && e != NULL) *e = s->error;
    if (s->status == OK && s->released < s->submitted) {
        bool done = true;
        for (int i = 0; i < s->options.tp; i++) done = done && s->done[i] > s->released;
        if (done) step = &s->steps[s->released % (uint64_t) s->options.n_steps];
    }
    pthread_mutex_unlock(&s->mutex);
    return step;
}

void stage_release(struct stage *s)
{
    pthread_mutex_lock(&s->mutex);
    s->released++;
    pthread_mutex_unlock(&s->mutex);
}

bool stage_idle(struct stage *s)
{
    pthread_mutex_lock(&s->mutex);
    bool idle = true;
    for (int i = 0; i < s->options.tp && s->status == OK; i++) {
        idle = idle && s->done[i] == s->submitted;
    }
    pthread_mutex_unlock(&s->mutex);
    return idle;
}

void stage_reset(struct stage *s)
{
    pthread_mutex_lock(&s->mutex);
    for (int i = 0; i < s->options.tp; i++) {
        while (s->done[i] < s->submitted && s->status == OK) {
            pthread_cond_wait(&s->work, &s->mutex);
        }
    }
    s->released = s->submitted;
    pthread_mutex_unlock(&s->mutex);
}

void stage_destroy(struct stage **stage)
{
    struct stage *s = *stage;
    if (s == NULL) return;
    *stage = NULL;
    pthread_mutex_lock(&s->mutex);
    atomic_store(&s->stop, true);
    pthread_cond_broadcast(&s->work);
    pthread_mutex_unlock(&s->mutex);
    if (s->comms[0] != NULL) abort_comms(s);
    if (s->load != NULL) load_abort(s->load);
    for (int i = 0; i < s->n_started; i++) pthread_join(s->ranks[i].thread, NULL);
    load_destroy(&s->load);
    destroy_comms(s);
    if (s->fd >= 0) close(s->fd);
    pthread_cond_destroy(&s->work);
    pthread_mutex_destroy(&s->mutex);
    free(s->done);
    free(s->ranks);
    free(s);
}
