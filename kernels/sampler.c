#include "kernels/sampler.h"

#include "kernels/sampler_device.h"
#include "kernels/sampler_penalty.h"
#include "kernels/sampler_row.h"

enum {
    // Rows that share their collectives.
    BATCH_MAX = SAMPLER_DEVICE_BATCH > SAMPLER_BATCH_MAX ? SAMPLER_DEVICE_BATCH : SAMPLER_BATCH_MAX,
    NARROW_WORDS = SAMPLER_NARROW_WORDS,
};

_Static_assert(sizeof(struct histogram) == NARROW_WORDS * sizeof(uint64_t),
               "histograms travel as words");
_Static_assert(CANDIDATES_MAX >= LOGPROBS_MAX, "candidates serve as alternatives");

struct sequence {
    bool open;
    int n_prompt;
    int n_marked; // of its ids, from the first on, as if there were no others
    struct rule rule;
};

struct sampler {
    struct sampler_shape shape;
    struct comm *comm;
    const struct scan *scan;
    int rank;
    int n_counts_used; // of the counts' memory, for another purpose
    struct sampler_counts counts;
    struct sequence *sequences; // (slots)
    struct row *rows;           // (batch)
    struct sampler_parts parts;
    struct sampler_device device;
    bool by_device; // this batch's logits lie there
};

_Static_assert(sizeof(struct sampler) <= SAMPLER_STATE_BYTES, "the plan has room for it");
_Static_assert(sizeof(struct sequence) <= SAMPLER_SEQUENCE_BYTES, "the plan has room for it");
_Static_assert(sizeof(struct row) <= SAMPLER_ROW_BYTES, "the plan has room for it");

struct sampler *sampler_init(void *memory, const struct sampler_shape *shape,
                             const struct backend *backend, struct device *device,
                             void *on_device, struct comm *comm)
{
    check(shape->tp >= 1 && shape->tp <= TP_MAX && (comm != NULL || shape->tp == 1));
    check(shape->vocab_n >= 0 && shape->vocab_size > 0);
    struct carve carve = {.base = memory, .size = sampler_bytes(shape)};
    struct sampler_parts p;
    sampler_carve(&p, shape, &carve);
    struct sampler *s = p.state;
    *s = (struct sampler){.shape = *shape,
                          .comm = comm,
                          .scan = scan_best(),
                          .rank = shape->tp > 1 ? comm->rank : 0,
                          .sequences = p.sequences,
                          .rows = p.rows,
                          .parts = p,
                          .device = {.backend = backend,
                                     .device = device,
                                     .alone = shape->tp == 1,
                                     .rank = shape->tp > 1 ? comm->rank : 0,
                                     .vocab_begin = shape->vocab_begin,
                                     .vocab_n = shape->vocab_n}};
    if (shape->on_device) {
        check(on_device != NULL && backend->sampler != NULL);
        struct carve there = {.base = on_device, .size = sampler_device_bytes(shape)};
        sampler_device_carve(&s->device.parts, shape, &there);
    }
    memset(s->sequences, 0, (size_t) shape->slots * sizeof *s->sequences);
    memset(p.seen, 0, ((size_t) shape->vocab_n + 63) / 64 * sizeof *p.seen);
    memset(p.counts, 0, (size_t) shape->vocab_n * sizeof *p.counts);
    return s;
}

static struct sequence *sequence_at(struct sampler *s, int slot)
{
    check(slot >= 0 && slot < s->shape.slots);
    return &s->sequences[slot];
}

void sampler_open(struct sampler *s, int slot, const struct sampling *sampling, int n_prompt)
{
    *sequence_at(s, slot) = (struct sequence){.open = true,
                                              .n_prompt = n_prompt,
                                              .rule = rule_of(sampling, s->shape.vocab_size)};
}

static int32_t *history_of(const struct sampler *s, int slot)
{
    return s->parts.history + (size_t) slot * (size_t) s->shape.max_context;
}

static struct record_slice record_slice_of(const struct sampler *s)
{
    return (struct record_slice){s->shape.vocab_begin, s->shape.vocab_n, s->parts.seen};
}

static void mark(struct sampler *s, int slot, int n)
{
    struct record_slice slice = record_slice_of(s);
    record_mark(history_of(s, slot), n, &slice);
    s->sequences[slot].n_marked = n;
}

