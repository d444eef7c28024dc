#include "tools/engine_options.h"

#include "kernels/precision.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum status engine_flags_apply(const struct engine_flags *f, struct engine_options *o,
                               struct error *e)
{
    int n = 0;
    if (f->model == NULL) return error_set(e, ERR_INPUT, "bad_usage", "--model is needed");
    o->model = f->model;
    o->tp = (int) f->tp;
    o->pp = (int) f->pp;
    if (f->layers != NULL) {
        try(options_list(f->layers, o->layers, PP_MAX, &n, e));
        o->pp = n;
    }
    if (strcmp(f->chunk, "auto") != 0) {
        try(options_list(f->chunk, &o->chunk, 1, &n, e));
        if (o->chunk < 1 || o->chunk > STEP_ROWS_MAX) {
            return error_set(e, ERR_INPUT, "bad_usage", "--chunk wants auto or 1 to %d, not \"%s\"",
                             STEP_ROWS_MAX, f->chunk);
        }
    }
    o->n_threads = (int) f->threads;
    o->memory_bytes = (uint64_t) f->device_memory;
    return precision_parse(f->precision, &o->precision, e);
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

static enum status read_words(FILE *f, const char *path, struct token_ids *to, struct error *e)
{
    char word[32];
    while (fscanf(f, "%31s", word) == 1) {
        char *end;
        errno = 0;
        long id = strtol(word, &end, 10);
        if (*end != 0 || errno != 0 || id < 0 || id >= MODEL_VOCAB_MAX) {
            return error_set(e, ERR_INPUT, "bad_tokens", "%s: word %d, \"%s\", is no token id",
                             path, to->n + 1, word);
        }
        try(append_id(to, (int32_t) id, e));
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
