// Jobs that people write as JSON: {op, body, id, ...} with the keys of a job, or an OpenAI request
// body alone, whose op follows from what it has: messages, prompt or tokens.
#ifndef PENSTOCK_TOOLS_JOB_JSON_H
#define PENSTOCK_TOOLS_JOB_JSON_H

#include "common/job.h"
#include "common/status.h"

#include <jansson.h>

// Parses text that must be one object. ERR_INPUT bad_json.
enum status json_parse_object(json_t **object, const char *text, size_t n, struct error *e);

// The body within a job's object, or the object itself; borrowed. NULL: it has a body that is no
// object.
json_t *job_json_body(json_t *object);

// Fills `job` with what the object says; its meta and body point into `object` and *body_text,
// which the caller frees. Bounds are job_encode's. ERR_INPUT bad_job.
enum status job_from_json(struct job *job, json_t *object, char **body_text, struct error *e);

#endif
