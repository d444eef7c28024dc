#include "kernels/sampler_rounds.h"

#include "kernels/sampler_share.h"

enum { NARROW_WORDS = SAMPLER_NARROW_WORDS };

_Static_assert(sizeof(struct histogram) == NARROW_WORDS * sizeof(uint64_t),
               "histograms travel as words");

enum status sampler_bad_logits(struct error *e, int row, const char *what)
{
    return error_set(e, ERR_STATE, "bad_logits", "row %d of the sampled rows has %s", row, what);
}

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

static enum status round_head(struct sampler *s, int n, int first_row, struct error *e)
{
    int words = 0, at = 0;
    for (int i = 0; i < n; i++) {
        if (!s->by_device) share_head(s, i, s->parts.send + words);
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
                return sampler_bad_logits(e, first_row + i, SAMPLER_NAN);
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
            return sampler_bad_logits(e, first_row + i, SAMPLER_NO_TOKEN);
        }
    }
    return OK;
}

// The second round: total masses, and the kept ones of rows that need no search.
static enum status round_total(struct sampler *s, int n, const float *ahead, struct error *e)
{
    int words = 0;
    for (int i = 0; i < n; i++) {
        if (!row_needs_mass(&s->rows[i])) continue;
        if (!s->by_device) share_total(s, i, s->parts.send + words, ahead);
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

static int32_t token_of(const struct sampler *s, const uint64_t *at, int words, float *logit)
{
    uint64_t word = 0;
    for (int r = 0; r < s->shape.tp; r++) word |= at[r * words];
    uint32_t bits = (uint32_t) word;
    memcpy(logit, &bits, sizeof bits);
    if (*logit == 0) *logit = 0; // as an entry's: not -0.0
    return (int32_t) (word >> 32) - 1;
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
        s->parts.send[words++] = ours ? share_token(s, i, share_walk(s, i, KEPT_ALL, draw)) : 0;
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
        if (!s->by_device) s->parts.send[words - 1] = share_before(s, i);
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

static enum status round_narrow(struct sampler *s, int n, bool *more, struct error *e)
{
    int words = 0;
    for (int i = 0; i < n; i++) {
        const struct row *row = &s->rows[i];
        if (row->stage != ROW_NARROW) continue;
        share_histogram(s, i, (struct histogram *) (void *) (s->parts.send + words));
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
        narrowing[i] = s->rows[i].stage == ROW_NARROW;
        s->counts.fallbacks += narrowing[i];
        if (narrowing[i]) share_floor(s, i);
    }
    while (more) try(round_narrow(s, n, &more, e));
    int words = 0;
    for (int i = 0; i < n; i++) {
        if (narrowing[i]) s->parts.send[words++] = share_kept(s, i);
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
        if (ours) id = share_walk(s, i, row->kept, row->draw);
        share_restore(s, i);
        s->parts.send[words - 1] = row->stage != ROW_DRAWN || ours ? share_token(s, i, id) : 0;
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

enum status rounds_run(struct sampler *s, int n, int first_row, const float *ahead,
                       struct error *e)
{
    try(round_head(s, n, first_row, e));
    try(round_total(s, n, ahead, e));
    try(rounds_trial(s, n, e));
    try(rounds_narrow(s, n, e));
    return round_reveal(s, n, e);
}
