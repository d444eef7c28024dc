// What a job's message asks of the model: decoded, checked, and tokenized. Read once when the job
// is taken in, to know its need, and again when it is claimed, to send its ids to a head. It is
// work for the pool's threads: a large prompt takes seconds.
#ifndef PENSTOCK_BROKER_PROMPT_H
#define PENSTOCK_BROKER_PROMPT_H

#include "broker/model.h"
#include "common/buffer.h"
#include "common/job.h"
#include "common/tokenizer.h"

struct prompt_limits {
    int max_context[MODELS_MAX]; // tokens of prompt and output
    int default_max_tokens; // where the body gives none
    int max_tokens;         // as admitted, whatever the default is now; 0: not admitted yet
};

struct prompt {
    struct job job; // points into the message; a cancel or a map_reduce has no more than this
    struct job_body body;
    int model;        // index of the one that it is for
    struct token_ids ids;
    int max_tokens;
    uint64_t need_blocks; // KV blocks of prompt and output
    char body_hash[JOB_HASH_SIZE];
};

// What a thread tokenizes with: one for each model, NULL where it has no tokenizer.
struct prompt_scratch {
    struct tokenizer_scratch *of[MODELS_MAX];
};

// model: the only one it will be used for; -1: all. Also after an error it is to be released.
enum status prompt_scratch_init(struct prompt_scratch *s, const struct models *models, int model,
                                struct error *e);
void prompt_scratch_deinit(struct prompt_scratch *s);

// model: as admitted; -1: the one that the job names, or the first. Errors of job_decode and
// job_body_parse; unknown_model, no_tokenizer, template_unknown (ERR_UNSUPPORTED); bad_token,
// prompt_too_long, context_exceeded (ERR_INPUT, with the numbers). Release with prompt_deinit, also
// after an error; p->job is then as far as it was read.
enum status prompt_read(struct prompt *p, const struct models *models, int model,
                        const struct prompt_limits *limits, const char *tenant,
                        const void *message, size_t n, const struct prompt_scratch *scratch,
                        struct error *e);
void prompt_deinit(struct prompt *p);

// KV blocks of so many tokens.
uint64_t prompt_blocks(int64_t n_tokens);

// Appends the result of a job that no group ran: status error, with why's code and sentence.
enum status prompt_refusal(const char *id, const char *custom_id, int attempts,
                           const struct error *why, struct buffer *to, struct error *e);

#endif
