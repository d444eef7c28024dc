#include "tests/sim/sim_stage.h"

#include "common/carve.h"

#include <string.h>

struct slot {
    bool open;
    int n_blocks, n_rows;
    int32_t *blocks; // (max_blocks)
};

struct stage {
    struct stage *next; // of all
    struct sim_proc *owner;
    struct stage_options options;
    enum stage_state state;
    int fd;
    struct stage_step *steps; // (n_steps)
    uint64_t submitted, done, released;
    int64_t busy_ns;          // until then
    int64_t *ends_ns;         // (n_steps) of each step
    bool fails;
    enum status status;
    struct slot *slots;       // (slots)
    int32_t *owners;          // (n_blocks) slot + 1; 0: free
    uint64_t *kv;             // (layers, n_blocks, KV_BLOCK_ROWS)
};

static struct {
    struct sim_devices devices;
    struct stage *stages;
    struct sim_stage_counts counts;
} room;

void sim_stage_begin(const struct sim_devices *devices)
{
    room.devices = *devices;
    room.stages = NULL;
    room.counts = (struct sim_stage_counts){0};
}

const struct sim_stage_counts *sim_stage_counts(void) { return &room.counts; }

// --- the model

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t z = a * 0x9e3779b97f4a7c15u + b + 0x632be59bd9b4e019u;
    z = (z ^ (z >> 32)) * 0xd6e8feb86659fd93u;
    return z ^ (z >> 29);
}

static uint64_t embed(int32_t id, int pos) { return mix((uint64_t) id + 1, (uint64_t) pos); }

static int32_t choose(const struct model_config *c, uint64_t x)
{
    return (int32_t) (x % (uint64_t) c->vocab_size);
}

int32_t sim_stage_next(const struct model_config *c, uint64_t *state, int32_t id, int pos)
{
    uint64_t x = embed(id, pos);
    for (int l = 0; l < c->n_layers; l++) x = state[l] = mix(state[l], x);
    return choose(c, x);
}

static uint64_t *row_at(const struct stage *s, int layer, const struct slot *slot, int pos)
{
    size_t block = (size_t) slot->blocks[pos / KV_BLOCK_ROWS];
    size_t blocks = (size_t) s->options.limits.n_blocks;
    return s->kv + ((size_t) layer * blocks + block) * KV_BLOCK_ROWS + pos % KV_BLOCK_ROWS;
}

static int words(const struct stage_options *o)
{
    return room.devices.light ? 1 : o->last - o->first;
}

static uint64_t pass(const struct stage *s, const struct slot *slot, int pos, uint64_t x)
{
    for (int l = 0; l < words(&s->options); l++) {
        uint64_t before = pos > 0 ? *row_at(s, l, slot, pos - 1) : 0;
        x = *row_at(s, l, slot, pos) = mix(before, x);
    }
    return x;
}

// --- sequences

static void close_slot(struct stage *s, int i)
{
    struct slot *slot = &s->slots[i];
    for (int b = 0; b < slot->n_blocks && slot->open; b++) s->owners[slot->blocks[b]] = 0;
    slot->open = false;
}

static void open_slot(struct stage *s, const struct step *step, const struct step_open *o)
{
    struct slot *slot = &s->slots[o->slot];
    if (slot->open) sim_fail("slot %d is opened again", o->slot);
    slot->open = true;
    slot->n_rows = 0;
    slot->n_blocks = o->n_blocks;
    for (int b = 0; b < o->n_blocks; b++) {
        int32_t block = step->blocks[o->first_block + b];
        if (block < 0 || block >= s->options.limits.n_blocks) {
            sim_fail("block %d of %d", block, s->options.limits.n_blocks);
        }
        if (s->owners[block] != 0) {
            sim_fail("block %d of slot %d is given to slot %d", block, s->owners[block] - 1,
                     o->slot);
        }
        s->owners[block] = o->slot + 1;
        slot->blocks[b] = block;
    }
}

