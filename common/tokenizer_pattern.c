#include "common/tokenizer_pattern.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

// Unicode's White_Space, which is what \s means; PCRE2's \s has U+180E as well.
static const char SPACE[] = "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}"
                            "\\x{2029}\\x{202f}\\x{205f}\\x{3000}";

struct translation {
    struct buffer *to;
    const char *pattern;
    size_t n, at;
    bool in_class;
    struct error *e;
};

static void put(struct translation *t, const char *text)
{
    buffer_append(t->to, text, strlen(text));
}

static bool follows(const struct translation *t, const char *text)
{
    size_t n = strlen(text);
    return t->n - t->at >= n && memcmp(t->pattern + t->at, text, n) == 0;
}

static enum status refuse(const struct translation *t, const char *what)
{
    return error_set(t->e, ERR_UNSUPPORTED, "unsupported_tokenizer",
                     "%s at byte %zu of the pattern \"%.*s\" is not supported", what, t->at,
                     t->n > 120 ? 120 : (int) t->n, t->pattern);
}

static enum status translate_escape(struct translation *t)
{
    if (t->at + 1 >= t->n) return refuse(t, "a backslash with nothing behind it");
    char c = t->pattern[t->at + 1];
    if (c == 's') {
        if (!t->in_class) put(t, "[");
        put(t, SPACE);
        if (!t->in_class) put(t, "]");
    } else if (c == 'S' && !t->in_class) {
        put(t, "[^");
        put(t, SPACE);
        put(t, "]");
    } else if (!isalnum((unsigned char) c) || strchr("pPdDnrtx", c) != NULL) {
        size_t length = 2;
        if (strchr("pPx", c) != NULL && t->at + 2 < t->n && t->pattern[t->at + 2] == '{') {
            const char *end = memchr(t->pattern + t->at, '}', t->n - t->at);
            if (end == NULL) return refuse(t, "a { without its }");
            length = (size_t) (end + 1 - t->pattern) - t->at;
        }
        buffer_append(t->to, t->pattern + t->at, length);
        t->at += length - 2;
    } else {
        char what[] = "the escape \\?";
        what[sizeof what - 2] = c;
        return refuse(t, what);
    }
    t->at += 2;
    return OK;
}

// What the two libraries read in two ways, outside of [...] and inside.
static const char *const OUTSIDE[] = {"^", "$", "{,", "}+", NULL};
static const char *const INSIDE[] = {"[", "&&", NULL};
// The groups that they read alike.
static const char *const GROUPS[] = {"(?:", "(?=",  "(?!",  "(?<=", "(?<!",
                                     "(?>", "(?i:", "(?i)", NULL};

static bool one_follows(const struct translation *t, const char *const *texts, const char **which)
{
    for (; *texts != NULL; texts++) {
        *which = *texts;
        if (follows(t, *texts)) return true;
    }
    return false;
}

enum status pattern_translate(struct buffer *to, const char *pattern, size_t n, struct error *e)
{
    struct translation t = {.to = to, .pattern = pattern, .n = n, .e = e};
    while (t.at < n) {
        char c = pattern[t.at];
        const char *which;
        if (c == '\\') {
            try(translate_escape(&t));
            continue;
        }
        if (one_follows(&t, t.in_class ? INSIDE : OUTSIDE, &which)) return refuse(&t, which);
        if (!t.in_class && follows(&t, "(?") && !one_follows(&t, GROUPS, &which)) {
            return refuse(&t, "this kind of group");
        }
        if (c == '[') t.in_class = true;
        if (c == ']') t.in_class = false;
        size_t length = c == '[' && t.at + 1 < n && pattern[t.at + 1] == '^' ? 2 : 1;
        buffer_append(to, pattern + t.at, length);
        t.at += length;
    }
    return buffer_check(to, "the pattern", e);
}