void sampler_history(struct sampler *s, int slot, int pos, const int32_t *ids, int n)
{
    check(sequence_at(s, slot)->open && pos >= 0 && n >= 0 && n <= s->shape.max_context - pos);
    struct sequence *q = sequence_at(s, slot);
    int32_t *all = history_of(s, slot);
    if (!q->rule.penalties) return;
    if (n == 1 && pos == q->n_marked) {
        record_append(all, pos, *ids);
        q->n_marked = pos + n;
        return;
    }
    memcpy(all + pos, ids, (size_t) n * sizeof *all);
    if (pos <= q->n_marked) mark(s, slot, pos + n);
}

void sampler_close(struct sampler *s, int slot) { sequence_at(s, slot)->open = false; }

struct sampler_counts sampler_counts(const struct sampler *s) { return s->counts; }

// --- one row on this rank

static struct sampler_patch *patches_of(const struct sampler *s, int i)
{
    return s->parts.patches + (size_t) i * (size_t) s->parts.n_patches;
}

static union sampler_chunk *chunks_of(const struct sampler *s, int i)
{
    return s->parts.chunks + (size_t) i * (size_t) s->parts.n_chunks;
}

static struct slice slice_of(const struct sampler *s, int i, struct softmax softmax)
{
    return (struct slice){.scan = s->scan,
                          .l = s->rows[i].logits,
                          .n = s->shape.vocab_n,
                          .softmax = softmax,
                          .chunks = chunks_of(s, i),
                          .bounded = !s->rows[i].summed,
                          .least = s->rows[i].least};
}

static void begin_row(struct sampler *s, int i, float *logits, int slot, int pos)
{
    const struct sequence *q = sequence_at(s, slot);
    check(q->open && pos >= 0 && pos <= s->shape.max_context);
    s->rows[i] = (struct row){.rule = &q->rule,
                              .logits = logits,
                              .random = sampling_random(q->rule.sampling.seed, (uint64_t) pos),
                              .slot = slot,
                              .n_ids = pos,
                              .kept = KEPT_ALL,
                              .id = -1};
}

// Block maxima and the chunks' bounds of row i; false if there is a NaN.
static bool scan_row(struct sampler *s, int i)
{
    struct row *row = &s->rows[i];
    union sampler_chunk *chunks = chunks_of(s, i);
    if (!s->scan->maxima(row->logits, s->shape.vocab_n, s->parts.maxima, chunks)) return false;
    row->least = INFINITY;
    for (int c = 0; c < s->parts.n_chunks; c++) {
        row->least = chunks[c].bounds.least < row->least ? chunks[c].bounds.least : row->least;
    }
    return true;
}

static void penalise(struct sampler *s, int i)
{
    struct row *row = &s->rows[i];
    const struct sequence *q = &s->sequences[row->slot];
    struct record_slice slice = record_slice_of(s);
    if (q->n_marked != row->n_ids) mark(s, row->slot, row->n_ids);
    row->n_patches = penalty_apply(&q->rule.sampling, row->logits, &slice, history_of(s, row->slot),
                                   row->n_ids, q->n_prompt, s->parts.counts, patches_of(s, i));
}

static void restore(struct sampler *s, int i)
{
    penalty_undo(s->rows[i].logits, patches_of(s, i), s->rows[i].n_patches);
    s->rows[i].n_patches = 0;
}

// Mass of the raw logits of a row that may have penalties.
static uint64_t raw_mass(struct sampler *s, int i)
{
    struct row *row = &s->rows[i];
    struct slice slice = slice_of(s, i, row->raw_softmax);
    slice.chunks = NULL;
    slice.bounded = false;
    slice.least = -INFINITY;
    penalty_swap(row->logits, patches_of(s, i), row->n_patches);
    uint64_t mass = slice_mass(&slice, KEPT_ALL, NULL);
    penalty_swap(row->logits, patches_of(s, i), row->n_patches);
    return mass;
}

// What the raw logits have more mass than the penalised ones in the same softmax; modulo 2^64.
static uint64_t penalty_mass(const struct sampler *s, int i)
{
    const struct row *row = &s->rows[i];
    const struct sampler_patch *patches = patches_of(s, i);
    float before[SCAN_CHUNK], after[SCAN_CHUNK];
    uint64_t more = 0;
    for (int begin = 0; begin < row->n_patches; begin += SCAN_CHUNK) {
        int left = row->n_patches - begin, n = left < SCAN_CHUNK ? left : SCAN_CHUNK;
        for (int k = 0; k < n; k++) {
            before[k] = patches[begin + k].l;
            after[k] = row->logits[patches[begin + k].at];
        }
        more += s->scan->sum(before, n, row->softmax, BOUNDS_NONE, NULL) -
                s->scan->sum(after, n, row->softmax, BOUNDS_NONE, NULL);
    }
    return more;
}

