#include "tools/stage_times.h"

#include "common/checkpoint.h"
#include "workers/stage.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    TIMED = 24,    // steps of a kind
    WARM = 4,      // before these
    PAGE = 4096,
    FIRST_ID = 5,  // plain tokens in every model
    N_IDS = 97,
    ALL = TIMED + WARM,
};

// A stage on its own: what it reads comes from the stage before it, which ran the same steps.
struct lane {
    struct stage *stage;
    void *memory, *staging;
    char *rows;        // (ALL, max_rows, hidden) what its steps read; NULL: ids
    size_t row_bytes;
    uint64_t n_begun;  // steps, ever
    int n_done;        // of this kind
    uint64_t busy_us;  // after the last one
    double us[TIMED];
};

struct bench {
    const struct engine_options *options;
    const struct plan *plan;
    struct model_config config;
    struct checkpoint *checkpoint;
    struct lane lanes[PP_MAX];
};

static int by_size(const void *a, const void *b)
{
    double x = *(const double *) a, y = *(const double *) b;
    return x < y ? -1 : x > y;
}

// --- stages

static enum status open_lane(struct bench *b, int i, struct error *e)
{
    const struct plan *p = b->plan;
    struct lane *lane = &b->lanes[i];
    struct stage_options o = {.config = &b->config,
                              .checkpoint = b->checkpoint,
                              .backend = b->options->backend,
                              .first = p->first[i],
                              .last = p->first[i] + p->layers[i],
                              .head = i == 0,
                              .tail = i + 1 == p->pp,
                              .tp = p->tp,
                              .n_threads = b->options->n_threads,
                              .precision = b->options->precision,
                              .n_steps = 1,
                              .limits = {.max_rows = p->max_rows, .slots = p->slots,
                                         .max_blocks = p->max_blocks, .n_blocks = p->kv_blocks,
                                         .max_out = p->max_out,
                                         .vocab_size = b->config.vocab_size}};
    size_t staging = (size_t) (stage_staging_bytes(&o) + PAGE - 1) / PAGE * PAGE;
    lane->row_bytes = stage_row_bytes(&b->config, o.precision);
    lane->memory = calloc(1, stage_memory_bytes(&o));
    lane->staging = aligned_alloc(PAGE, staging);
    if (i > 0) lane->rows = calloc((size_t) ALL * (size_t) p->max_rows, lane->row_bytes);
    if (lane->memory == NULL || lane->staging == NULL || (i > 0 && lane->rows == NULL)) {
        return error_set(e, ERR_NOMEM, NULL, "no memory for a stage's steps");
    }
    memset(lane->staging, 0, staging);
    o.memory = lane->memory;
    o.staging = lane->staging;
    return stage_create(&lane->stage, &o, e);
}

static void close_lane(struct lane *lane)
{
    stage_destroy(&lane->stage);
    free(lane->memory);
    free(lane->staging);
    free(lane->rows);
}

static void wait_for(const struct lane *lane)
{
    struct pollfd fd = {.fd = stage_fd(lane->stage), .events = POLLIN};
    uint64_t times;
    poll(&fd, 1, -1);
    check(read(fd.fd, &times, sizeof times) > 0 || errno == EAGAIN, "eventfd: %s", strerror(errno));
}

static enum status wait_loaded(const struct lane *lane, struct error *e)
{
    enum stage_state state;
    while ((state = stage_state(lane->stage, e)) == STAGE_LOADING) wait_for(lane);
    return state == STAGE_FAILED ? e->status : OK;
}

// --- steps

static void open_all(const struct bench *b, struct step *s)
{
    const struct plan *p = b->plan;
    for (int k = 0; k < p->slots; k++) {
        struct step_open *o = &s->opens[s->n_opens++];
        *o = (struct step_open){.slot = k, .n_blocks = p->max_blocks, .first_block = s->n_blocks,
                                .n_prompt = 1, .sampling = sampling_default()};
        o->sampling.temperature = 0;
        for (int j = 0; j < p->max_blocks; j++, s->n_blocks++) {
            s->blocks[s->n_blocks] = (int32_t) s->n_blocks;
        }
    }
}

