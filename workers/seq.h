// One sequence: a job in a slot of the head, from ACCEPT to its result. Plain state and the rules
// of when it ends; the head owns the slots. Leader's thread only. Knows no blocks, steps or
// sockets.
#ifndef PENSTOCK_WORKERS_SEQ_H
#define PENSTOCK_WORKERS_SEQ_H

#include "common/buffer.h"
#include "common/job_key.h"
#include "common/model_config.h"
#include "common/result.h"
#include "common/text_stream.h"
#include "common/wire.h"
#include "workers/step.h"

#include <stdbool.h>
#include <stdint.h>

struct seq {
    bool used;
    struct job_key key;
    char custom_id[JOB_CUSTOM_ID_MAX + 1];
    struct sampling sampling;
    int32_t stop_ids[STOP_IDS_MAX];
    int n_stop_ids;
    bool ignore_eos, score, stream;
    int32_t *ids;    // (max_context) prompt, resumed and chosen; the head's storage
    int n_prompt, n_known, n_resumed;
    int max_tokens;  // in all, resumed ones included
    int n_scored;    // score: rows whose logits have left
    struct text_stream text;
    int n_reported;  // tokens told to the broker
    size_t text_reported; // stream: bytes told, from the text's beginning on
    int64_t reported_ms;
    struct result_token *logprobs; // (max_tokens, 1 + n_logprobs); NULL unless asked for
    int *n_top;                    // (max_tokens)
    int attempts;
    uint64_t queued_ms;
    uint64_t prior_prompt, prior_cached, prior_completion;
    int64_t accepted_ms, first_ms, ended_ms; // first_ms: of the first token chosen here, or 0
};

// Takes the job over: copies ids into q->ids and rebuilds the text of resumed tokens; *end says
// whether those end it already. `ids` has room for max_context. ERR_NOMEM, ERR_LIMIT.
enum status seq_begin(struct seq *q, const struct wire_job *job, const struct model_config *config,
                      const struct tokenizer *tokenizer, int32_t *ids, int64_t now_ms,
                      enum result_finish *end, struct error *e);

// Takes a chosen token. *end is RESULT_NO_FINISH while the sequence goes on.
enum status seq_append(struct seq *q, const struct model_config *config,
                       const struct step_token *token, int64_t now_ms, enum result_finish *end,
                       struct error *e);

// What became of it, as msgpack; `why` unless it is RESULT_OK.
enum status seq_result(struct seq *q, enum result_status status, enum result_finish finish,
                       const char *model_hash, const char *plan_hash, const struct error *why,
                       struct buffer *to, struct error *e);

// The few bytes that say that there is no result, and why.
enum status seq_failure(const struct seq *q, const char *model_hash, const char *plan_hash,
                        const struct error *why, struct buffer *to, struct error *e);

void seq_end(struct seq *q);

#endif
