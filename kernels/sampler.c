#include "kernels/sampler_state.h"

#include "kernels/sampler_rounds.h"
#include "kernels/sampler_share.h"

_Static_assert(CANDIDATES_MAX >= LOGPROBS_MAX, "candidates serve as alternatives");

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
    if (pos <= q->n_marked) share_mark(s, slot, pos + n);
}

void sampler_close(struct sampler *s, int slot) { sequence_at(s, slot)->open = false; }

struct sampler_counts sampler_counts(const struct sampler *s) { return s->counts; }

static void begin_row(struct sampler *s, int i, float *logits, int slot, int pos)
{
    const struct sequence *q = sequence_at(s, slot);
    check(q->open && pos >= 0 && pos <= s->shape.max_context);
    s->rows[i] = (struct row){.rule = &q->rule,
                              .logits = logits,
                              .random = sampling_random(q->rule.sampling.seed, (uint64_t) pos),
                              .slot = slot,
                              .n_ids = pos,
                              .penalised = s->penalised,
                              .kept = KEPT_ALL,
                              .id = -1};
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

// Whether a row is left to the host, and how.
enum hosting {
    HOSTED_NOT,
    HOSTED_RAW,       // with its logits as they were
    HOSTED_PENALISED, // after its penalties, if it has any
};

// Rows [first, first + n) of sampler_run. hosted (n): of each.
static enum status run_batch(struct sampler *s, float *logits, int first, int n,
                             const int32_t *slot, const int32_t *pos, const float *ahead,
                             struct sampled *out, enum hosting *hosted, struct error *e)
{
    for (int i = 0; i < n; i++) {
        begin_row(s, i, logits + (size_t) i * (size_t) s->shape.vocab_n, slot[first + i],
                  pos[first + i]);
    }
    enum status status = rounds_run(s, n, first, ahead, e);
    for (int i = 0; i < n && !s->by_device; i++) share_restore(s, i);
    share_clear(s);
    if (status != OK) return status;
    for (int i = 0; i < n; i++) {
        hosted[i] = s->rows[i].stage == ROW_HOSTED ? HOSTED_RAW : HOSTED_NOT;
        if (hosted[i] != HOSTED_NOT) continue;
        finish_row(&s->rows[i], &out[first + i]);
        s->counts.rows++;
    }
    return OK;
}

static void finish_choice(const struct rule *r, const struct sampler_choice *c, int vocab_size,
                          struct sampled *out)
{
    *out = (struct sampled){.id = c->id};
    if (!r->raw_total) return;
    struct softmax raw = softmax_of(c->most, 1.0f);
    out->logprob = mass_logprob(raw, c->logit, c->raw_total);
    int n_top = r->sampling.n_logprobs;
    out->n_top = n_top < vocab_size ? n_top : vocab_size;
    for (int i = 0; i < out->n_top; i++) {
        float l = entry_logit(c->top[i]);
        out->top_id[i] = entry_id(c->top[i]);
        out->top_logprob[i] = mass_logprob(raw, l, c->raw_total);
    }
}

_Static_assert(sizeof(struct sampler_wish) <= SAMPLER_HEAD_WORDS * sizeof(uint64_t) &&
                   sizeof(struct sampler_choice) <= SAMPLER_HEAD_WORDS * sizeof(uint64_t),
               "wishes and choices pass where words of rounds do");

// False: the row has to be left to the host.
static bool wish_row(struct sampler *s, int slot, int pos, struct sampler_wish *w)
{
    struct sequence *q = sequence_at(s, slot);
    const struct sampling *p = &q->rule.sampling;
    check(q->open && pos >= 0 && pos <= s->shape.max_context);
    int n_output = pos > q->n_prompt ? pos - q->n_prompt : 0;
    bool counts = q->rule.penalties && p->frequency_penalty != 0;
    if (!rule_wish(&q->rule, w) || (counts && n_output > SAMPLER_COUNTED_MAX)) return false;
    w->pos = (uint64_t) pos;
    if (!q->rule.penalties) return true;
    if (q->n_marked != pos) share_mark(s, slot, pos);
    w->ids = history_of(s, slot);
    w->n_ids = pos;
    w->n_prompt = pos - n_output;
    w->repetition = p->repetition_penalty;
    w->presence = p->presence_penalty;
    w->frequency = p->frequency_penalty;
    return true;
}

// The same where rows of the device choose by themselves.
static enum status choose_batch(struct sampler *s, float *logits, int first, int n,
                                const int32_t *slot, const int32_t *pos, struct sampled *out,
                                enum hosting *hosted, struct error *e)
{
    struct sampler_wish *wishes = (void *) s->parts.send;
    const struct sampler_choice *choices = (void *) s->parts.receive;
    int n_wishes = 0;
    for (int i = 0; i < n; i++) {
        bool wished = wish_row(s, slot[first + i], pos[first + i], &wishes[n_wishes]);
        hosted[i] = wished ? HOSTED_NOT : HOSTED_RAW;
        if (wished) wishes[n_wishes++].row = i;
    }
    try(sampler_device_choose(&s->device, logits, wishes, n_wishes, (void *) s->parts.receive, e));
    for (int i = 0, k = 0; i < n; i++) {
        if (hosted[i] != HOSTED_NOT) continue;
        const struct sampler_choice *c = &choices[k++];
        if (c->head == HEAD_NAN) return sampler_bad_logits(e, first + i, SAMPLER_NAN);
        if (c->head == HEAD_NONE) return sampler_bad_logits(e, first + i, SAMPLER_NO_TOKEN);
        hosted[i] = c->head == HEAD_HOST ? HOSTED_PENALISED : HOSTED_NOT;
        if (hosted[i] != HOSTED_NOT) continue;
        finish_choice(&s->sequences[slot[first + i]].rule, c, s->shape.vocab_size,
                      &out[first + i]);
        s->counts.tests += (uint64_t) c->n_tests;
        s->counts.fallbacks += (uint64_t) c->searched;
        s->counts.rows++;
    }
    return OK;
}

// A batch on the device, and then row by row what that left.
static enum status run_on_device(struct sampler *s, float *logits, int first, int n,
                                 const int32_t *slot, const int32_t *pos, struct sampled *out,
                                 struct error *e)
{
    const struct sampler_device *d = &s->device;
    enum hosting hosted[BATCH_MAX], again;
    s->by_device = !d->alone;
    enum status status = d->alone
                             ? choose_batch(s, logits, first, n, slot, pos, out, hosted, e)
                             : run_batch(s, logits, first, n, slot, pos, NULL, out, hosted, e);
    s->by_device = false;
    for (int i = 0; i < n && status == OK; i++) {
        if (hosted[i] == HOSTED_NOT) continue;
        d->backend->download(d->device, s->parts.row,
                             logits + (size_t) i * (size_t) s->shape.vocab_n,
                             (size_t) s->shape.vocab_n * sizeof *logits);
        s->penalised = hosted[i] == HOSTED_PENALISED;
        status = run_batch(s, s->parts.row, first + i, 1, slot, pos, NULL, out, &again, e);
        s->counts.hosted++;
    }
    s->penalised = false;
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
        enum hosting hosted[BATCH_MAX];
        // Many rows are read for the first time before the first of them is summed.
        const float *ahead = n == 1 && first + 1 < n_out ? rows + stride : NULL;
        try(s->shape.on_device
                ? run_on_device(s, rows, first, n, slot, pos, out, e)
                : run_batch(s, rows, first, n, slot, pos, ahead, out, hosted, e));
    }
    return OK;
}
