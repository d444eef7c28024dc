#include "tools/document_body.h"

#include "common/limits.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct document_flags document_flags_default(void)
{
    return (struct document_flags){.chunk_tokens = -1, .overlap_tokens = -1};
}

enum status document_flags_check(const struct document_flags *f, struct error *e)
{
    bool others = f->map != NULL || f->reduce != NULL || f->lines || f->chunk_tokens >= 0 ||
                  f->overlap_tokens >= 0 || f->separator != NULL;
    if (f->document == NULL && others) {
        return error_set(e, ERR_INPUT, "bad_usage", "--map, --reduce, --each-line, --chunk-tokens, "
                         "--overlap-tokens and --separator want --document FILE");
    }
    if (f->document == NULL || f->map != NULL) return OK;
    return error_set(e, ERR_INPUT, "bad_usage", "--document wants --map TEXT: what is asked of "
                     "each part, as in --map 'Summarise: {chunk}'");
}

static enum status read_file(const char *path, char **text, size_t *n, struct error *e)
{
    bool is_stdin = strcmp(path, "-") == 0;
    FILE *f = is_stdin ? stdin : fopen(path, "rb");
    if (f == NULL) return error_set(e, ERR_IO, NULL, "cannot open %s: %m", path);
    *text = malloc(JOB_BODY_MAX + 1);
    *n = *text != NULL ? fread(*text, 1, JOB_BODY_MAX + 1, f) : 0;
    bool failed = ferror(f) != 0;
    if (!is_stdin) fclose(f);
    if (*text == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for %s", path);
    if (failed) return error_set(e, ERR_IO, NULL, "cannot read %s", path);
    if (*n > (size_t) JOB_BODY_MAX) {
        return error_set(e, ERR_LIMIT, "too_large", "%s has more than %lld bytes; enqueue it in "
                         "several jobs", path, JOB_BODY_MAX);
    }
    return *n > 0 ? OK : error_set(e, ERR_INPUT, "bad_body", "%s is empty", path);
}

// Lines without their ends; empty ones are left out.
static json_t *lines_of(const char *text, size_t n)
{
    json_t *list = json_array();
    for (const char *at = text, *end = text + n; at < end;) {
        const char *newline = memchr(at, '\n', (size_t) (end - at));
        const char *stop = newline != NULL ? newline : end;
        size_t length = (size_t) (stop - at);
        if (length > 0 && at[length - 1] == '\r') length--;
        if (length > 0 && json_array_append_new(list, json_stringn(at, length)) != 0) {
            json_decref(list);
            return NULL;
        }
        at = newline != NULL ? newline + 1 : end;
    }
    return list;
}

static json_t *request(const char *text)
{
    return json_pack("{s:[{s:s, s:s}]}", "messages", "role", "user", "content", text);
}

enum status document_body(const struct document_flags *f, json_t **body, struct error *e)
{
    char *text = NULL;
    size_t n = 0;
    *body = NULL;
    enum status status = read_file(f->document, &text, &n, e);
    json_t *document = status != OK ? NULL : f->lines ? lines_of(text, n) : json_stringn(text, n);
    free(text);
    if (status != OK) return status;
    const char *separator = f->separator != NULL ? f->separator : f->lines ? "\n" : NULL;
    json_t *o = json_pack("{s:o*, s:o*, s:o*, s:s*}", "document", document, "map", request(f->map),
                          "reduce", f->reduce != NULL ? request(f->reduce) : NULL, "separator",
                          separator);
    bool whole = document != NULL && json_object_get(o, "map") != NULL &&
                 (f->reduce == NULL || json_object_get(o, "reduce") != NULL);
    if (!whole) {
        json_decref(o);
        return error_set(e, ERR_INPUT, "bad_body", "%s, --map or --reduce is not UTF-8, or holds a "
                         "zero byte", f->document);
    }
    if (f->chunk_tokens >= 0) {
        json_object_set_new(o, "chunk_tokens", json_integer(f->chunk_tokens));
    }
    if (f->overlap_tokens >= 0) {
        json_object_set_new(o, "overlap_tokens", json_integer(f->overlap_tokens));
    }
    *body = o;
    return OK;
}