static void run_rows(struct stage *s, struct stage_step *place)
{
    const struct step *step = &place->step;
    const struct stage_options *o = &s->options;
    size_t row_bytes = stage_row_bytes(o->config, o->precision);
    int row = 0, out = 0;
    for (int r = 0; r < step->n_runs; r++) {
        const struct step_run *run = &step->runs[r];
        struct slot *slot = &s->slots[run->slot];
        if (!slot->open || run->pos != slot->n_rows ||
            run->pos + run->n > slot->n_blocks * KV_BLOCK_ROWS) {
            sim_fail("rows %d to %d of slot %d, which has %d rows and %d blocks", run->pos,
                     run->pos + run->n, run->slot, slot->n_rows, slot->n_blocks);
        }
        for (int i = 0; i < run->n; i++, row++) {
            uint64_t x = embed(step->ids[row], run->pos + i);
            if (!o->head) memcpy(&x, (const char *) place->in + (size_t) row * row_bytes, sizeof x);
            x = pass(s, slot, run->pos + i, x);
            if (!o->tail) memcpy((char *) place->out + (size_t) row * row_bytes, &x, sizeof x);
            bool chosen = out < step->n_out && step->out_rows[out] == row;
            if (chosen && o->tail) {
                place->tokens[out] = (struct step_token){
                    .slot = run->slot, .pos = run->pos + i, .id = choose(o->config, x)};
            }
            out += chosen;
        }
        slot->n_rows += run->n;
    }
}

// --- time

static void count_busy(const struct stage_options *o, int64_t ns)
{
    struct sim_stage_counts *c = &room.counts;
    int i = 0;
    while (i < c->n_firsts && c->firsts[i] != o->first) i++;
    if (i == PP_MAX) return;
    if (i == c->n_firsts) c->firsts[c->n_firsts++] = o->first;
    c->busy_ns[i] += ns;
    c->n_steps += o->head;
}

static void on_step_done(void *arg)
{
    struct stage *s = arg;
    if (s->fails) s->status = ERR_IO;
    else s->done++;
    sim_fd_write(s->fd, 1);
}

// When the ranks stop, or go on with the next step.
static int64_t step_ends(const struct stage *s)
{
    if (s->done == s->submitted) return 0;
    return s->ends_ns[s->done % (uint64_t) s->options.n_steps];
}

// Half of what the leader does for a step, as it wakes twice for it. While the ranks compute it may
// have to wait for a core.
static void spend_half(const struct stage *s, const struct step *step)
{
    if (room.devices.leader_ns == NULL) return;
    int64_t wait_ns, ns = room.devices.leader_ns(&s->options, step, &wait_ns) / 2;
    int64_t until_ns = sim_now() + wait_ns / 2;
    if (step_ends(s) < until_ns) until_ns = step_ends(s);
    while (!sim_spent() && sim_now() < until_ns) sim_sleep(until_ns);
    sim_spend(ns);
}

void stage_submit(struct stage *s)
{
    struct stage_step *place = &s->steps[s->submitted++ % (uint64_t) s->options.n_steps];
    const struct step *step = &place->step;
    spend_half(s, step);
    for (int i = 0; i < step->n_closes; i++) close_slot(s, step->closes[i]);
    for (int i = 0; i < step->n_opens; i++) open_slot(s, step, &step->opens[i]);
    run_rows(s, place);
    int64_t takes = room.devices.step_ns(&s->options, step);
    int64_t begins = s->busy_ns;
    if (begins <= sim_now()) {
        begins = sim_now();
        if (room.devices.late_ns != NULL) begins += room.devices.late_ns(&s->options);
    }
    count_busy(&s->options, takes);
    s->busy_ns = begins + takes;
    s->ends_ns[(s->submitted - 1) % (uint64_t) s->options.n_steps] = s->busy_ns;
    sim_at(s->busy_ns, on_step_done, s);
}

static void on_loaded(void *arg)
{
    struct stage *s = arg;
    if (s->state == STAGE_LOADING) s->state = STAGE_READY;
    sim_fd_write(s->fd, 1);
}

void sim_stage_hang(const struct sim_proc *p, int64_t for_ns)
{
    for (struct stage *s = room.stages; s != NULL; s = s->next) {
        if (s->owner == p) s->busy_ns = sim_now() + for_ns;
    }
}

void sim_stage_fail(const struct sim_proc *p)
{
    for (struct stage *s = room.stages; s != NULL; s = s->next) {
        if (s->owner == p) s->fails = true;
    }
}

// --- workers/stage.h

size_t stage_row_bytes(const struct model_config *c, enum precision p)
{
    return room.devices.light ? SIM_WORD_BYTES
                              : (size_t) c->hidden_size * (p == PRECISION_F32 ? 4 : 2);
}

