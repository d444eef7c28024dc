#include "common/tokenizer_split.h"

#include "common/tokenizer_pattern.h"

#include <stdint.h>
#include <string.h>

enum { STACK_FIRST = 32 * 1024, PATTERN_MAX = 64 * 1024 };

static const size_t STACK_MOST = 16 * MIB; // for what JIT code must remember of its way

static enum status compile(struct splits *s, const struct buffer *pattern, struct error *e)
{
    int why;
    size_t at;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (context == NULL) return error_set(e, ERR_NOMEM, "no_memory", "no memory for a pattern");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF); // whatever the library was built with
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK; // JSON's strings are UTF-8
    pcre2_code *code =
        pcre2_compile(pattern->data, pattern->n, options, &why, &at, context);
    pcre2_compile_context_free(context);
    if (code == NULL) {
        PCRE2_UCHAR text[120];
        pcre2_get_error_message(why, text, sizeof text);
        return error_set(e, ERR_INPUT, "bad_tokenizer", "the pattern \"%.*s\" is malformed: %s",
                         pattern->n > 120 ? 120 : (int) pattern->n, (const char *) pattern->data,
                         (const char *) text);
    }
    // A system that grants no executable memory still splits, only slower.
    s->jit[s->n] = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0;
    s->code[s->n++] = code;
    return OK;
}

enum status splits_add(struct splits *s, const char *pattern, size_t n, struct error *e)
{
    if (s->n == TOKENIZER_SPLITS_MAX) {
        return error_set(e, ERR_LIMIT, "bad_tokenizer", "pre_tokenizer has more than %d splits",
                         TOKENIZER_SPLITS_MAX);
    }
    struct buffer translated;
    buffer_init(&translated, PATTERN_MAX);
    enum status status = pattern_translate(&translated, pattern, n, e);
    if (status == OK && translated.n == 0) {
        status = error_set(e, ERR_INPUT, "bad_tokenizer", "a pattern of pre_tokenizer is empty");
    }
    if (status == OK) status = compile(s, &translated, e);
    buffer_deinit(&translated);
    return status;
}

void splits_deinit(struct splits *s)
{
    for (int i = 0; i < s->n; i++) pcre2_code_free(s->code[i]);
    *s = (struct splits){0};
}

enum status split_scratch_init(struct split_scratch *s, struct error *e)
{
    s->match = pcre2_match_data_create(1, NULL);
    s->context = pcre2_match_context_create(NULL);
    s->stack = pcre2_jit_stack_create(STACK_FIRST, STACK_MOST, NULL);
    if (s->match == NULL || s->context == NULL) {
        split_scratch_deinit(s);
        return error_set(e, ERR_NOMEM, "no_memory", "no memory for the pre-split");
    }
    // Without JIT there is no such stack, and no need of one.
    if (s->stack != NULL) pcre2_jit_stack_assign(s->context, NULL, s->stack);
    return OK;
}

void split_scratch_deinit(struct split_scratch *s)
{
    pcre2_match_data_free(s->match);
    pcre2_match_context_free(s->context);
    pcre2_jit_stack_free(s->stack);
    *s = (struct split_scratch){0};
}

struct run {
    const struct splits *splits;
    struct split_scratch *scratch;
    split_piece *piece;
    void *arg;
    struct error *e;
};

// The next match from `at` on that is not empty; false if there is none.
static enum status next_match(const struct run *r, int split, const char *text, size_t n, size_t at,
                              size_t *begin, size_t *end)
{
    const pcre2_code *code = r->splits->code[split];
    PCRE2_SPTR subject = (PCRE2_SPTR) text;
    pcre2_match_data *match = r->scratch->match;
    int rc;
    if (r->splits->jit[split]) {
        rc = pcre2_jit_match(code, subject, n, at, PCRE2_NOTEMPTY, match, r->scratch->context);
    } else {
        rc = pcre2_match(code, subject, n, at, PCRE2_NOTEMPTY | PCRE2_NO_UTF_CHECK, match,
                         r->scratch->context);
    }
    *begin = *end = n;
    if (rc == PCRE2_ERROR_NOMATCH) return OK;
    if (rc < 0) {
        PCRE2_UCHAR why[120];
        pcre2_get_error_message(rc, why, sizeof why);
        return error_set(r->e, ERR_LIMIT, "pattern_limit",
                         "pattern %d of pre_tokenizer gives up on this text: %s", split,
                         (const char *) why);
    }
    *begin = pcre2_get_ovector_pointer(match)[0];
    *end = pcre2_get_ovector_pointer(match)[1];
    return OK;
}

static enum status split(const struct run *r, int level, const char *text, size_t n)
{
    if (n == 0) return OK;
    if (level == r->splits->n) return r->piece(r->arg, text, n, r->e);
    for (size_t at = 0; at < n;) {
        size_t begin, end;
        try(next_match(r, level, text, n, at, &begin, &end));
        try(split(r, level + 1, text + at, begin - at));
        try(split(r, level + 1, text + begin, end - begin));
        at = end;
    }
    return OK;
}

enum status splits_run(const struct splits *s, struct split_scratch *scratch, const char *text,
                       size_t n, split_piece *piece, void *arg, struct error *e)
{
    struct run r = {s, scratch, piece, arg, e};
    return split(&r, 0, text, n);
}
