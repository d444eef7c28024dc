#include "common/plan.h"

#include "common/layout.h"
#include "common/plan_split.h"

#include <stdio.h>
#include <string.h>
#define XXH_STATIC_LINKING_ONLY // the state on the stack
#include <xxhash.h>

enum {
    CONTEXT_DEFAULT = 4096,
    SLOTS_DEFAULT = 32,
    ROWS_DEFAULT = 512,
    SHRINKS = 5, // times that the default slots and token budget may be halved: to 1 and 16
};

// An exbibyte: with it, the largest model of limits.h stays below the 2^62 bytes that plan_split
// can compare.
#define RESERVE_MAX (1ull << 60)

// --- the request

static enum status bad(struct error *e, const char *what, int value, int least, int most)
{
    return error_set(e, ERR_INPUT, "bad_plan", "%s %d is not from %d to %d", what, value, least,
                     most);
}

static enum status check_layers(const struct plan_request *r, struct error *e)
{
    int sum = 0, n = r->config->n_layers;
    if (r->layers[0] == 0) return OK;
    for (int i = 0; i < r->pp; i++) {
        if (r->layers[i] < 1 || r->layers[i] > n) {
            return bad(e, "a stage's layers", r->layers[i], 1, n);
        }
        sum += r->layers[i];
    }
    if (sum == n) return OK;
    return error_set(e, ERR_INPUT, "bad_plan", "the stages have %d layers, the model has %d", sum,
                     n);
}

static enum status check_request(const struct plan_request *r, struct error *e)
{
    const struct model_config *m = r->config;
    int stages = m->n_layers < PP_MAX ? m->n_layers : PP_MAX;
    const struct {
        const char *what;
        int value, most; // 0 is allowed: chosen here
    } numbers[] = {
        {"slots", r->slots, SLOTS_MAX},
        {"max_context", r->max_context, m->max_position_embeddings},
        {"max_rows", r->max_rows, STEP_ROWS_MAX},
        {"chunk", r->chunk, STEP_ROWS_MAX},
        {"max_out", r->max_out, STEP_ROWS_MAX},
        {"steps_in_flight", r->steps_in_flight, STEPS_IN_FLIGHT_MAX},
        {"kv_blocks", r->kv_blocks, SLOTS_MAX * (CONTEXT_MAX / KV_BLOCK_ROWS)},
    };
    if (r->pp < 1 || r->pp > stages) {
        return error_set(e, ERR_INPUT, "bad_plan",
                         "pp %d is not from 1 to %d: the model has %d layers", r->pp, stages,
                         m->n_layers);
    }
    try(layout_check_tp(m, r->tp, e));
    try(check_layers(r, e));
    if (r->for_time && r->rates[0] == NULL) {
        return error_set(e, ERR_INPUT, "bad_plan", "a plan for time needs the devices' rates");
    }
    if (r->mtp && m->n_mtp_layers == 0) {
        return error_set(e, ERR_INPUT, "bad_plan",
                         "the model has no layers of multi-token prediction "
                         "(num_nextn_predict_layers)");
    }
    if (r->reserve > RESERVE_MAX) {
        return error_set(e, ERR_INPUT, "bad_plan", "a reserve of %llu bytes: no device has so many",
                         (unsigned long long) r->reserve);
    }
    check(r->context <= RESERVE_MAX);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (numbers[i].value < 0 || numbers[i].value > numbers[i].most) {
            return bad(e, numbers[i].what, numbers[i].value, 1, numbers[i].most);
        }
    }
    return OK;
}

// --- limits

static int least_of(int a, int b) { return a < b ? a : b; }

static int or_default(int given, int otherwise) { return given > 0 ? given : otherwise; }

static void set_context(struct plan *p, int tokens)
{
    p->max_context = tokens;
    p->max_blocks = (tokens + KV_BLOCK_ROWS - 1) / KV_BLOCK_ROWS;
}