static void create_steps(struct stage *s)
{
    const struct stage_options *o = &s->options;
    s->steps = sim_alloc((size_t) o->n_steps * sizeof *s->steps);
    s->ends_ns = sim_alloc((size_t) o->n_steps * sizeof *s->ends_ns);
    for (int i = 0; i < o->n_steps; i++) {
        struct stage_step *step = &s->steps[i];
        step->index = i;
        step_init(&step->step, &o->limits, sim_alloc(step_bytes(&o->limits)));
        if (o->tail) {
            step->tokens = sim_alloc((size_t) o->limits.max_out * sizeof *step->tokens);
        } else {
            step->out = sim_alloc((size_t) o->limits.max_rows *
                                  stage_row_bytes(o->config, o->precision));
        }
    }
}

// It brings its own.
uint64_t stage_memory_bytes(const struct stage_options *o)
{
    (void) o;
    return 0;
}

// It has no ranks.
uint64_t stage_comm_bytes(const struct stage_options *o)
{
    (void) o;
    return 0;
}

// It reads no checkpoint.
uint64_t stage_staging_bytes(const struct stage_options *o)
{
    (void) o;
    return 0;
}

int64_t stage_load_ns(const struct stage *s)
{
    (void) s;
    return 0;
}

struct stage_step *stage_place(struct stage *s, int i) { return &s->steps[i]; }

enum status stage_create(struct stage **stage, const struct stage_options *options, struct error *e)
{
    struct stage *s = *stage = sim_alloc(sizeof *s);
    const struct step_limits *l = &options->limits;
    (void) e;
    *s = (struct stage){.next = room.stages, .owner = sim_self(), .options = *options};
    room.stages = s;
    s->fd = sim_fd(sim_self());
    s->slots = sim_alloc((size_t) l->slots * sizeof *s->slots);
    for (int i = 0; i < l->slots; i++) {
        s->slots[i].blocks = sim_alloc((size_t) l->max_blocks * sizeof *s->slots[i].blocks);
    }
    s->owners = sim_alloc((size_t) l->n_blocks * sizeof *s->owners);
    s->kv = sim_alloc((size_t) words(options) * (size_t) l->n_blocks * KV_BLOCK_ROWS *
                      sizeof *s->kv);
    create_steps(s);
    sim_at(sim_now() + room.devices.load_ns(options), on_loaded, s);
    return OK;
}

enum stage_state stage_state(struct stage *s, struct error *e)
{
    (void) e;
    return s->state;
}

int stage_fd(const struct stage *s) { return s->fd; }

void stage_progress(const struct stage *s, uint64_t *loaded, uint64_t *total)
{
    *total = 1;
    *loaded = s->state == STAGE_READY;
}

// No clock runs in it: the heads count.
void stage_figures(struct stage *s, struct stage_figures *to)
{
    (void) s;
    *to = (struct stage_figures){0};
}

struct ledger stage_rank_ledger(const struct stage *s, int rank)
{
    (void) s, (void) rank;
    return (struct ledger){0};
}

struct ledger stage_ledger(const struct stage *s)
{
    (void) s;
    return (struct ledger){0};
}

struct ledger stage_host_ledger(const struct stage *s)
{
    (void) s;
    return (struct ledger){0};
}

struct stage_step *stage_next(struct stage *s)
{
    if (s->submitted - s->released == (uint64_t) s->options.n_steps) return NULL;
    return &s->steps[s->submitted % (uint64_t) s->options.n_steps];
}

struct stage_step *stage_done(struct stage *s, enum status *status, struct error *e)
{
    *status = s->status;
    if (s->status != OK) {
        error_set(e, s->status, "device_failed", "the device failed");
        return NULL;
    }
    if (s->released == s->done) return NULL;
    struct stage_step *place = &s->steps[s->released % (uint64_t) s->options.n_steps];
    spend_half(s, &place->step);
    return place;
}

void stage_release(struct stage *s) { s->released++; }

bool stage_idle(struct stage *s) { return s->status != OK || s->done == s->submitted; }

void stage_reset(struct stage *s)
{
    while (!stage_idle(s)) sim_sleep(s->busy_ns);
    s->released = s->submitted;
    for (int i = 0; i < s->options.limits.slots; i++) close_slot(s, i);
}

void stage_destroy(struct stage **stage)
{
    struct stage *s = *stage;
    struct stage **at = &room.stages;
    if (s == NULL) return;
    *stage = NULL;
    while (*at != s) at = &(*at)->next;
    *at = s->next;
    s->owner = NULL;
}
