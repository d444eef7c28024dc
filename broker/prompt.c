#include "broker/prompt.h"

#include "common/chat.h"
#include "common/mpwalk.h"
#include "common/result.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum status find_model(int *to, const struct models *m, const struct job *job,
                              struct error *e)
{
    char served[ERROR_TEXT_SIZE / 2];
    *to = models_find(m, job->model);
    if (*to >= 0) return OK;
    models_list(m, false, served, sizeof served);
    return error_set(e, ERR_INPUT, "unknown_model",
                     "the model \"%.128s\" is not served here; what is: %s; a job that names none "
                     "gets the first", job->model, served);
}

// --- ids

static enum status add_id(struct token_ids *to, int32_t id, struct error *e)
{
    int32_t *ids = realloc(to->ids, (size_t) (to->n + 1) * sizeof *ids);
    if (ids == NULL) return error_set(e, ERR_NOMEM, "no_memory", "no memory for a prompt's ids");
    to->ids = ids;
    to->capacity = to->n + 1;
    to->ids[to->n++] = id;
    return OK;
}

// The text of a completion, special strings and all; BOS goes first unless the text begins with it.
static enum status encode_text(struct prompt *p, const struct model *m,
                               struct tokenizer_scratch *scratch, struct error *e)
{
    int32_t bos = m->config.bos_id;
    if (bos >= 0) try(add_id(&p->ids, bos, e));
    try(tokenizer_encode(m->tokenizer, scratch, p->body.prompt, p->body.prompt_bytes, true, &p->ids,
                         e));
    if (bos < 0 || p->ids.n < 2 || p->ids.ids[1] != bos) return OK;
    memmove(p->ids.ids, p->ids.ids + 1, (size_t) --p->ids.n * sizeof *p->ids.ids);
    return OK;
}

static enum status check_ids(const struct prompt *p, const struct model *m, struct error *e)
{
    for (int i = 0; i < p->ids.n; i++) {
        if (p->ids.ids[i] >= 0 && p->ids.ids[i] < m->config.vocab_size) continue;
        return error_set(e, ERR_INPUT, "bad_token", "id %d at index %d is not in the vocabulary "
                         "of %d", p->ids.ids[i], i, m->config.vocab_size);
    }
    if (p->ids.n > 0) return OK;
    return error_set(e, ERR_INPUT, "bad_body", "the prompt has no tokens");
}

static enum status make_ids(struct prompt *p, const struct model *m,
                            struct tokenizer_scratch *scratch, struct error *e)
{
    struct job_body *body = &p->body;
    if (body->ids != NULL) { // as they are
        p->ids = (struct token_ids){.ids = body->ids, .n = body->n_ids, .capacity = body->n_ids};
        body->ids = NULL;
        body->n_ids = 0;
        return check_ids(p, m, e);
    }
    if (m->tokenizer == NULL) {
        return error_set(e, ERR_UNSUPPORTED, "no_tokenizer",
                         "the model has no tokenizer.json: send ids (op tokens), not text");
    }
    if (body->messages != NULL) {
        try(chat_encode(m->chat, m->tokenizer, scratch, body->messages, &p->ids, e));
    } else {
        try(encode_text(p, m, scratch, e));
    }
    return check_ids(p, m, e);
}

// --- limits

uint64_t prompt_blocks(int64_t n_tokens)
{
    return (uint64_t) ((n_tokens + KV_BLOCK_ROWS - 1) / KV_BLOCK_ROWS);
}

static enum status set_need(struct prompt *p, const struct prompt_limits *limits, struct error *e)
{
    int most = limits->max_context[p->model], room = most - p->ids.n;
    if (room < 1) {
        return error_set(e, ERR_INPUT, "prompt_too_long",
                         "the prompt has %d tokens; prompt and output together may have %d",
                         p->ids.n, most);
    }
    bool given = limits->max_tokens > 0 || p->body.max_tokens > 0;
    p->max_tokens = limits->max_tokens > 0     ? limits->max_tokens
                    : p->body.max_tokens > 0 ? p->body.max_tokens
                                             : limits->default_max_tokens;
    if (!given && p->max_tokens > room) p->max_tokens = room;
    if (p->max_tokens > room) {
        return error_set(e, ERR_INPUT, "context_exceeded",
                         "the prompt has %d tokens and max_tokens is %d: together %lld, but %d is "
                         "the limit",
                         p->ids.n, p->max_tokens, (long long) p->ids.n + p->max_tokens, most);
    }
    p->need_blocks = prompt_blocks((int64_t) p->ids.n + p->max_tokens);
    return OK;
}

// --- the whole

enum status prompt_scratch_init(struct prompt_scratch *s, const struct models *models, int model,
                                struct error *e)
{
    *s = (struct prompt_scratch){0};
    for (int i = 0; i < models->n; i++) {
        const struct tokenizer *t = models->at[i].tokenizer;
        if (t == NULL || (model >= 0 && model != i)) continue;
        try(tokenizer_scratch_create(&s->of[i], t, e));
    }
    return OK;
}

void prompt_scratch_deinit(struct prompt_scratch *s)
{
    for (int i = 0; i < MODELS_MAX; i++) {
        if (s->of[i] != NULL) tokenizer_scratch_destroy(&s->of[i]);
    }
}

enum status prompt_read(struct prompt *p, const struct models *models, int model,
                        const struct prompt_limits *limits, const char *tenant,
                        const void *message, size_t n, const struct prompt_scratch *scratch,
                        struct error *e)
{
    *p = (struct prompt){.model = model};
    try(job_decode(&p->job, message, n, e));
    if (p->job.op == JOB_CANCEL) return OK;
    if (model < 0) try(find_model(&p->model, models, &p->job, e));
    if (p->job.op == JOB_MAP_REDUCE) return OK;
    try(job_body_parse(&p->body, &p->job, tenant, e));
    try(job_body_hash(&p->job, &p->body, p->body_hash, e));
    try(make_ids(p, &models->at[p->model], scratch->of[p->model], e));
    return set_need(p, limits, e);
}

void prompt_deinit(struct prompt *p)
{
    job_body_deinit(&p->body);
    token_ids_deinit(&p->ids);
    *p = (struct prompt){0};
}

enum status prompt_refusal(const char *id, const char *custom_id, int attempts,
                           const struct error *why, struct buffer *to, struct error *e)
{
    struct result r = {.status = RESULT_ERROR, .attempts = attempts};
    snprintf(r.id, sizeof r.id, "%s", id);
    snprintf(r.custom_id, sizeof r.custom_id, "%s", custom_id);
    snprintf(r.error.code, sizeof r.error.code, "%s", why->code);
    // A sentence that was cut may end within a character.
    int n_text = (int) utf8_valid_prefix(why->text, strlen(why->text));
    snprintf(r.error.message, sizeof r.error.message, "%.*s", n_text, why->text);
    snprintf(r.engine.version, sizeof r.engine.version, "%s", PENSTOCK_VERSION);
    return result_encode(&r, to, e);
}