// The limits as asked for, and where they were not the defaults, halved `shrink` times.
static void set_limits(struct plan *p, const struct plan_request *r, int shrink)
{
    int slots = SLOTS_DEFAULT >> shrink, rows = ROWS_DEFAULT >> shrink;
    *p = (struct plan){.pp = r->pp, .tp = r->tp, .slots = or_default(r->slots, slots),
                       .max_rows = or_default(r->max_rows, rows)};
    if (r->kv_blocks > 0) p->slots = or_default(r->slots, least_of(slots, r->kv_blocks));
    p->chunk = least_of(or_default(r->chunk, p->max_rows), p->max_rows);
    p->max_out = or_default(r->max_out, r->score ? p->max_rows : p->slots);
    // One more than there are stages keeps them all busy; a single stage is better off with one
    // large batch than with two halves.
    int steps = r->pp == 1 ? 1 : least_of(r->pp + 1, STEPS_IN_FLIGHT_MAX);
    p->steps_in_flight = or_default(r->steps_in_flight, steps);
    set_context(p, or_default(r->max_context,
                              least_of(r->config->max_position_embeddings, CONTEXT_DEFAULT)));
    if (r->max_context == 0 && r->kv_blocks > 0) {
        int64_t pool = (int64_t) r->kv_blocks * KV_BLOCK_ROWS;
        if (pool < p->max_context) set_context(p, (int) pool);
    }
}

static int64_t useful_blocks(const struct plan *p, int slots)
{
    return (int64_t) slots * p->max_blocks;
}

static struct plan_limits limits_of(const struct plan *p, const struct plan_request *r)
{
    return (struct plan_limits){.slots = p->slots,
                                .max_blocks = p->max_blocks,
                                .max_rows = p->max_rows,
                                .max_out = p->max_out,
                                .f32 = r->f32,
                                .fp8_kv = r->fp8_kv,
                                .reserve = r->reserve,
                                .context = r->context};
}

static struct plan_split split_of(const struct plan_request *r, const struct plan_cost *cost)
{
    return (struct plan_split){.cost = cost,
                               .pp = r->pp,
                               .n_layers = r->config->n_layers,
                               .device_bytes = r->device_bytes};
}

// Every slot decodes a token, halfway through the longest sequence.
static struct plan_times times_of(const struct plan *p, const struct plan_request *r)
{
    struct plan_times t = {.rates = r->rates};
    struct cost_form form = {.tp = r->tp, .kv_ranks = 1, .f32 = r->f32,
                             .fp8_gemm = r->device == DEVICE_CUDA && !r->f32,
                             .fp8_kv = r->fp8_kv};
    cost_model_init(&t.model, r->config, &form);
    for (int i = 0; i < p->slots; i++) cost_step_add(&t.step, p->max_context / 2, 1, 1);
    return t;
}

// Blocks without which it does not fit.
static int64_t need_of(const struct plan *p, const struct plan_request *r)
{
    return r->kv_blocks > 0 ? r->kv_blocks : p->max_blocks;
}

// Both are pinned, and a sequence may be longer than the whole pool.
static bool pool_too_small(const struct plan *p, const struct plan_request *r)
{
    return r->kv_blocks > 0 && r->kv_blocks < p->max_blocks;
}

// Whether so many blocks fit under the plan's limits, however it is cut.
static bool has_room(const struct plan *p, const struct plan_request *r, struct plan_cost *cost,
                     int64_t blocks)
{
    struct plan_limits limits = limits_of(p, r);
    struct plan_split split = split_of(r, cost);
    plan_cost_limits(cost, &limits);
    if (r->layers[0] > 0) return plan_split_blocks(&split, r->layers, blocks) >= blocks;
    return plan_split_fits(&split, blocks);
}

