#include "tools/engine_options.h"

#include "kernels/devices.h"
#include "kernels/precision.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum status engine_flags_apply(const struct engine_flags *f, struct engine_options *o,
                               struct error *e)
{
    if (f->model == NULL) return error_set(e, ERR_INPUT, "bad_usage", "--model is needed");
    o->model = f->model;
    o->tp = (int) f->tp;
    try(options_layers(f->layers, f->pp, o->layers, &o->pp, e));
    if (strcmp(f->chunk, "auto") != 0) {
        char *end;
        long chunk = strtol(f->chunk, &end, 10);
        if (end == f->chunk || *end != 0 || chunk < 1 || chunk > STEP_ROWS_MAX) {
            return error_set(e, ERR_INPUT, "bad_usage", "--chunk wants auto or 1 to %d, not \"%s\"",
                             STEP_ROWS_MAX, f->chunk);
        }
        o->chunk = (int) chunk;
    }
    o->n_threads = (int) f->threads;
    o->coarse_sums = f->coarse_sums;
    o->memory_bytes = (uint64_t) f->device_memory;
    struct devices devices;
    try(devices_parse(f->device, &devices, e));
    if (strchr(f->device, ':') != NULL) {
        return error_set(e, ERR_INPUT, "bad_usage",
                         "--device wants cpu, cuda or cuda/M, not \"%s\"; --tp says how many ranks",
                         f->device);
    }
    o->backend = devices.backend;
    o->n_gpus = devices.n_gpus;
    try(kv_parse(f->kv, &o->fp8_kv, e));
    return precision_parse(f->precision, o->backend, &o->precision, e);
}

enum status engine_context(struct engine_options *o, int n_prompt, int64_t max_tokens,
                           struct error *e)
{
    struct model_config config;
    int64_t whole = n_prompt + max_tokens;
    try(model_config_load(&config, o->model, e));
    if (whole > config.max_position_embeddings) {
        return error_set(e, ERR_INPUT, "context_exceeded",
                         "%d prompt tokens and %lld to generate need %lld positions, but the model "
                         "has %d",
                         n_prompt, (long long) max_tokens, (long long) whole,
                         config.max_position_embeddings);
    }
    o->max_context = (int) whole;
    return OK;
}

static enum status append_id(struct token_ids *to, int32_t id, struct error *e)
{
    if (to->n == to->capacity) {
        int capacity = to->capacity > 0 ? 2 * to->capacity : 1024;
        int32_t *ids = realloc(to->ids, (size_t) capacity * sizeof *ids);
        if (ids == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for %d ids", capacity);
        to->ids = ids;
        to->capacity = capacity;
    }
    if (to->n == CONTEXT_MAX) {
        return error_set(e, ERR_LIMIT, "too_long", "more than %d token ids", CONTEXT_MAX);
    }
    to->ids[to->n++] = id;
    return OK;
}

// Decimal digits and nothing else, so that a float or a list with commas is refused, not cut.
static enum status read_words(FILE *f, const char *path, struct token_ids *to, struct error *e)
{
    int c = getc(f);
    for (;;) {
        while (isspace(c)) c = getc(f);
        if (c == EOF) break;
        int32_t id = 0;
        for (; c != EOF && !isspace(c); c = getc(f)) {
            if (isdigit(c)) id = 10 * id + (c - '0');
            if (!isdigit(c) || id >= MODEL_VOCAB_MAX) {
                return error_set(e, ERR_INPUT, "bad_tokens", "%s: word %d is no token id", path,
                                 to->n + 1);
            }
        }
        try(append_id(to, id, e));
    }
    if (ferror(f)) return error_set(e, ERR_IO, NULL, "%s: %s", path, strerror(errno));
    if (to->n == 0) return error_set(e, ERR_INPUT, "bad_tokens", "%s holds no token ids", path);
    return OK;
}

enum status read_tokens_file(const char *path, struct token_ids *to, struct error *e)
{
    bool standard = strcmp(path, "-") == 0;
    FILE *f = standard ? stdin : fopen(path, "r");
    if (f == NULL) return error_set(e, ERR_IO, NULL, "cannot read %s: %s", path, strerror(errno));
    enum status status = read_words(f, path, to, e);
    if (!standard) fclose(f);
    return status;
}
