#include "workers/stage.h"

#include "common/rank_layout.h"
#include "workers/rank.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct stage {
    struct rank_stage shared; // with the ranks' threads
    struct rank *ranks;       // (tp)
    int n_started;
    uint64_t load_bytes;      // of the stage's tensors
    int64_t load_ns;          // of the load that has ended
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

uint64_t stage_staging_bytes(const struct stage_options *o) { return rank_staging_bytes(o); }

uint64_t stage_comm_bytes(const struct stage_options *o) { return comms_bytes(o); }

static enum status start_ranks(struct stage *s, struct error *e)
{
    const struct stage_options *o = &s->shared.options;
    try(comms_create(&s->shared.comms, o, e));
    struct load_options load = {.config = o->config,
                                .checkpoint = o->checkpoint,
                                .place = rank_placement(o, 0),
                                .manifest = o->manifest,
                                .memory = o->staging};
    try(load_create(&s->shared.load, &load, e));
    s->load_bytes = load_bytes(s->shared.load);
    for (; s->n_started < o->tp; s->n_started++) {
        try(rank_start(&s->ranks[s->n_started], &s->shared, s->n_started, e));
    }
    return OK;
}

enum status stage_create(struct stage **stage, const struct stage_options *options,
                         struct error *e)
{
    struct stage *s = calloc(1, sizeof *s);
    *stage = s;
    if (s == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a stage");
    s->shared.options = *options;
    enum status status = ring_init(&s->shared.ring, options->n_steps, options->tp, e);
    s->ranks = calloc((size_t) options->tp, sizeof *s->ranks);
    if (status == OK && s->ranks == NULL) {
        status = error_set(e, ERR_NOMEM, NULL, "no memory for %d ranks", options->tp);
    }
    struct carve c = {.base = options->memory, .size = stage_memory_bytes(options)};
    s->shared.steps = carve_steps(options, &c);
    if (status == OK) status = start_ranks(s, e);
    if (status != OK) stage_destroy(stage);
    return status;
}

// Of the ranks that failed: not of one that only waited for another.
static const struct error *first_error(const struct stage *s)
{
    const struct error *first = NULL;
    for (int i = 0; i < s->shared.options.tp; i++) {
        const struct rank *r = &s->ranks[i];
        if (rank_state(r) != STAGE_FAILED) continue;
        if (first != NULL && r->status == ERR_ABORTED) continue;
        if (first == NULL || first->status == ERR_ABORTED) first = &r->error;
    }
    return first;
}

enum stage_state stage_state(struct stage *s, struct error *e)
{
    enum stage_state state = STAGE_READY;
    for (int i = 0; i < s->shared.options.tp && state != STAGE_FAILED; i++) {
        enum stage_state of_rank = rank_state(&s->ranks[i]);
        if (of_rank != STAGE_READY) state = of_rank;
    }
    if (state == STAGE_FAILED && e != NULL) *e = *first_error(s);
    if (state == STAGE_READY && s->shared.load != NULL) {
        s->load_ns = load_ns(s->shared.load);
        load_destroy(&s->shared.load);
    }
    return state;
}

void stage_figures(struct stage *s, struct stage_figures *to)
{
    *to = (struct stage_figures){0};
    for (int i = 0; i < s->shared.options.tp; i++) rank_count(&s->ranks[i], to);
}

int64_t stage_load_ns(const struct stage *s) { return s->load_ns; }

int stage_fd(const struct stage *s) { return s->shared.ring.fd; }

void stage_progress(const struct stage *s, uint64_t *loaded, uint64_t *total)
{
    uint64_t of_all = atomic_load_explicit(&s->shared.loaded, memory_order_relaxed);
    *loaded = of_all / (uint64_t) s->shared.options.tp;
    *total = s->load_bytes;
}

struct ledger stage_rank_ledger(const struct stage *s, int rank) { return s->ranks[rank].ledger; }

struct ledger stage_ledger(const struct stage *s)
{
    int most = 0;
    for (int i = 1; i < s->shared.options.tp; i++) {
        if (ledger_total(&s->ranks[i].ledger) > ledger_total(&s->ranks[most].ledger)) most = i;
    }
    return s->ranks[most].ledger;
}

struct ledger stage_host_ledger(const struct stage *s)
{
    struct ledger all = {0};
    for (int i = 0; i < s->shared.options.tp; i++) ledger_add(&all, &s->ranks[i].host_ledger);
    return all;
}

static struct stage_step *at(struct stage *s, int place)
{
    return place >= 0 ? &s->shared.steps[place] : NULL;
}

struct stage_step *stage_place(struct stage *s, int i) { return at(s, i); }

struct stage_step *stage_next(struct stage *s) { return at(s, ring_next(&s->shared.ring)); }

void stage_submit(struct stage *s) { ring_submit(&s->shared.ring); }

struct stage_step *stage_done(struct stage *s, enum status *status, struct error *e)
{
    return at(s, ring_oldest(&s->shared.ring, status, e));
}

void stage_release(struct stage *s) { ring_release(&s->shared.ring); }

bool stage_idle(struct stage *s) { return ring_idle(&s->shared.ring); }

void stage_reset(struct stage *s) { ring_reset(&s->shared.ring); }

void stage_destroy(struct stage **stage)
{
    struct stage *s = *stage;
    if (s == NULL) return;
    *stage = NULL;
    ring_stop(&s->shared.ring);
    comms_abort(&s->shared.comms);
    if (s->shared.load != NULL) load_abort(s->shared.load);
    for (int i = 0; i < s->n_started; i++) rank_join(&s->ranks[i]);
    load_destroy(&s->shared.load);
    comms_destroy(&s->shared.comms);
    ring_deinit(&s->shared.ring);
    free(s->ranks);
    free(s);
}