// Cuts the model under the plan's limits; how many KV blocks there is room for, up to what `slots`
// sequences can use.
static int64_t cut_for(struct plan *p, const struct plan_request *r, struct plan_cost *cost,
                       int slots)
{
    struct plan_limits limits = limits_of(p, r);
    struct plan_split split = split_of(r, cost);
    struct plan_times times;
    int64_t most = r->kv_blocks > 0 ? r->kv_blocks : useful_blocks(p, slots);
    int64_t need = need_of(p, r), blocks;
    if (r->for_time) {
        times = times_of(p, r);
        split.times = &times;
    }
    plan_cost_limits(cost, &limits);
    if (r->layers[0] > 0) {
        memcpy(p->layers, r->layers, sizeof p->layers);
        blocks = plan_split_blocks(&split, p->layers, most);
    } else {
        blocks = plan_split_choose(&split, need < most ? need : most, most, p->layers);
    }
    for (int i = 1; i < p->pp; i++) p->first[i] = p->first[i - 1] + p->layers[i - 1];
    return blocks;
}

static int64_t cut(struct plan *p, const struct plan_request *r, struct plan_cost *cost)
{
    return cut_for(p, r, cost, p->slots);
}

static void set_slots(struct plan *p, const struct plan_request *r, int slots)
{
    p->slots = slots;
    if (r->max_out == 0 && !r->score) p->max_out = slots;
}

// A GPU's memory is for nothing else: more slots, until the pool has all of it or a step is full.
// The slots' own memory may leave too little for the pool: then all stays as it was.
static void grow(struct plan *p, const struct plan_request *r, struct plan_cost *cost,
                 int64_t *blocks)
{
    struct plan before = *p;
    int64_t room = cut_for(p, r, cost, least_of(p->max_rows, SLOTS_MAX));
    int64_t slots = (room + p->max_blocks - 1) / p->max_blocks;
    if (slots > p->slots) set_slots(p, r, (int) slots);
    int64_t grown = cut(p, r, cost);
    if (grown >= need_of(p, r)) *blocks = grown;
    else *p = before;
}

// A pool of a pinned size is there to be used: as many slots as it is enough for, if there is room
// for them beside it, up to the rows of a step.
static int64_t grow_into_pool(struct plan *p, const struct plan_request *r, struct plan_cost *cost)
{
    int64_t want = (r->kv_blocks + (int64_t) p->max_blocks - 1) / p->max_blocks;
    int low = p->slots, high = want < p->max_rows ? (int) want : p->max_rows;
    if (high > SLOTS_MAX) high = SLOTS_MAX;
    while (low < high) {
        int middle = low + (high - low + 1) / 2;
        set_slots(p, r, middle);
        if (has_room(p, r, cost, r->kv_blocks)) low = middle;
        else high = middle - 1;
    }
    set_slots(p, r, low);
    return cut(p, r, cost);
}

// --- the outcome

static void set_ledgers(struct plan *p, const struct plan_request *r, struct plan_cost *cost)
{
    struct plan_limits limits = limits_of(p, r);
    struct plan_split split = split_of(r, cost);
    struct plan_times times;
    plan_cost_limits(cost, &limits);
    if (r->rates[0] != NULL) {
        times = times_of(p, r);
        split.times = &times;
    }
    for (int i = 0; i < p->pp; i++) {
        struct plan_stage stage = plan_split_stage(&split, i, p->first[i], p->layers[i]);
        p->stages[i] = plan_cost_ledger(cost, &stage, p->kv_blocks);
        p->weight_bytes[i] = plan_cost_weights(cost, &stage);
        p->kv_block_bytes[i] = plan_cost_block(cost, &stage);
        p->kv_room[i] = plan_split_room(&split, i, p->first[i], p->layers[i]);
        if (split.times == NULL) continue;
        p->step_s[i] = 1e-12 * (double) plan_split_time(&split, i, p->first[i], p->layers[i]);
    }
}