// --- rounds. Each fills `send` for the rows it concerns, gathers, and lets every row decide.

// `words` of each rank to all.
static enum status gather(struct sampler *s, uint64_t *to, int words, struct error *e)
{
    if (words == 0) return OK;
    size_t bytes = (size_t) words * sizeof *to;
    if (s->shape.tp == 1) {
        memcpy(to, s->parts.send, bytes);
        return OK;
    }
    enum status status = s->comm->ops->all_gather(s->comm, s->parts.send, to, bytes);
    if (status != OK) return error_set(e, status, NULL, "the sampler's all_gather failed");
    return OK;
}

static uint64_t sum_words(const struct sampler *s, const uint64_t *at, int words)
{
    uint64_t sum = 0;
    for (int r = 0; r < s->shape.tp; r++) sum += at[r * words];
    return sum;
}

static void select_row(struct sampler *s, int i, int want, uint64_t *list)
{
    select_top(s->scan, s->rows[i].logits, s->shape.vocab_n, s->shape.vocab_begin, s->parts.maxima,
               want, s->parts.select, list);
}

static void fill_head(struct sampler *s, int i, uint64_t *words)
{
    const struct row *row = &s->rows[i];
    const struct rule *r = row->rule;
    uint64_t *list = words + 1, *raw_list = list + r->n_list;
    bool good = true;
    memset(words, 0xff, (size_t) row_head_words(row) * sizeof *words); // ENTRY_NONE
    if (r->n_raw_list > 0) {
        good = scan_row(s, i);
        if (good) select_row(s, i, r->n_raw_list, raw_list);
    }
    if (r->penalties) penalise(s, i); // keeps a NaN
    if (r->n_raw_list == 0 || r->penalties) good = good && scan_row(s, i);
    words[0] = good ? HEAD_GOOD : HEAD_NAN;
    if (good) select_row(s, i, r->n_list, list);
}

static enum status bad_logits(struct error *e, int row, const char *what)
{
    return error_set(e, ERR_STATE, "bad_logits", "row %d of the sampled rows has %s", row, what);
}

static enum status round_head(struct sampler *s, int n, int first_row, struct error *e)
{
    int words = 0, at = 0;
    for (int i = 0; i < n; i++) {
        if (!s->by_device) fill_head(s, i, s->parts.send + words);
        words += row_head_words(&s->rows[i]);
    }
    if (s->by_device) try(sampler_device_heads(&s->device, s->rows, n, s->parts.send, e));
    try(gather(s, s->parts.lists, words, e));
    for (int i = 0; i < n; i++) {
        struct row *row = &s->rows[i];
        const uint64_t *head = s->parts.lists + at;
        at += row_head_words(row);
        for (int r = 0; r < s->shape.tp; r++) {
            if (head[r * words] == HEAD_NAN) {
                return bad_logits(e, first_row + i, "a logit of NaN");
            }
            if (head[r * words] == HEAD_HOST) row->stage = ROW_HOSTED;
        }
        if (row->stage == ROW_HOSTED) continue;
        row->lists = (struct row_lists){.lists = head + 1,
                                        .raw_lists = head + 1 + row->rule->n_list,
                                        .stride = words,
                                        .n_ranks = s->shape.tp,
                                        .vocab_size = s->shape.vocab_size};
        if (!row_decide_lists(row, s->parts.kept)) {
            return bad_logits(e, first_row + i, "no token with a logit above -inf");
        }
    }
    return OK;
}

// Two words of row i, the second of the raw logits. ahead: the logits read next, or NULL.
static void fill_total(struct sampler *s, int i, uint64_t *to, const float *ahead)
{
    struct row *row = &s->rows[i];
    bool drawn = row->stage == ROW_KEPT || row->stage == ROW_TOTAL;
    struct slice slice = slice_of(s, i, drawn ? row->softmax : row->raw_softmax);
    to[0] = to[1] = 0;
    if (drawn || !row->rule->penalties) {
        to[0] = slice_mass(&slice, row->kept, ahead);
        row->summed = true;
    }
    if (!row->rule->raw_total) return;
    to[1] = row_raw_is_same(row) ? to[0] + penalty_mass(s, i) : raw_mass(s, i);
}

