// Jobs as producers write them: one msgpack map in an inbox (schema: PROTOCOL.md), decoded in
// place, and its body, an OpenAI request body in msgpack or JSON. Any thread. Knows neither Redis
// nor the model: chat templates, tokenizing, context and vocabulary bounds are checked by others.
#ifndef PENSTOCK_COMMON_JOB_H
#define PENSTOCK_COMMON_JOB_H

#include "common/buffer.h"
#include "common/limits.h"
#include "common/sampling.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json_t; // jansson

enum job_op { JOB_CHAT, JOB_COMPLETION, JOB_TOKENS, JOB_MAP_REDUCE, JOB_CANCEL };
enum job_body_form { JOB_BODY_NONE, JOB_BODY_MAP, JOB_BODY_JSON };

// Points into the message; not terminated.
struct job_text {
    const char *at;
    size_t n;
};

struct job {
    char id[JOB_ID_MAX + 1];
    enum job_op op;
    char model[JOB_MODEL_MAX + 1]; // empty: the configured one
    int class;                     // 0 (first) .. JOB_CLASSES - 1
    int64_t at_ms;                 // not before, Unix time; 0: at once
    int64_t deadline_ms;           // drop-dead time, Unix time; 0: none
    int64_t ttl_ms;                // life of the result; RESULT_TTL_MS if absent
    int attempts;                  // 1..JOB_ATTEMPTS_MAX; JOB_ATTEMPTS_DEFAULT if absent
    bool stream;
    char custom_id[JOB_CUSTOM_ID_MAX + 1]; // empty: none
    char batch[JOB_BATCH_MAX + 1];         // empty: none
    int n_meta;
    struct {
        struct job_text key, value;
    } meta[JOB_META_MAX];
    enum job_body_form body_form; // JOB_BODY_NONE only for JOB_CANCEL
    struct job_text body;         // its bytes, <= JOB_BODY_MAX: a msgpack map, or JSON text
};

// Decodes one inbox message; `job` points into `data`, which must outlive it, and owns nothing.
// Unknown keys are ignored. ERR_INPUT: bad_msgpack, bad_job (names the field); ERR_LIMIT too_large.
// The body's own fields are checked by job_body_parse.
enum status job_decode(struct job *job, const void *data, size_t n, struct error *e);

// The id and operation of a message that may be anything: so that dead letters have a name. False
// if no valid id can be read; *op (may be NULL) is JOB_CHAT if that cannot be read.
bool job_id_peek(const void *data, size_t n, char id[JOB_ID_MAX + 1], enum job_op *op);

// True for 1..64 characters of [A-Za-z0-9_-].
bool job_id_ok(const char *id, size_t n);

const char *job_op_name(enum job_op op);

// Appends the message of a job, as a producer writes it. `job->body` is JSON text or a msgpack map
// by its form; fields at their defaults are left out. ERR_INPUT bad_job, ERR_LIMIT too_large.
enum status job_encode(const struct job *job, struct buffer *to, struct error *e);

// A job with every field at its default, for producers and tests.
struct job job_default(void);

// --- the body

struct job_body {
    struct json_t *messages; // JOB_CHAT: a non-empty array, for chat_parse_messages; else NULL
    const char *prompt;      // JOB_COMPLETION with text, terminated; else NULL
    size_t prompt_bytes;
    int32_t *ids;            // JOB_TOKENS, or JOB_COMPLETION with ids: 0 <= id < MODEL_VOCAB_MAX
    int n_ids;
    int max_tokens;          // 0: not given
    struct sampling sampling; // checked; seed as given or job_seed(tenant, id)
    bool seed_given;
    int n_stops;
    const char *stops[STOP_STRINGS_MAX]; // terminated
    size_t stop_bytes[STOP_STRINGS_MAX];
    int n_stop_ids;
    int32_t stop_ids[STOP_IDS_MAX];
    bool ignore_eos;
    struct json_t *root; // holds what the pointers above point to, except ids
};

// Parses the body of a job that is a chat, a completion or tokens. Fields that are absent or null
// take OpenAI's defaults (temperature 1, top_p 1). Unknown fields are ignored; those that ask for
// something which Penstock does not do (n > 1, tools, response_format, ...) are refused by name.
// ERR_INPUT bad_body or bad_sampling (names the field), ERR_UNSUPPORTED unsupported, ERR_LIMIT
// too_large, ERR_NOMEM. Release with job_body_deinit, also after an error.
enum status job_body_parse(struct job_body *body, const struct job *job, const char *tenant,
                           struct error *e);
void job_body_deinit(struct job_body *body);

// The seed of a job that gives none: XXH3-64 of tenant, a zero byte and id, so that a replay draws
// the same numbers.
uint64_t job_seed(const char *tenant, const char *id);

enum { JOB_HASH_SIZE = 33 };

// XXH3-128 in hex of what the job asks for: op, model, and the parsed body in a canonical order.
// Two messages with the same id and the same hash are duplicates, whatever the order of their keys,
// msgpack or JSON. A seed that was not given does not count; class, times and meta don't either.
// ERR_NOMEM.
enum status job_body_hash(const struct job *job, const struct job_body *body,
                          char hash[JOB_HASH_SIZE], struct error *e);

#endif
