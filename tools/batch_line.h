// One line of a batch: an OpenAI request, made into a job's message; and its answer, made into a
// line of the output or error file. Knows no files and no queue.
#ifndef PENSTOCK_TOOLS_BATCH_LINE_H
#define PENSTOCK_TOOLS_BATCH_LINE_H

#include "common/buffer.h"
#include "common/limits.h"
#include "common/result.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct batch_line {
    int64_t number;
    char job_id[JOB_ID_MAX + 1];            // batch id and number
    char custom_id[JOB_CUSTOM_ID_MAX + 1];  // empty: it could not be read
    char model[JOB_MODEL_MAX + 1];          // of the request; empty: none
    bool chat;                              // else a text completion
    struct buffer message;
};

// "ID-NUMBER".
void batch_job_id(char job_id[JOB_ID_MAX + 1], const char *batch_id, int64_t number);

// The line's number if job_id is of the batch, else 0.
int64_t batch_job_number(const char *job_id, const char *batch_id);

// Parses {custom_id, method, url, body}. *to is set as far as the line could be read, also after an
// error; release with batch_line_deinit. ERR_INPUT bad_line, bad_json; ERR_LIMIT too_large.
enum status batch_line_parse(struct batch_line *to, const char *text, size_t n,
                             const char *batch_id, int64_t number, struct error *e);
void batch_line_deinit(struct batch_line *line);

// The output line of a result that is ok: new reference, NULL without memory.
json_t *batch_answer(const struct batch_line *line, const struct result *r);

// The line of the error file for what failed.
json_t *batch_refusal(const struct batch_line *line, const char *code, const char *message);

#endif