// The second round: total masses, and the kept ones of rows that need no search.
static enum status round_total(struct sampler *s, int n, const float *ahead, struct error *e)
{
    int words = 0;
    for (int i = 0; i < n; i++) {
        if (!row_needs_mass(&s->rows[i])) continue;
        if (!s->by_device) fill_total(s, i, s->parts.send + words, ahead);
        words += 2;
    }
    if (s->by_device) try(sampler_device_totals(&s->device, s->rows, n, s->parts.send, e));
    try(gather(s, s->parts.receive, words, e));
    const uint64_t *at = s->parts.receive;
    for (int i = 0; i < n; i++) {
        struct row *row = &s->rows[i];
        if (!row_needs_mass(row)) continue;
        row->raw_total = sum_words(s, at + 1, words);
        if (row->stage == ROW_KEPT) {
            row_decide_kept(row, at, words);
        } else if (row->stage == ROW_TOTAL) {
            row_decide_total(row, at, words);
        }
        at += 2;
    }
    return OK;
}

// One word for who knows a token: its id and its logit; 0 for the other ranks.
static uint64_t token_word(const struct sampler *s, const struct row *row, int32_t id)
{
    int at = id - s->shape.vocab_begin;
    if (at < 0 || at >= s->shape.vocab_n) return 0;
    uint32_t bits;
    memcpy(&bits, &row->logits[at], sizeof bits);
    return (uint64_t) (id + 1) << 32 | bits;
}

static int32_t token_of(const struct sampler *s, const uint64_t *at, int words, float *logit)
{
    uint64_t word = 0;
    for (int r = 0; r < s->shape.tp; r++) word |= at[r * words];
    uint32_t bits = (uint32_t) word;
    memcpy(logit, &bits, sizeof bits);
    return (int32_t) (word >> 32) - 1;
}

static int32_t walk(const struct sampler *s, int i, struct kept kept, struct draw draw)
{
    struct slice slice = slice_of(s, i, s->rows[i].softmax);
    return s->shape.vocab_begin + slice_walk(&slice, kept, draw.left);
}

// Tells the tokens of the trials, and which of them need a test.
static enum status round_trial(struct sampler *s, int n, struct error *e)
{
    int words = 0;
    for (int i = 0; i < n; i++) {
        const struct row *row = &s->rows[i];
        if (row->stage != ROW_TRIAL) continue;
        struct draw draw = row->trials[row->trial];
        bool ours = draw.owner == s->rank && !s->by_device;
        s->parts.send[words++] = ours ? token_word(s, row, walk(s, i, KEPT_ALL, draw)) : 0;
    }
    if (s->by_device) {
        try(sampler_device_walks(&s->device, s->rows, n, ROW_TRIAL, s->parts.send, e));
    }
    try(gather(s, s->parts.receive, words, e));
    const uint64_t *at = s->parts.receive;
    for (int i = 0; i < n; i++) {
        struct row *row = &s->rows[i];
        if (row->stage != ROW_TRIAL) continue;
        float logit;
        int32_t id = token_of(s, at++, words, &logit);
        row_decide_trial(row, id, logit, s->parts.kept);
        s->counts.tests += row->stage == ROW_TEST;
    }
    return OK;
}

static enum status round_test(struct sampler *s, int n, struct error *e)
{
    int words = 0;
    for (int i = 0; i < n; i++) {
        const struct row *row = &s->rows[i];
        if (row->stage != ROW_TEST) continue;
        words++;
        if (s->by_device) continue;
        struct slice slice = slice_of(s, i, row->softmax);
        // A rank alone may stop as soon as it knows; others need the sum over all.
        bool alone = s->shape.tp == 1;
        uint64_t most = alone ? row->need : UINT64_MAX;
        uint64_t rest = alone ? row->total - row->need : UINT64_MAX;
        s->parts.send[words - 1] =
            slice_before(&slice, row->logit, row->id - s->shape.vocab_begin, most, rest);
    }
    if (s->by_device) try(sampler_device_tests(&s->device, s->rows, n, s->parts.send, e));
    try(gather(s, s->parts.receive, words, e));
    const uint64_t *at = s->parts.receive;
    for (int i = 0; i < n; i++) {
        if (s->rows[i].stage == ROW_TEST) row_decide_test(&s->rows[i], sum_words(s, at++, words));
    }
    return OK;
}