static void print_bytes(char *text, size_t n, uint64_t bytes)
{
    bool large = bytes >= (uint64_t) GIB;
    if (bytes < (uint64_t) MIB) {
        snprintf(text, n, "%llu bytes", (unsigned long long) bytes);
        return;
    }
    snprintf(text, n, "%.2f %s", (double) bytes / (double) (large ? GIB : MIB),
             large ? "GiB" : "MiB");
}

static void say_pool_too_small(struct plan *p, const struct plan_request *r)
{
    snprintf(p->reason, sizeof p->reason,
             "a pool of %d KV blocks holds %lld tokens, a sequence has up to %d: kv_blocks has to "
             "be at least %d, or max_context at most %lld",
             r->kv_blocks, (long long) r->kv_blocks * KV_BLOCK_ROWS, p->max_context, p->max_blocks,
             (long long) r->kv_blocks * KV_BLOCK_ROWS);
}

// What had to be lowered, and what is of no use.
static void say_notes(struct plan *p, bool lowered)
{
    size_t n = 0;
    if (lowered) {
        n = (size_t) snprintf(p->reason, sizeof p->reason,
                              "memory is short: %d slots, steps of %d rows and sequences of %d "
                              "tokens are what fits",
                              p->slots, p->max_rows, p->max_context);
    }
    if (n >= sizeof p->reason || useful_blocks(p, p->slots) >= p->kv_blocks) return;
    snprintf(p->reason + n, sizeof p->reason - n,
             "%s%d slots of at most %d KV blocks can use %lld of the %d", n > 0 ? "; " : "",
             p->slots, p->max_blocks, (long long) useful_blocks(p, p->slots), p->kv_blocks);
}

// Names the stage that lacks most, and the line of its ledger that passes the device's memory.
static void say_why(struct plan *p, const struct plan_request *r)
{
    uint64_t most = 0;
    int worst = 0;
    for (int i = 0; i < p->pp; i++) {
        uint64_t total = ledger_total(&p->stages[i]), has = r->device_bytes[i];
        if (total > has && total - has > most) {
            most = total - has;
            worst = i;
        }
    }
    const struct ledger *l = &p->stages[worst];
    enum ledger_line line = ledger_line_beyond(l, r->device_bytes[worst]);
    char lacks[32], needs[32], has[32], takes[32];
    print_bytes(lacks, sizeof lacks, most);
    print_bytes(needs, sizeof needs, ledger_total(l));
    print_bytes(has, sizeof has, r->device_bytes[worst]);
    print_bytes(takes, sizeof takes, l->bytes[line]);
    snprintf(p->reason, sizeof p->reason,
             "stage %d (layers %d to %d) needs %s on each of its %d devices for %d KV blocks; a "
             "device has %s: %s are lacking, from the line %s on, which is %s",
             worst, p->first[worst], p->first[worst] + p->layers[worst] - 1, needs, p->tp,
             p->kv_blocks, has, lacks, ledger_name(line), takes);
}

// --- making it

static enum status count_weights(struct plan_cost *cost, const struct plan_request *r,
                                 struct layout_types *implied, struct error *e)
{
    struct plan_source source = {r->config, r->types, r->device, r->tp, r->mtp};
    if (r->types == NULL) {
        layout_types_imply(implied, r->config);
        source.types = implied;
    }
    return plan_cost_init(cost, &source, e);
}

