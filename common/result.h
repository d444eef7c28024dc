// What became of a job: the msgpack map that the head encodes, the broker stores and clients read
// (schema: PROTOCOL.md). Any thread. Knows nothing of how it travels.
#ifndef PENSTOCK_COMMON_RESULT_H
#define PENSTOCK_COMMON_RESULT_H

#include "common/buffer.h"
#include "common/limits.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json_t; // jansson

enum result_status { RESULT_OK, RESULT_ERROR, RESULT_CANCELLED, RESULT_EXPIRED };
enum result_finish { RESULT_NO_FINISH, RESULT_STOP, RESULT_LENGTH };

// A token and its log-probability. `bytes` may end within a UTF-8 character; NULL without
// tokenizer.
struct result_token {
    int32_t id;
    float logprob;
    const char *bytes;
    size_t n_bytes;
};

struct result_logprob {
    struct result_token chosen;
    struct result_token *top; // (n_top) most likely first
    int n_top;
};

struct result {
    char id[JOB_ID_MAX + 1];
    char custom_id[JOB_CUSTOM_ID_MAX + 1]; // empty: none
    enum result_status status;
    enum result_finish finish_reason;
    const char *text; // UTF-8, not terminated; NULL: none (no tokenizer)
    size_t text_bytes;
    int32_t *tokens; // (n_tokens) generated, with the EOS that ended them
    int n_tokens;
    struct result_logprob *logprobs; // (n_logprobs) 0 or one a token
    int n_logprobs;
    int max_tokens; // in force: as given, or the default
    struct {
        int prompt, cached, completion; // tokens
    } usage;
    struct {
        uint64_t queued_ms, prefill_ms, decode_ms;
    } timing;
    int attempts; // made, this one included
    int resumed;  // tokens taken over from earlier attempts
    struct {
        char version[32], model[65], plan[65]; // hashes in hex; empty: unknown
    } engine;
    struct {
        char code[ERROR_CODE_SIZE]; // empty: no error
        char message[ERROR_TEXT_SIZE];
        bool retryable;
    } error;
    void *storage; // of the lists, after result_decode
};

// Appends the encoding. The caller keeps everything the result points to. ERR_INPUT bad_result if
// text is not UTF-8 or a field is out of its bounds, ERR_LIMIT too_large.
enum status result_encode(const struct result *r, struct buffer *to, struct error *e);

// `text` and token bytes point into `data`, which must outlive the result; the lists are
// allocated. Unknown keys are ignored. ERR_INPUT bad_msgpack, bad_result (names the field),
// ERR_NOMEM. Release with result_deinit, also after an error.
enum status result_decode(struct result *r, const void *data, size_t n, struct error *e);
void result_deinit(struct result *r);

// Adds what was done for the job before; beyond the bounds of a result the sums stand still.
void result_add_usage(struct result *r, uint64_t prompt, uint64_t cached, uint64_t completion);

// The same as JSON: new reference, NULL without memory. Fields that are none are null.
struct json_t *result_to_json(const struct result *r);

const char *result_status_name(enum result_status status);
const char *result_finish_name(enum result_finish finish); // NULL for RESULT_NO_FINISH

#endif
