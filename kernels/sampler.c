#include "kernels/sampler.h"

#include "kernels/sampler_penalty.h"
#include "kernels/sampler_row.h"

enum {
    BATCH_MAX = SAMPLER_BATCH_MAX, // rows that share their collectives
    HEAD_WORDS_MAX = SAMPLER_HEAD_WORDS,
    NARROW_WORDS = SAMPLER_NARROW_WORDS,
};

_Static_assert(sizeof(struct histogram) == NARROW_WORDS * sizeof(uint64_t),
               "histograms travel as words");
_Static_assert(CANDIDATES_MAX >= LOGPROBS_MAX, "candidates serve as alternatives");

struct sequence {
    bool open;
    int n_prompt;
    struct rule rule;
};

struct sampler {
    struct sampler_shape shape;
    struct comm *comm;
    const struct scan *scan;
    int rank, batch, n_chunks, work_stride;
    uint64_t n_rows, n_fallbacks;
    struct sequence *sequences; // (slots)
    int32_t *history;           // (slots, max_context)
    struct row *rows;           // (batch)
    float *work;                // (batch, work_stride) penalised logits
    float *maxima;              // (blocks of the slice)
    uint32_t *seen;             // (vocab_n) zeros, for penalty_apply
    uint64_t *scratch;          // select_top's
    uint64_t *kept;             // (tp * CANDIDATES_MAX)
    uint64_t *chunk_mass;       // (batch, n_chunks) kept mass of each chunk of the slice
    uint64_t *lists;            // (tp, batch * HEAD_WORDS_MAX) what came of the first round
    uint64_t *send, *receive;   // (batch * SAMPLER_ROW_WORDS), (tp, the same)
};

_Static_assert(sizeof(struct sampler) <= SAMPLER_STATE_BYTES, "the plan has room for it");
_Static_assert(sizeof(struct sequence) <= SAMPLER_SEQUENCE_BYTES, "the plan has room for it");
_Static_assert(sizeof(struct row) <= SAMPLER_ROW_BYTES, "the plan has room for it");