enum status plan_make(struct plan *p, const struct plan_request *r, struct error *e)
{
    struct plan_cost cost;
    struct layout_types implied;
    int64_t blocks = 0;
    *p = (struct plan){0};
    try(check_request(r, e));
    try(count_weights(&cost, r, &implied, e));
    bool fixed = r->slots > 0 && r->max_rows > 0;
    int shrink = 0;
    for (;; shrink++) {
        set_limits(p, r, shrink);
        blocks = cut(p, r, &cost);
        p->fits = blocks >= need_of(p, r);
        if (p->fits || fixed || shrink == SHRINKS) break;
    }
    bool open = shrink == 0 && r->slots == 0 && r->kv_blocks == 0;
    if (p->fits && open && r->device == DEVICE_CUDA) {
        grow(p, r, &cost, &blocks);
    } else if (p->fits && r->slots == 0 && r->kv_blocks > 0) {
        blocks = grow_into_pool(p, r, &cost);
    }
    bool lower = !p->fits && r->max_context == 0 && r->kv_blocks == 0 && blocks > 0;
    if (lower) {
        set_context(p, (int) blocks * KV_BLOCK_ROWS);
        blocks = cut(p, r, &cost);
        p->fits = blocks >= need_of(p, r);
    }
    p->kv_blocks = (int) (p->fits ? blocks : need_of(p, r));
    // A sequence needs a block: further slots would never be taken.
    if (r->slots == 0 && p->slots > p->kv_blocks) set_slots(p, r, p->kv_blocks);
    set_ledgers(p, r, &cost);
    if (pool_too_small(p, r)) {
        p->fits = false;
        say_pool_too_small(p, r);
    } else if (!p->fits) {
        say_why(p, r);
    } else {
        say_notes(p, shrink > 0 || lower);
    }
    return OK;
}

bool plan_would_fit(const struct plan_request *r, struct plan_cost *cost)
{
    struct plan p;
    set_limits(&p, r, SHRINKS);
    // A sequence may be cut to a block if nobody said how long it must be.
    bool open = r->max_context == 0 && r->kv_blocks == 0;
    return !pool_too_small(&p, r) && has_room(&p, r, cost, open ? 1 : need_of(&p, r));
}

struct ledger plan_rank_ledger(const struct plan *p, const struct plan_request *r, int stage,
                               int rank)
{
    struct plan_cost cost;
    struct layout_types implied;
    struct plan_limits limits = limits_of(p, r);
    struct plan_split split = split_of(r, &cost);
    struct plan_stage s = plan_split_stage(&split, stage, p->first[stage], p->layers[stage]);
    check(count_weights(&cost, r, &implied, NULL) == OK, "the plan was made from it");
    plan_cost_limits(&cost, &limits);
    return plan_cost_rank(&cost, &s, rank, p->kv_blocks);
}

// --- what others see

int64_t plan_kv_room(const struct plan *p)
{
    int64_t least = p->kv_room[0];
    for (int i = 1; i < p->pp; i++) least = p->kv_room[i] < least ? p->kv_room[i] : least;
    return least;
}

void plan_print_layers(const struct plan *p, char *text, size_t n)
{
    size_t at = 0;
    text[0] = '\0';
    for (int i = 0; i < p->pp && at < n; i++) {
        at += (size_t) snprintf(text + at, n - at, i > 0 ? ",%d" : "%d", p->layers[i]);
    }
}

// --- the hash

static void hash_number(XXH3_state_t *hash, int64_t n) { XXH3_128bits_update(hash, &n, sizeof n); }

void plan_hash(const struct plan *p, const char *model_hash, bool f32, bool fp8_kv,
               char hash[PLAN_HASH_SIZE])
{
    const int64_t numbers[] = {p->pp, p->tp, p->kv_blocks, p->slots, p->max_context, p->max_rows,
                               p->chunk, p->max_out, p->steps_in_flight,
                               f32 + 2 * fp8_kv};
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    XXH3_128bits_reset(&state);
    hash_number(&state, (int64_t) strlen(model_hash));
    XXH3_128bits_update(&state, model_hash, strlen(model_hash));
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) hash_number(&state, numbers[i]);
    for (int i = 0; i < p->pp; i++) hash_number(&state, p->layers[i]);
    XXH128_hash_t h = XXH3_128bits_digest(&state);
    snprintf(hash, PLAN_HASH_SIZE, "%016llx%016llx", (unsigned long long) h.high64,
             (unsigned long long) h.low64);
}
