#include "workers/seq.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool ends_sequence(const struct seq *q, const struct model_config *config, int32_t id)
{
    for (int i = 0; i < q->n_stop_ids; i++) {
        if (q->stop_ids[i] == id) return true;
    }
    for (int i = 0; i < config->n_eos_ids && !q->ignore_eos; i++) {
        if (config->eos_ids[i] == id) return true;
    }
    return false;
}

// The rules that end a sequence after its last known token, in order: a stop id or EOS (which has
// no text), a stop string, the count.
static enum status apply_rules(struct seq *q, const struct model_config *config, int32_t id,
                               enum result_finish *end, struct error *e)
{
    *end = RESULT_NO_FINISH;
    if (ends_sequence(q, config, id)) {
        *end = RESULT_STOP;
        return OK;
    }
    try(text_stream_token(&q->text, id, e));
    if (q->text.stopped) {
        *end = RESULT_STOP;
    } else if (q->n_known - q->n_prompt >= q->max_tokens) {
        *end = RESULT_LENGTH;
    }
    return OK;
}

static enum status take_logprobs(struct seq *q, struct error *e)
{
    if (q->sampling.n_logprobs < 0 || q->max_tokens == 0) return OK;
    size_t n = (size_t) q->max_tokens, width = 1 + (size_t) q->sampling.n_logprobs;
    q->logprobs = calloc(n * width, sizeof *q->logprobs);
    q->n_top = calloc(n, sizeof *q->n_top);
    if (q->logprobs == NULL || q->n_top == NULL) {
        return error_set(e, ERR_NOMEM, NULL, "no memory for the logprobs of %d tokens",
                         q->max_tokens);
    }
    return OK;
}

enum status seq_begin(struct seq *q, const struct wire_job *job, const struct model_config *config,
                      const struct tokenizer *tokenizer, int32_t *ids, int64_t now_ms,
                      enum result_finish *end, struct error *e)
{
    *q = (struct seq){.used = true,
                      .key = job->key,
                      .sampling = job->sampling,
                      .n_stop_ids = job->n_stop_ids,
                      .ignore_eos = job->ignore_eos,
                      .score = job->score,
                      .stream = job->stream,
                      .ids = ids,
                      .n_prompt = wire_ids_count(job->ids),
                      .n_resumed = wire_ids_count(job->resume),
                      .max_tokens = job->max_tokens,
                      .attempts = job->attempts,
                      .queued_ms = job->queued_ms,
                      .prior_prompt = job->prior_prompt,
                      .prior_cached = job->prior_cached,
                      .prior_completion = job->prior_completion,
                      .accepted_ms = now_ms,
                      .reported_ms = now_ms};
    *end = RESULT_NO_FINISH;
    snprintf(q->custom_id, sizeof q->custom_id, "%s", job->custom_id);
    memcpy(q->stop_ids, job->stop_ids, sizeof q->stop_ids);
    wire_ids_copy(job->ids, q->ids);
    wire_ids_copy(job->resume, q->ids + q->n_prompt);
    const char *stops[STOP_STRINGS_MAX];
    size_t stop_bytes[STOP_STRINGS_MAX];
    for (int i = 0; i < job->n_stops; i++) {
        stops[i] = job->stops[i].at;
        stop_bytes[i] = job->stops[i].n;
    }
    text_stream_init(&q->text, tokenizer, stops, stop_bytes, job->n_stops);
    q->n_known = q->n_prompt;
    enum status status = take_logprobs(q, e);
    for (int i = 0; status == OK && i < q->n_resumed && *end == RESULT_NO_FINISH; i++) {
        q->n_known++;
        status = apply_rules(q, config, q->ids[q->n_known - 1], end, e);
    }
    if (status != OK) {
        seq_end(q);
        return status;
    }
    q->n_reported = q->n_known - q->n_prompt;
    return OK;
}

static void keep_logprob(struct seq *q, const struct step_token *t)
{
    if (q->logprobs == NULL) return;
    int index = q->n_known - q->n_prompt - 1, most = q->sampling.n_logprobs;
    struct result_token *to = &q->logprobs[(size_t) index * (1 + (size_t) most)];
    int n = t->n_top < most ? t->n_top : most;
    to[0] = (struct result_token){.id = t->id, .logprob = t->logprob};
    for (int i = 0; i < n; i++) {
        to[1 + i] = (struct result_token){.id = t->top_id[i], .logprob = t->top_logprob[i]};
    }
    q->n_top[index] = n;
}