static enum status rounds_trial(struct sampler *s, int n, struct error *e)
{
    bool more = true;
    while (more) {
        try(round_trial(s, n, e));
        try(round_test(s, n, e));
        more = false;
        for (int i = 0; i < n; i++) more |= s->rows[i].stage == ROW_TRIAL;
    }
    return OK;
}

// The logits of row i that the search of its cut-off looks at: if there are more than top_k in this
// slice, those above a floor that so many reach. They lie in the memory of the counts, where one
// row has room: alone in its batch it finds them again in the next round.
static const float *narrow_logits(struct sampler *s, int i, int *n)
{
    struct row *row = &s->rows[i];
    float *picked = (float *) (void *) s->parts.counts;
    *n = s->shape.vocab_n;
    if (row->floor == -INFINITY) return row->logits;
    if (row->n_picked == 0 || s->parts.batch > 1) {
        row->n_picked = s->scan->pick(row->logits, *n, row->floor, picked);
        int used = row->n_picked < *n - SCAN_SLACK ? row->n_picked + SCAN_SLACK : *n;
        s->n_counts_used = used > s->n_counts_used ? used : s->n_counts_used;
        if (row->n_picked < row->rule->top_k) {
            row->floor = -INFINITY;
            return row->logits;
        }
    }
    *n = row->n_picked;
    return picked;
}

static void clear_counts(struct sampler *s)
{
    memset(s->parts.counts, 0, (size_t) s->n_counts_used * sizeof *s->parts.counts);
    s->n_counts_used = 0;
}

static enum status round_narrow(struct sampler *s, int n, bool *more, struct error *e)
{
    int words = 0;
    for (int i = 0; i < n; i++) {
        const struct row *row = &s->rows[i];
        if (row->stage != ROW_NARROW) continue;
        struct histogram *h = (struct histogram *) (void *) (s->parts.send + words);
        int n_logits;
        const float *l = narrow_logits(s, i, &n_logits);
        narrow_fill(&row->narrow, s->scan, l, n_logits, row->softmax, h);
        words += NARROW_WORDS;
    }
    try(gather(s, s->parts.receive, words, e));
    const uint64_t *at = s->parts.receive;
    for (int i = 0; i < n; i++) {
        if (s->rows[i].stage != ROW_NARROW) continue;
        row_decide_narrow(&s->rows[i], at, (size_t) words * sizeof *at, s->rank);
        at += NARROW_WORDS;
    }
    *more = words > 0;
    return OK;
}

// Rounds of narrowing until no row needs one, then one of the kept masses.
static enum status rounds_narrow(struct sampler *s, int n, struct error *e)
{
    bool narrowing[BATCH_MAX], more = true;
    for (int i = 0; i < n && s->by_device; i++) {
        if (s->rows[i].stage == ROW_NARROW) s->rows[i].stage = ROW_HOSTED;
    }
    if (s->by_device) return OK;
    for (int i = 0; i < n; i++) {
        struct row *row = &s->rows[i];
        narrowing[i] = row->stage == ROW_NARROW;
        s->counts.fallbacks += narrowing[i];
        row->floor = row->rule->top_k > 0 && narrowing[i]
                         ? narrow_floor(row->logits, s->shape.vocab_n, row->rule->top_k,
                                        s->parts.select)
                         : -INFINITY;
    }
    while (more) try(round_narrow(s, n, &more, e));
    int words = 0;
    for (int i = 0; i < n; i++) {
        struct slice slice = slice_of(s, i, s->rows[i].softmax);
        if (narrowing[i]) s->parts.send[words++] = slice_mass(&slice, s->rows[i].kept, NULL);
    }
    try(gather(s, s->parts.receive, words, e));
    const uint64_t *at = s->parts.receive;
    for (int i = 0; i < n; i++) {
        if (narrowing[i]) row_decide_kept(&s->rows[i], at++, words);
    }
    return OK;
}