// Step n of its kind, for this stage.
static void submit(struct bench *b, struct lane *lane, const struct stage_time *kind, int n)
{
    struct stage_step *place = stage_next(lane->stage);
    struct step *s = &place->step;
    step_reset(s, ++lane->n_begun);
    if (lane->n_begun == 1) open_all(b, s);
    for (int k = 0; k < kind->seqs; k++) {
        s->runs[s->n_runs++] = (struct step_run){k, kind->pos, kind->rows, RUN_LAST_ROW};
        for (int i = 0; i < kind->rows; i++) {
            s->ids[s->n_rows++] = FIRST_ID + (n * 31 + k * 7 + i * 3) % N_IDS;
        }
    }
    step_expand(s);
    place->in = lane->rows == NULL ? NULL
              : lane->rows + (size_t) n * (size_t) b->plan->max_rows * lane->row_bytes;
    stage_submit(lane->stage);
}

// NULL: it is not done yet, or *status says that it failed.
static struct stage_step *done_step(struct lane *lane, enum status *status, struct error *e)
{
    uint64_t times;
    ssize_t n = read(stage_fd(lane->stage), &times, sizeof times);
    check(n > 0 || errno == EAGAIN, "eventfd: %s", strerror(errno));
    return stage_done(lane->stage, status, e);
}

// Runs the steps of a kind through stage i alone, for what the next one will read.
static enum status hand_on(struct bench *b, const struct stage_time *kind, int i, struct error *e)
{
    struct lane *lane = &b->lanes[i], *next = &b->lanes[i + 1];
    size_t step_bytes = (size_t) b->plan->max_rows * next->row_bytes;
    for (int n = 0; n < ALL; n++) {
        enum status status = OK;
        struct stage_step *done;
        submit(b, lane, kind, n);
        while ((done = done_step(lane, &status, e)) == NULL && status == OK) {
            struct pollfd fd = {.fd = stage_fd(lane->stage), .events = POLLIN};
            poll(&fd, 1, -1);
        }
        if (status != OK) return status;
        memcpy(next->rows + (size_t) n * step_bytes, done->out,
               (size_t) done->step.n_rows * next->row_bytes);
        stage_release(lane->stage);
    }
    return OK;
}

static void count(struct lane *lane)
{
    struct stage_figures f;
    stage_figures(lane->stage, &f);
    int k = lane->n_done++ - WARM;
    if (k >= 0 && k < TIMED) lane->us[k] = (double) (f.busy_us[0] - lane->busy_us);
    lane->busy_us = f.busy_us[0];
}

// Until every stage has its times; those that have go on, so that the others are not alone.
static enum status time_kind(struct bench *b, struct stage_time *kind, struct error *e)
{
    struct pollfd fds[PP_MAX];
    int pp = b->plan->pp, n_done = 0;
    for (int i = 0; i + 1 < pp; i++) try(hand_on(b, kind, i, e));
    for (int i = 0; i < pp; i++) {
        fds[i] = (struct pollfd){.fd = stage_fd(b->lanes[i].stage), .events = POLLIN};
        b->lanes[i].n_done = 0;
        submit(b, &b->lanes[i], kind, 0);
    }
    while (n_done < pp) {
        poll(fds, (nfds_t) pp, -1);
        for (int i = 0; i < pp; i++) {
            struct lane *lane = &b->lanes[i];
            enum status status = OK;
            if (done_step(lane, &status, e) == NULL) {
                if (status != OK) return status;
                continue;
            }
            count(lane);
            n_done += lane->n_done == ALL;
            stage_release(lane->stage);
            if (n_done < pp) submit(b, lane, kind, lane->n_done % ALL);
        }
    }
    for (int i = 0; i < pp; i++) {
        struct lane *lane = &b->lanes[i];
        stage_reset(lane->stage);
        lane->n_begun = 0;
        qsort(lane->us, TIMED, sizeof *lane->us, by_size);
        kind->us[i] = lane->us[TIMED / 2];
    }
    return OK;
}

enum status stage_times_take(struct stage_times *times, const struct engine_options *o,
                             const struct plan *plan, struct error *e)
{
    static struct bench b;
    b = (struct bench){.options = o, .plan = plan};
    try(model_config_load(&b.config, o->model, e));
    try(checkpoint_open(&b.checkpoint, o->model, e));
    enum status status = OK;
    for (int i = 0; i < plan->pp && status == OK; i++) status = open_lane(&b, i, e);
    for (int i = 0; i < plan->pp && status == OK; i++) status = wait_loaded(&b.lanes[i], e);
    for (int i = 0; i < times->n && status == OK; i++) status = time_kind(&b, &times->at[i], e);
    for (int i = 0; i < plan->pp; i++) close_lane(&b.lanes[i]);
    checkpoint_close(&b.checkpoint);
    return status;
}
