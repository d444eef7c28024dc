#include "workers/head.h"

#include "common/carve.h"
#include "common/log.h"
#include "common/seal.h"
#include "common/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RESULT_BYTES_MAX = WIRE_BODY_MAX, NS_A_MS = 1000000 };

static bool same_key(const struct job_key *a, const struct job_key *b)
{
    return a->attempt == b->attempt && strcmp(a->id, b->id) == 0 &&
           strcmp(a->tenant, b->tenant) == 0;
}

static size_t ids_most(const struct step_limits *l)
{
    return (size_t) l->max_blocks * KV_BLOCK_ROWS;
}

static void carve_head(struct head *h, const struct step_limits *l, struct carve *c,
                       int32_t **free_blocks, struct sched_seq **seqs)
{
    size_t slots = (size_t) l->slots;
    h->seqs = carve_take(c, slots * sizeof *h->seqs);
    h->opened = carve_take(c, slots * sizeof *h->opened);
    h->to_close = carve_take(c, slots * sizeof *h->to_close);
    h->n_blocks = carve_take(c, slots * sizeof *h->n_blocks);
    h->ids = carve_take(c, slots * ids_most(l) * sizeof *h->ids);
    h->blocks = carve_take(c, slots * (size_t) l->max_blocks * sizeof *h->blocks);
    h->outs = carve_take(c, STEPS_IN_FLIGHT_MAX * (size_t) l->max_out * sizeof *h->outs);
    *free_blocks = carve_take(c, (size_t) l->n_blocks * sizeof **free_blocks);
    *seqs = carve_take(c, slots * sizeof **seqs);
}

uint64_t head_bytes(const struct step_limits *l)
{
    struct head h;
    struct carve c = {0};
    int32_t *free_blocks;
    struct sched_seq *seqs;
    carve_head(&h, l, &c, &free_blocks, &seqs);
    return c.used;
}

// Stages are planned to take equally long: one with so many layers stands for all.
static void open_sched(struct head *h, struct sched_seq *seqs)
{
    const struct head_options *o = &h->options;
    struct cost_form form = {.tp = o->tp, .kv_ranks = 1, .f32 = o->f32, .fp8_gemm = false,
                             .fp8_kv = o->limits.fp8_kv};
    struct sched_options options = {.limits = o->limits,
                                    .chunk = o->chunk,
                                    .steps_in_flight = o->steps_in_flight,
                                    .stages = o->stages,
                                    .fill_ms = o->fill_ms,
                                    .step_ms = o->step_ms};
    if (o->rates != NULL) {
        int n = o->config->n_layers, share = (n + o->stages - 1) / o->stages;
        struct plan_stage stage = {.first = n - share, .last = n, .tail = true};
        pace_init(&h->pace, o->config, &form, &stage, o->rates);
        options.pace = &h->pace;
    }
    sched_init(&h->sched, seqs, &options);
}