struct sampler *sampler_init(void *memory, const struct sampler_shape *shape,
                             const struct backend *backend, struct device *device,
                             struct comm *comm)
{
    (void) backend; // logits lie in memory that the host reads
    (void) device;
    check(shape->tp >= 1 && shape->tp <= TP_MAX && (comm != NULL || shape->tp == 1));
    check(shape->vocab_n >= 0 && shape->vocab_size > 0);
    struct carve carve = {.base = memory, .size = sampler_bytes(shape)};
    struct sampler_parts p;
    sampler_carve(&p, shape, &carve);
    struct sampler *s = p.state;
    *s = (struct sampler){.shape = *shape,
                          .batch = p.batch,
                          .n_chunks = p.n_chunks,
                          .work_stride = p.work_stride,
                          .sequences = p.sequences,
                          .history = p.history,
                          .rows = p.rows,
                          .work = p.work,
                          .maxima = p.maxima,
                          .seen = p.seen,
                          .scratch = p.select,
                          .kept = p.kept,
                          .chunk_mass = p.chunk_mass,
                          .lists = p.lists,
                          .send = p.send,
                          .receive = p.receive};
    memset(s->sequences, 0, (size_t) shape->slots * sizeof *s->sequences);
    memset(s->seen, 0, (size_t) shape->vocab_n * sizeof *s->seen);
    s->comm = comm;
    s->rank = shape->tp > 1 ? comm->rank : 0;
    s->scan = scan_best();
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

void sampler_history(struct sampler *s, int slot, int pos, const int32_t *ids, int n)
{
    check(sequence_at(s, slot)->open && pos >= 0 && n >= 0 && n <= s->shape.max_context - pos);
    int32_t *to = s->history + (size_t) slot * (size_t) s->shape.max_context + pos;
    memcpy(to, ids, (size_t) n * sizeof *to);
}

void sampler_close(struct sampler *s, int slot) { sequence_at(s, slot)->open = false; }

struct sampler_counts sampler_counts(const struct sampler *s)
{
    return (struct sampler_counts){.rows = s->n_rows, .fallbacks = s->n_fallbacks};
}

// --- rounds. Each fills `send` for the rows it concerns, gathers, and lets every row decide.

// `words` of each rank to all.
static enum status gather(struct sampler *s, uint64_t *to, int words, struct error *e)
{
    if (words == 0) return OK;
    size_t bytes = (size_t) words * sizeof *to;
    if (s->shape.tp == 1) {
        memcpy(to, s->send, bytes);
        return OK;
    }
    enum status status = s->comm->ops->all_gather(s->comm, s->send, to, bytes);
    if (status != OK) return error_set(e, status, NULL, "the sampler's all_gather failed");
    return OK;
}

static void begin_row(struct sampler *s, int i, const float *logits, int slot, int pos)
{
    const struct sequence *q = sequence_at(s, slot);
    check(q->open && pos >= 0 && pos <= s->shape.max_context);
    struct row *row = &s->rows[i];
    *row = (struct row){.rule = &q->rule, .logits = logits, .raw = logits, .id = -1};
    row->random = sampling_random(q->rule.sampling.seed, (uint64_t) pos);
    if (!q->rule.penalties) return;
    float *work = s->work + (size_t) i * (size_t) s->work_stride;
    memcpy(work, logits, (size_t) s->shape.vocab_n * sizeof *work);
    penalty_apply(&q->rule.sampling, work, s->shape.vocab_begin, s->shape.vocab_n, s->seen,
                  s->history + (size_t) slot * (size_t) s->shape.max_context, pos, q->n_prompt);
    row->logits = work;
}

// Words of a row in the first round: whether a NaN was seen, the list, the raw list.
static int head_words(const struct row *row)
{
    return 1 + row->rule->n_list + row->rule->n_raw_list;
}

static void fill_head(struct sampler *s, const struct row *row, uint64_t *words)
{
    const struct sampler_shape *p = &s->shape;
    const struct rule *r = row->rule;
    memset(words, 0xff, (size_t) head_words(row) * sizeof *words); // ENTRY_NONE
    words[0] = !s->scan->maxima(row->logits, p->vocab_n, s->maxima);
    if (words[0] != 0) return;
    select_top(row->logits, p->vocab_n, p->vocab_begin, s->maxima, r->n_list, s->scratch,
               words + 1);
    if (r->n_raw_list == 0) return;
    s->scan->maxima(row->raw, p->vocab_n, s->maxima);
    select_top(row->raw, p->vocab_n, p->vocab_begin, s->maxima, r->n_raw_list, s->scratch,
               words + 1 + r->n_list);
}

static enum status bad_logits(struct error *e, int row, const char *what)
{
    return error_set(e, ERR_STATE, "bad_logits", "row %d of the sampled rows has %s", row, what);
}

static enum status round_head(struct sampler *s, int n, int first_row, int *stride, struct error *e)
{
    int words = 0;
    for (int i = 0; i < n; i++) {
        fill_head(s, &s->rows[i], s->send + words);
        words += head_words(&s->rows[i]);
    }
    try(gather(s, s->lists, words, e));
    *stride = words;
    const uint64_t *at = s->lists;
    for (int i = 0; i < n; i++) {
        struct row *row = &s->rows[i];
        for (int r = 0; r < s->shape.tp; r++) {
            if (at[r * words] != 0) return bad_logits(e, first_row + i, "a logit of NaN");
        }
        const uint64_t *lists = at + 1, *raw_lists = lists + row->rule->n_list;
        if (!row_decide_lists(row, lists, raw_lists, words, s->shape.tp, s->shape.vocab_size,
                              s->kept)) {
            return bad_logits(e, first_row + i, "no token with a logit above -inf");
        }
        at += head_words(row);
    }
    return OK;
}

static uint64_t count_equal(const float *l, int n, float x)
{
    uint32_t count = 0;
    for (int i = 0; i < n; i++) count += l[i] == x;
    return count;
}

// Mass of this rank's kept logits, by chunk too.
static uint64_t kept_mass(const struct sampler *s, const struct row *row, uint64_t *chunk_mass)
{
    uint64_t sum = 0, ties = row->ties, tie_mass = ties > 0 ? mass_of(row->softmax, row->above) : 0;
    bool all = row->above == -INFINITY && row->least == -INFINITY;
    for (int c = 0; c < s->n_chunks; c++) {
        const float *l = row->logits + (size_t) c * SCAN_CHUNK;
        int left = s->shape.vocab_n - c * SCAN_CHUNK, n = left < SCAN_CHUNK ? left : SCAN_CHUNK;
        uint64_t mass = all ? s->scan->sum(l, n, row->softmax)
                            : s->scan->sum_kept(l, n, row->softmax, row->above, row->least);
        if (ties > 0) {
            uint64_t equal = count_equal(l, n, row->above), kept = equal < ties ? equal : ties;
            mass += kept * tie_mass;
            ties -= kept;
        }
        chunk_mass[c] = mass;
        sum += mass;
    }
    return sum;
}

static uint64_t whole_mass(const struct sampler *s, const float *l, struct softmax softmax)
{
    uint64_t sum = 0;
    for (int c = 0; c < s->n_chunks; c++) {
        int left = s->shape.vocab_n - c * SCAN_CHUNK, n = left < SCAN_CHUNK ? left : SCAN_CHUNK;
        sum += s->scan->sum(l + (size_t) c * SCAN_CHUNK, n, softmax);
    }
    return sum;
}

static uint64_t *chunks_of(struct sampler *s, int i)
{
    return s->chunk_mass + (size_t) i * (size_t) s->n_chunks;
}

// The second round: total masses, and the kept ones of rows that need no search. Two words a row,
// the second of the raw logits.
static enum status round_total(struct sampler *s, int n, int list_stride, struct error *e)
{
    int words = 0;
    for (int i = 0; i < n; i++) {
        const struct row *row = &s->rows[i];
        bool kept = row->stage == ROW_KEPT, total = row->stage == ROW_TOTAL;
        if (!kept && !total && !row->rule->raw_total) continue;
        uint64_t *to = s->send + words;
        to[0] = kept ? kept_mass(s, row, chunks_of(s, i))
                     : total ? whole_mass(s, row->logits, row->softmax) : 0;
        to[1] = row->rule->raw_total ? whole_mass(s, row->raw, row->raw_softmax) : 0;
        words += 2;
    }
    try(gather(s, s->receive, words, e));
    const uint64_t *at = s->receive, *list = s->lists;
    for (int i = 0; i < n; i++) {
        struct row *row = &s->rows[i];
        const uint64_t *lists = list + 1;
        list += head_words(row);
        if (row->stage != ROW_KEPT && row->stage != ROW_TOTAL && !row->rule->raw_total) continue;
        uint64_t total = 0;
        for (int r = 0; r < s->shape.tp; r++) {
            total += at[r * words];
            row->raw_total += at[r * words + 1];
        }
        if (row->stage == ROW_KEPT) {
            row_decide_kept(row, at, words, s->shape.tp);
        } else if (row->stage == ROW_TOTAL) {
            row_decide_total(row, total, lists, list_stride, s->shape.tp, s->shape.vocab_size,
                             s->kept);
        }
        at += 2;
    }
    return OK;
}

// Rounds of narrowing until no row needs one, then one of the kept masses.
static enum status rounds_narrow(struct sampler *s, int n, struct error *e)
{
    bool narrowing[BATCH_MAX];
    int words = 0;
    for (int i = 0; i < n; i++) {
        narrowing[i] = s->rows[i].stage == ROW_NARROW;
        s->n_fallbacks += narrowing[i];
    }
    do {
        words = 0;
        for (int i = 0; i < n; i++) {
            const struct row *row = &s->rows[i];
            if (row->stage != ROW_NARROW) continue;
            struct histogram *h = (struct histogram *) (void *) (s->send + words);
            narrow_fill(&row->narrow, s->scan, row->logits, s->shape.vocab_n, row->softmax, h);
            words += NARROW_WORDS;
        }
        try(gather(s, s->receive, words, e));
        const uint64_t *at = s->receive;
        for (int i = 0; i < n; i++) {
            if (s->rows[i].stage != ROW_NARROW) continue;
            row_decide_narrow(&s->rows[i], at, (size_t) words * sizeof *at, s->shape.tp, s->rank);
            at += NARROW_WORDS;
        }
    } while (words > 0);
    words = 0;
    for (int i = 0; i < n; i++) {
        if (narrowing[i]) s->send[words++] = kept_mass(s, &s->rows[i], chunks_of(s, i));
    }
    try(gather(s, s->receive, words, e));
    const uint64_t *at = s->receive;
    for (int i = 0; i < n; i++) {
        if (narrowing[i]) row_decide_kept(&s->rows[i], at++, words, s->shape.tp);
    }
    return OK;
}

// The token of a draw in this rank's kept mass: the walk by ascending id.
static int32_t walk(struct sampler *s, int i)
{
    const struct row *row = &s->rows[i];
    const uint64_t *chunk_mass = chunks_of(s, i);
    uint64_t left = row->draw;
    int c = 0;
    while (left >= chunk_mass[c]) left -= chunk_mass[c++];
    int at = c * SCAN_CHUNK;
    uint64_t used = row->ties > 0 ? count_equal(row->logits, at, row->above) : 0;
    uint64_t ties = used < row->ties ? row->ties - used : 0;
    for (; at < s->shape.vocab_n; at++) {
        float l = row->logits[at];
        bool tie = ties > 0 && l == row->above;
        ties -= tie;
        if (!tie && !(l > row->above && softmax_exponent(row->softmax, l) >= row->least)) continue;
        uint64_t mass = mass_of(row->softmax, l);
        if (left < mass) break;
        left -= mass;
    }
    check(at < s->shape.vocab_n, "the draw lies beyond the kept mass");
    return s->shape.vocab_begin + at;
}

// The last round: who knows a chosen token tells it, with its raw logit. One word a row.
static enum status round_reveal(struct sampler *s, int n, struct error *e)
{
    const struct sampler_shape *p = &s->shape;
    int words = 0;
    bool asks[BATCH_MAX];
    for (int i = 0; i < n; i++) {
        const struct row *row = &s->rows[i];
        asks[i] = row->stage == ROW_DRAWN || (row->rule->raw_total && row->rule->penalties);
        if (!asks[i]) continue;
        int32_t id = row->id;
        if (row->stage == ROW_DRAWN && row->owner == s->rank) id = walk(s, i);
        uint64_t word = 0;
        if (id >= p->vocab_begin && id < p->vocab_begin + p->vocab_n) {
            uint32_t bits;
            memcpy(&bits, &row->raw[id - p->vocab_begin], sizeof bits);
            word = (uint64_t) (id + 1) << 32 | bits;
        }
        s->send[words++] = word;
    }
    try(gather(s, s->receive, words, e));
    const uint64_t *at = s->receive;
    for (int i = 0; i < n; i++) {
        if (!asks[i]) continue;
        uint64_t word = 0;
        for (int r = 0; r < p->tp; r++) word |= at[r * words];
        uint32_t bits = (uint32_t) word;
        s->rows[i].id = (int32_t) (word >> 32) - 1;
        memcpy(&s->rows[i].raw_logit, &bits, sizeof bits);
        s->rows[i].stage = ROW_CHOSEN;
        at++;
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

enum status sampler_run(struct sampler *s, const float *logits, int n_out, const int32_t *slot,
                        const int32_t *pos, struct sampled *out, struct error *e)
{
    check(n_out >= 0 && n_out <= s->shape.max_out);
    for (int first = 0; first < n_out; first += s->batch) {
        int n = n_out - first < s->batch ? n_out - first : s->batch, list_stride;
        for (int i = 0; i < n; i++) {
            const float *row = logits + (size_t) (first + i) * (size_t) s->shape.vocab_n;
            begin_row(s, i, row, slot[first + i], pos[first + i]);
        }
        try(round_head(s, n, first, &list_stride, e));
        try(round_total(s, n, list_stride, e));
        try(rounds_narrow(s, n, e));
        try(round_reveal(s, n, e));
        for (int i = 0; i < n; i++) finish_row(&s->rows[i], &out[first + i]);
        s->n_rows += (uint64_t) n;
    }
    return OK;
}