enum status seq_append(struct seq *q, const struct model_config *config,
                       const struct step_token *token, int64_t now_ms, enum result_finish *end,
                       struct error *e)
{
    if (q->first_ms == 0) q->first_ms = now_ms;
    q->ids[q->n_known++] = token->id;
    keep_logprob(q, token);
    return apply_rules(q, config, token->id, end, e);
}

static void name_bytes(const struct seq *q, struct result_token *t)
{
    bool special;
    if (q->text.tokenizer == NULL) return;
    t->bytes = tokenizer_bytes(q->text.tokenizer, t->id, &t->n_bytes, &special);
}

// One entry a token that was chosen here; resumed ones have none, since they were chosen elsewhere.
static struct result_logprob *list_logprobs(struct seq *q, int *n)
{
    int tokens = q->n_known - q->n_prompt;
    *n = 0;
    if (q->logprobs == NULL || q->n_resumed > 0) return NULL;
    struct result_logprob *list = calloc((size_t) tokens + 1, sizeof *list);
    for (int i = 0; list != NULL && i < tokens; i++) {
        struct result_token *t = &q->logprobs[(size_t) i * (1 + (size_t) q->sampling.n_logprobs)];
        for (int j = 0; j <= q->n_top[i]; j++) name_bytes(q, &t[j]);
        list[i] = (struct result_logprob){.chosen = t[0], .top = t + 1, .n_top = q->n_top[i]};
    }
    if (list != NULL) *n = tokens;
    return list;
}

static uint64_t span(int64_t from, int64_t to) { return to > from ? (uint64_t) (to - from) : 0; }

// What every result of the sequence says.
static struct result begin_result(const struct seq *q, enum result_status status,
                                  const char *model_hash, const char *plan_hash)
{
    int64_t first = q->first_ms > 0 ? q->first_ms : q->ended_ms;
    struct result r = {.status = status,
                       .max_tokens = q->max_tokens,
                       .usage = {.prompt = q->n_prompt, .completion = q->n_known - q->n_prompt},
                       .timing = {.queued_ms = q->queued_ms,
                                  .prefill_ms = span(q->accepted_ms, first),
                                  .decode_ms = span(first, q->ended_ms)},
                       .attempts = q->attempts,
                       .resumed = q->n_resumed};
    result_add_usage(&r, q->prior_prompt, q->prior_cached, q->prior_completion);
    snprintf(r.id, sizeof r.id, "%s", q->key.id);
    snprintf(r.custom_id, sizeof r.custom_id, "%s", q->custom_id);
    snprintf(r.engine.version, sizeof r.engine.version, "%s", PENSTOCK_VERSION);
    snprintf(r.engine.model, sizeof r.engine.model, "%s", model_hash);
    snprintf(r.engine.plan, sizeof r.engine.plan, "%s", plan_hash);
    return r;
}

static void set_error(struct result *r, const struct error *why)
{
    snprintf(r->error.code, sizeof r->error.code, "%s", why->code);
    snprintf(r->error.message, sizeof r->error.message, "%s", why->text);
    r->error.retryable = why->status == ERR_NOMEM;
}

enum status seq_result(struct seq *q, enum result_status status, enum result_finish finish,
                       const char *model_hash, const char *plan_hash, const struct error *why,
                       struct buffer *to, struct error *e)
{
    try(text_stream_finish(&q->text, e));
    struct result r = begin_result(q, status, model_hash, plan_hash);
    r.finish_reason = finish;
    r.text = q->text.tokenizer == NULL       ? NULL
             : q->text.text.data == NULL ? ""
                                             : (const char *) q->text.text.data;
    r.text_bytes = q->text.ready;
    r.tokens = q->ids + q->n_prompt;
    r.n_tokens = q->n_known - q->n_prompt;
    if (why != NULL) set_error(&r, why);
    r.logprobs = list_logprobs(q, &r.n_logprobs);
    enum status encoded = result_encode(&r, to, e);
    free(r.logprobs);
    return encoded;
}

enum status seq_failure(const struct seq *q, const char *model_hash, const char *plan_hash,
                        const struct error *why, struct buffer *to, struct error *e)
{
    struct result r = begin_result(q, RESULT_ERROR, model_hash, plan_hash);
    set_error(&r, why);
    return result_encode(&r, to, e);
}

void seq_end(struct seq *q)
{
    text_stream_deinit(&q->text);
    free(q->logprobs);
    free(q->n_top);
    *q = (struct seq){0};
}