enum status head_create(struct head **head, const struct head_options *o,
                        const struct head_events *events, struct error *e)
{
    struct head *h = calloc(1, sizeof *h);
    *head = h;
    if (h == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for the head");
    h->options = *o;
    h->events = *events;
    snprintf(h->model_hash, sizeof h->model_hash, "%s", o->model_hash);
    snprintf(h->plan_hash, sizeof h->plan_hash, "%s", o->plan_hash);
    struct carve c = {.base = o->memory, .size = head_bytes(&o->limits)};
    int32_t *free_blocks;
    struct sched_seq *seqs;
    memset(o->memory, 0, c.size);
    carve_head(h, &o->limits, &c, &free_blocks, &seqs);
    kv_init(&h->kv, free_blocks, o->limits.n_blocks);
    open_sched(h, seqs);
    h->granted_slots = (uint64_t) o->limits.slots;
    h->granted_blocks = (uint64_t) o->limits.n_blocks;
    return OK;
}

static void free_kept(struct kept_result *r)
{
    buffer_deinit(&r->bytes);
    free(r);
}

void head_destroy(struct head **head)
{
    struct head *h = *head;
    if (h == NULL) return;
    *head = NULL;
    for (int i = 0; i < h->options.limits.slots; i++) {
        if (h->seqs[i].used) seq_end(&h->seqs[i]);
    }
    while (h->kept != NULL) {
        struct kept_result *r = h->kept;
        h->kept = r->next;
        free_kept(r);
    }
    free(h);
}

static struct seq *find_seq(struct head *h, const struct job_key *key)
{
    for (int i = 0; i < h->options.limits.slots; i++) {
        if (h->seqs[i].used && same_key(&h->seqs[i].key, key)) return &h->seqs[i];
    }
    return NULL;
}

static struct kept_result **find_kept(struct head *h, const struct job_key *key)
{
    struct kept_result **at = &h->kept;
    while (*at != NULL && !same_key(&(*at)->key, key)) at = &(*at)->next;
    return at;
}

// A step in a job's life; there are few of them a job, none a token.
static void log_step(const char *event, const struct seq *q, const char *word, int n_tokens)
{
    log_line(LOG_INFO, event, log_str("tenant", q->key.tenant), log_str("id", q->key.id),
             log_int("attempt", q->key.attempt), log_str("word", word),
             log_int("tokens", n_tokens));
}

// --- the end of a sequence

static void free_slot(struct head *h, struct seq *q)
{
    int slot = (int) (q - h->seqs);
    int n = h->n_blocks[slot];
    bool was = seal_set(true);
    kv_release(&h->kv, n, h->blocks + (size_t) slot * (size_t) h->options.limits.max_blocks);
    sched_remove(&h->sched, slot);
    seal_set(was);
    if (h->opened[slot] > 0) h->to_close[slot] = true; // it may be so of a sequence before, too
    h->opened[slot] = 0;
    h->n_running--;
    h->granted_slots++;
    h->granted_blocks += (uint64_t) n;
    seq_end(q);
}

// Every attempt has an outcome: the broker keeps the lease of one that it has not heard of. What is
// too large to be sent, or cannot be put together, is an error; without memory for a few bytes the
// group ends, and another one has its jobs.
static void encode_result(struct head *h, struct seq *q, enum result_status status,
                          enum result_finish reason, const struct error *why, struct buffer *to)
{
    struct error e = {0}, again = {0};
    if (seq_result(q, status, reason, h->model_hash, h->plan_hash, why, to, &e) == OK) return;
    log_line(LOG_ERROR, "result_lost", log_str("tenant", q->key.tenant), log_str("id", q->key.id),
             log_int("attempt", q->key.attempt), log_str("code", e.code),
             log_str("error", e.text));
    buffer_deinit(to);
    buffer_init(to, RESULT_BYTES_MAX);
    check(seq_failure(q, h->model_hash, h->plan_hash, &e, to, &again) == OK, "%s", again.text);
}

static void finish(struct head *h, struct seq *q, enum result_status status,
                   enum result_finish reason, const struct error *why, int64_t now_ms)
{
    bool was = seal_set(false); // a result is control
    struct kept_result *r = calloc(1, sizeof *r);
    check(r != NULL, "no memory for a result");
    q->ended_ms = now_ms;
    log_step("ended", q, result_status_name(status), q->n_known - q->n_prompt);
    r->key = q->key;
    buffer_init(&r->bytes, RESULT_BYTES_MAX);
    encode_result(h, q, status, reason, why, &r->bytes);
    r->next = h->kept;
    h->kept = r;
    h->n_kept++;
    if (h->events.result(h->events.arg, r)) r->sent_ms = now_ms;
    free_slot(h, q);
    seal_set(was);
}

// --- jobs

static enum status check_job(const struct head *h, const struct wire_job *job, int *n_blocks,
                             struct error *e)
{
    const struct step_limits *l = &h->options.limits;
    int64_t n_prompt = wire_ids_count(job->ids), n_resume = wire_ids_count(job->resume);
    int64_t whole = n_prompt + job->max_tokens;
    if (n_prompt < 1 || n_resume > job->max_tokens || (!job->score && job->max_tokens < 1)) {
        return error_set(e, ERR_INPUT, "bad_job",
                         "a job of %lld prompt tokens, %d to generate, %lld resumed",
                         (long long) n_prompt, job->max_tokens, (long long) n_resume);
    }
    if (whole > h->options.max_context) {
        return error_set(e, ERR_INPUT, "context_exceeded",
                         "prompt and output need %lld tokens, but a sequence may have %d",
                         (long long) whole, h->options.max_context);
    }
    if (job->score && !l->score) {
        return error_set(e, ERR_UNSUPPORTED, "no_scores", "this pipeline returns no logits");
    }
    *n_blocks = (int) ((whole + KV_BLOCK_ROWS - 1) / KV_BLOCK_ROWS);
    return OK;
}

static enum status check_ids(const struct head *h, const int32_t *ids, int n, struct error *e)
{
    for (int i = 0; i < n; i++) {
        if (ids[i] >= 0 && ids[i] < h->options.config->vocab_size) continue;
        return error_set(e, ERR_INPUT, "bad_token", "id %d at index %d is not in the vocabulary "
                         "of %d", ids[i], i, h->options.config->vocab_size);
    }
    return OK;
}

static int free_slot_index(const struct head *h)
{
    for (int i = 0; i < h->options.limits.slots; i++) {
        if (!h->seqs[i].used) return i;
    }
    return -1;
}

enum status head_accept(struct head *h, const struct wire_job *job, int64_t now_ms, struct error *e)
{
    if (find_seq(h, &job->key) != NULL) return OK;
    struct kept_result *kept = *find_kept(h, &job->key);
    if (kept != NULL) {
        kept->sent_ms = 0;
        return OK;
    }
    int n_blocks = 0, slot = free_slot_index(h);
    try(check_job(h, job, &n_blocks, e));
    if (slot < 0 || n_blocks > h->kv.n_free) {
        return error_set(e, ERR_LIMIT, "no_credit", "%d KV blocks and a slot are needed, %d blocks "
                         "are free", n_blocks, slot < 0 ? 0 : h->kv.n_free);
    }
    struct seq *q = &h->seqs[slot];
    int32_t *ids = h->ids + (size_t) slot * ids_most(&h->options.limits);
    enum result_finish end;
    try(seq_begin(q, job, h->options.config, h->options.tokenizer, ids, now_ms, &end, e));
    enum status status = check_ids(h, ids, q->n_prompt + q->n_resumed, e);
    if (status != OK) {
        seq_end(q);
        return status;
    }
    int32_t *blocks = h->blocks + (size_t) slot * (size_t) h->options.limits.max_blocks;
    bool was = seal_set(true);
    status = kv_reserve(&h->kv, n_blocks, blocks);
    check(status == OK, "blocks were free");
    h->n_blocks[slot] = n_blocks;
    h->opened[slot] = 0;
    h->n_running++;
    sched_admit(&h->sched, slot, q->n_prompt, q->n_known, job->class, q->score);
    seal_set(was);
    log_step("accepted", q, q->n_resumed > 0 ? "resumed" : "new", q->n_prompt + q->n_resumed);
    // An earlier attempt had all tokens, and only its result was lost.
    if (end != RESULT_NO_FINISH) finish(h, q, RESULT_OK, end, NULL, now_ms);
    return OK;
}

void head_cancel(struct head *h, const struct job_key *key, enum wire_reason reason,
                 int64_t now_ms)
{
    struct seq *q = find_seq(h, key);
    struct error why;
    bool expired = reason == WIRE_REASON_EXPIRED;
    error_set(&why, ERR_ABORTED, wire_reason_name(reason), "%s",
              expired ? "the deadline passed" : "the job was cancelled");
    if (q == NULL) return;
    finish(h, q, expired ? RESULT_EXPIRED : RESULT_CANCELLED, RESULT_NO_FINISH, &why, now_ms);
}

// --- steps

static void add_open(struct head *h, int slot, struct step *s)
{
    const struct seq *q = &h->seqs[slot];
    struct step_open *o = &s->opens[s->n_opens++];
    *o = (struct step_open){.slot = slot,
                            .n_blocks = h->n_blocks[slot],
                            .first_block = s->n_blocks,
                            .n_prompt = q->n_prompt,
                            .sampling = q->sampling};
    memcpy(s->blocks + s->n_blocks,
           h->blocks + (size_t) slot * (size_t) h->options.limits.max_blocks,
           (size_t) o->n_blocks * sizeof *s->blocks);
    s->n_blocks += o->n_blocks;
    h->opened[slot] = s->number;
}

static void count_run(struct head *h, const struct step_run *run)
{
    const struct seq *q = &h->seqs[run->slot];
    int left = q->n_prompt + q->n_resumed - run->pos; // rows of ids that it came with
    if (left <= 0) return;
    uint64_t n = (uint64_t) (run->n < left ? run->n : left);
    h->counts.prefill += n;
    if (q->attempts > 1) h->counts.again += n;
}

static struct head_flight *flight_of(struct head *h, uint64_t step)
{
    return &h->flights[step % STEPS_IN_FLIGHT_MAX];
}

static struct head_out *outs_of(const struct head *h, uint64_t step)
{
    return h->outs + step % STEPS_IN_FLIGHT_MAX * (size_t) h->options.limits.max_out;
}

static void expect_tokens(struct head *h, const struct step *s)
{
    struct head_out *outs = outs_of(h, s->number);
    flight_of(h, s->number)->n_out = s->n_out;
    for (int i = 0; i < s->n_out; i++) {
        int row = s->out_rows[i];
        outs[i] = (struct head_out){s->slot[row], s->pos[row]};
    }
}

// The last stage's bytes are another process's: each row's token comes once, in its place.
static enum status check_tokens(struct head *h, uint64_t step, const struct step_token *tokens,
                                int n, struct error *e)
{
    const struct head_out *outs = outs_of(h, step);
    int n_out = flight_of(h, step)->n_out;
    if (n != n_out) {
        return error_set(e, ERR_INPUT, "bad_step", "step %llu came back with %d tokens, not %d",
                         (unsigned long long) step, n, n_out);
    }
    for (int i = 0; i < n; i++) {
        const struct step_token *t = &tokens[i];
        if (t->slot == outs[i].slot && t->pos == outs[i].pos) continue;
        return error_set(e, ERR_INPUT, "bad_step", "token %d of step %llu came for row %d of slot "
                         "%d, not for row %d of slot %d", i, (unsigned long long) step, t->pos,
                         t->slot, outs[i].pos, outs[i].slot);
    }
    return OK;
}

// Notes what the step holds, for the time when it is back.
static void take_off(struct head *h, const struct step *s, int64_t now_ns)
{
    struct head_flight *f = flight_of(h, s->number);
    int decodes = 0;
    *f = (struct head_flight){.planned_ns = now_ns};
    for (int r = 0; r < s->n_runs; r++) {
        const struct step_run *run = &s->runs[r];
        int out = run->logits == RUN_ALL_ROWS ? run->n : run->logits == RUN_LAST_ROW;
        cost_step_add(&f->step.content, run->pos, run->n, out);
        decodes += run->pos >= h->seqs[run->slot].n_prompt;
    }
    f->step.mixed = decodes > 0 && decodes < s->n_runs;
}

// Steps come back as the slowest stage is done with them, if it always has a next one: where more
// steps were in flight than there are stages. A single stage begins when a step is planned or the
// one before is done.
static void land(struct head *h, uint64_t step, int64_t now_ns)
{
    const struct head_flight *f = flight_of(h, step);
    int stages = h->options.stages;
    uint64_t flying = h->n_steps - h->n_back;
    int64_t from = h->back_ns;
    if (step <= h->n_back) return;
    if (stages == 1 && f->planned_ns > from) from = f->planned_ns;
    bool known = stages == 1 || (flying > (uint64_t) stages && f->planned_ns < from);
    if (h->sched.options.pace != NULL && known && now_ns > from) {
        pace_observe(&h->pace, &f->step, (double) (now_ns - from) / 1e9);
    }
    h->n_back = step;
    h->back_ns = now_ns;
}

int64_t head_plan_due(const struct head *h) { return h->sched.again_ms; }

bool head_plan(struct head *h, struct step *s, int64_t now_ns)
{
    step_reset(s, h->n_steps + 1);
    int flying = (int) (h->n_steps - h->n_back);
    s->n_runs = sched_plan(&h->sched, flying, now_ns / NS_A_MS, s->runs);
    if (s->n_runs == 0) return false;
    h->n_steps++;
    take_off(h, s, now_ns);
    for (int i = 0; i < h->options.limits.slots; i++) {
        if (h->to_close[i]) s->closes[s->n_closes++] = i;
        h->to_close[i] = false;
    }
    for (int r = 0; r < s->n_runs; r++) {
        const struct step_run *run = &s->runs[r];
        if (h->opened[run->slot] == 0) add_open(h, run->slot, s);
        memcpy(s->ids + s->n_rows, h->seqs[run->slot].ids + run->pos,
               (size_t) run->n * sizeof *s->ids);
        s->n_rows += run->n;
        count_run(h, run);
    }
    step_expand(s);
    expect_tokens(h, s);
    return true;
}

static void take_token(struct head *h, struct seq *q, const struct step_token *t, int64_t now_ms)
{
    struct error e = {0};
    enum result_finish end;
    int slot = (int) (q - h->seqs);
    check(t->pos == q->n_known - 1, "a token after row %d of a sequence of %d", t->pos,
          q->n_known);
    if (q->first_ms == 0) log_step("first_token", q, "", q->n_known + 1 - q->n_prompt);
    bool was = seal_set(false); // its text is control
    enum status status = seq_append(q, h->options.config, t, now_ms, &end, &e);
    seal_set(was);
    sched_append(&h->sched, slot);
    h->counts.decode++;
    if (status != OK) {
        finish(h, q, RESULT_ERROR, RESULT_NO_FINISH, &e, now_ms);
    } else if (end != RESULT_NO_FINISH) {
        finish(h, q, RESULT_OK, end, NULL, now_ms);
    }
}

// Rows [i, return value) of one scored sequence, consecutive ones of a run.
static int take_scores(struct head *h, struct seq *q, const struct step_token *t, int i, int n,
                       const float *logits, int64_t now_ms)
{
    size_t vocab = (size_t) h->options.limits.vocab_size;
    int end = i + 1;
    while (end < n && t[end].slot == t[i].slot) end++;
    struct wire_logits l = {.key = q->key,
                            .pos = t[i].pos,
                            .n = end - i,
                            .vocab = (int) vocab,
                            .rows = {logits + (size_t) i * vocab,
                                     (size_t) (end - i) * vocab * sizeof *logits}};
    bool was = seal_set(false); // so is what the caller of `penstock score` wants
    h->events.logits(h->events.arg, &l);
    seal_set(was);
    q->n_scored += end - i;
    if (q->n_scored == q->n_prompt) finish(h, q, RESULT_OK, RESULT_LENGTH, NULL, now_ms);
    return end;
}

enum status head_tokens(struct head *h, uint64_t step, const struct step_token *tokens, int n,
                        const float *logits, int64_t now_ns, struct error *e)
{
    int64_t now_ms = now_ns / NS_A_MS;
    try(check_tokens(h, step, tokens, n, e));
    land(h, step, now_ns);
    for (int i = 0; i < n;) {
        struct seq *q = &h->seqs[tokens[i].slot];
        uint64_t opened = h->opened[tokens[i].slot];
        if (!q->used || opened == 0 || step < opened) { // its sequence ended meanwhile
            h->n_late++;
            i++;
        } else if (q->score) {
            check(logits != NULL, "a scored sequence's logits did not come");
            i = take_scores(h, q, tokens, i, n, logits, now_ms);
        } else {
            take_token(h, q, &tokens[i++], now_ms);
        }
    }
    return OK;
}

// --- reports

// The text to be told now: whole characters, no more than a frame takes.
static struct wire_bytes fresh_text(const struct seq *q)
{
    size_t n = q->text.ready - q->text_reported;
    if (!q->stream || q->text.text.data == NULL || n == 0) return (struct wire_bytes){"", 0};
    const char *at = (const char *) q->text.text.data + q->text_reported;
    if (n > (size_t) STREAM_CHUNK_MAX) n = utf8_valid_prefix(at, (size_t) STREAM_CHUNK_MAX);
    return (struct wire_bytes){at, n};
}

static bool report_tokens(struct head *h, struct seq *q, int64_t now_ms)
{
    int n = q->n_known - q->n_prompt;
    struct wire_tokens t = {.key = q->key,
                            .offset = q->n_reported,
                            .text_offset = q->stream ? (int) q->text_reported : 0,
                            .ids = {q->ids + q->n_prompt + q->n_reported,
                                    (size_t) (n - q->n_reported) * sizeof *q->ids},
                            .text = fresh_text(q)};
    if (!h->events.tokens(h->events.arg, &t)) return false;
    q->n_reported = n;
    if (q->stream) q->text_reported += t.text.n;
    q->reported_ms = now_ms;
    return true;
}

// When the sequence's TOKENS are due; INT64_MAX: there is nothing to tell.
static int64_t report_due(const struct head *h, const struct seq *q)
{
    int most = q->stream ? STREAM_REPORT_TOKENS : h->options.report_tokens;
    int fresh = q->used ? q->n_known - q->n_prompt - q->n_reported : 0;
    bool text = q->used && q->stream && q->text.ready > q->text_reported;
    if (fresh == 0 && !text) return INT64_MAX;
    if (fresh >= most) return INT64_MIN;
    return q->reported_ms + (q->stream ? STREAM_REPORT_MS : h->options.report_ms);
}

int64_t head_report(struct head *h, int64_t now_ms, int64_t again_ms)
{
    int64_t next = INT64_MAX;
    for (int i = 0; i < h->options.limits.slots; i++) {
        struct seq *q = &h->seqs[i];
        bool waits = report_due(h, q) <= now_ms && !report_tokens(h, q, now_ms);
        // While nobody listens the loop need not turn for it all the time.
        int64_t due = waits ? now_ms + STREAM_REPORT_MS : report_due(h, q);
        if (due < next) next = due;
    }
    for (struct kept_result *r = h->kept; r != NULL; r = r->next) {
        if (r->sent_ms > 0 && now_ms - r->sent_ms < again_ms) continue;
        if (h->events.result(h->events.arg, r)) r->sent_ms = now_ms;
    }
    return next;
}

void head_report_again(struct head *h)
{
    for (int i = 0; i < h->options.limits.slots; i++) {
        struct seq *q = &h->seqs[i];
        q->n_reported = q->n_resumed;
        q->text_reported = 0;
    }
    for (struct kept_result *r = h->kept; r != NULL; r = r->next) r->sent_ms = 0;
}

void head_committed(struct head *h, const struct job_key *key)
{
    struct kept_result **at = find_kept(h, key), *r = *at;
    if (r == NULL) return;
    *at = r->next;
    h->n_kept--;
    free_kept(r);
}

int head_kv_used(const struct head *h)
{
    int n = 0;
    for (int i = 0; i < h->options.limits.slots; i++) {
        if (h->seqs[i].used) n += (h->sched.seqs[i].n_sent + KV_BLOCK_ROWS - 1) / KV_BLOCK_ROWS;
    }
    return n;
}

int head_list_running(const struct head *h, struct wire_running *to, int most)
{
    int n = 0;
    for (int i = 0; i < h->options.limits.slots && n < most; i++) {
        const struct seq *q = &h->seqs[i];
        if (q->used) to[n++] = (struct wire_running){q->key, q->n_known - q->n_prompt};
    }
    return n;
}

int head_list_kept(const struct head *h, struct job_key *to, int most)
{
    int n = 0;
    for (const struct kept_result *r = h->kept; r != NULL && n < most; r = r->next)
        to[n++] = r->key;
    return n;
}