// The last round: who knows a chosen token tells it, with its raw logit. One word a row.
static enum status round_reveal(struct sampler *s, int n, struct error *e)
{
    int words = 0;
    bool asks[BATCH_MAX];
    for (int i = 0; i < n; i++) {
        const struct row *row = &s->rows[i];
        asks[i] = row->stage == ROW_DRAWN || (row->rule->raw_total && row->rule->penalties &&
                                              row->stage != ROW_HOSTED);
        if (!asks[i]) continue;
        words++;
        if (s->by_device) continue; // such rows are in ROW_DRAWN
        int32_t id = row->id;
        bool ours = row->stage == ROW_DRAWN && row->draw.owner == s->rank;
        if (ours) id = walk(s, i, row->kept, row->draw);
        restore(s, i);
        s->parts.send[words - 1] = row->stage != ROW_DRAWN || ours ? token_word(s, row, id) : 0;
    }
    if (s->by_device) {
        try(sampler_device_walks(&s->device, s->rows, n, ROW_DRAWN, s->parts.send, e));
    }
    try(gather(s, s->parts.receive, words, e));
    const uint64_t *at = s->parts.receive;
    for (int i = 0; i < n; i++) {
        struct row *row = &s->rows[i];
        if (!asks[i]) continue;
        row->id = token_of(s, at++, words, &row->raw_logit);
        row->stage = ROW_CHOSEN;
    }
    return OK;
}

static void finish_row(const struct row *row, struct sampled *out)
{
    *out = (struct sampled){.id = row->id};
    if (!row->rule->raw_total) return;
    out->logprob = mass_logprob(row->raw_softmax, row->raw_logit, row->raw_total);
    out->n_top = row->n_top;
    for (int i = 0; i < row->n_top; i++) {
        float l = entry_logit(row->top[i]);
        out->top_id[i] = entry_id(row->top[i]);
        out->top_logprob[i] = mass_logprob(row->raw_softmax, l, row->raw_total);
    }
}

static enum status run_rounds(struct sampler *s, int n, int first_row, const float *ahead,
                              struct error *e)
{
    try(round_head(s, n, first_row, e));
    try(round_total(s, n, ahead, e));
    try(rounds_trial(s, n, e));
    try(rounds_narrow(s, n, e));
    return round_reveal(s, n, e);
}

// Rows [first, first + n) of sampler_run. hosted (n): which are left to the host.
static enum status run_batch(struct sampler *s, float *logits, int first, int n,
                             const int32_t *slot, const int32_t *pos, const float *ahead,
                             struct sampled *out, bool *hosted, struct error *e)
{
    for (int i = 0; i < n; i++) {
        begin_row(s, i, logits + (size_t) i * (size_t) s->shape.vocab_n, slot[first + i],
                  pos[first + i]);
    }
    enum status status = run_rounds(s, n, first, ahead, e);
    for (int i = 0; i < n && !s->by_device; i++) restore(s, i);
    clear_counts(s);
    if (status != OK) return status;
    for (int i = 0; i < n; i++) {
        hosted[i] = s->rows[i].stage == ROW_HOSTED;
        if (!hosted[i]) finish_row(&s->rows[i], &out[first + i]);
        s->counts.rows += !hosted[i];
    }
    return OK;
}

// A batch on the device, and then row by row what that left.
static enum status run_on_device(struct sampler *s, float *logits, int first, int n,
                                 const int32_t *slot, const int32_t *pos, struct sampled *out,
                                 struct error *e)
{
    const struct sampler_device *d = &s->device;
    bool hosted[BATCH_MAX], again;
    s->by_device = true;
    enum status status = run_batch(s, logits, first, n, slot, pos, NULL, out, hosted, e);
    s->by_device = false;
    for (int i = 0; i < n && status == OK; i++) {
        if (!hosted[i]) continue;
        d->backend->download(d->device, s->parts.row,
                             logits + (size_t) i * (size_t) s->shape.vocab_n,
                             (size_t) s->shape.vocab_n * sizeof *logits);
        status = run_batch(s, s->parts.row, first + i, 1, slot, pos, NULL, out, &again, e);
        s->counts.hosted++;
    }
    return status;
}

enum status sampler_run(struct sampler *s, float *logits, int n_out, const int32_t *slot,
                        const int32_t *pos, struct sampled *out, struct error *e)
{
    check(n_out >= 0 && n_out <= s->shape.max_out);
    size_t stride = (size_t) s->shape.vocab_n;
    for (int first = 0; first < n_out; first += s->parts.batch) {
        int n = n_out - first < s->parts.batch ? n_out - first : s->parts.batch;
        float *rows = logits + (size_t) first * stride;
        bool hosted[BATCH_MAX];
        // Many rows are read for the first time before the first of them is summed.
        const float *ahead = n == 1 && first + 1 < n_out ? rows + stride : NULL;
        try(s->shape.on_device
                ? run_on_device(s, rows, first, n, slot, pos, out, e)
                : run_batch(s, rows, first, n, slot, pos, ahead, out, hosted, e));
    }
    return OK;
}
