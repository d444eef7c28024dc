#include "broker/exposition.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { PIECE_MAX = 512, PART_MAX = 128 };

static void put(struct buffer *to, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void put(struct buffer *to, const char *format, ...)
{
    char piece[PIECE_MAX];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(piece, sizeof piece, format, args);
    va_end(args);
    check(n >= 0 && n < PIECE_MAX, "a piece of %d bytes", n);
    buffer_append(to, piece, (size_t) n);
}

static void put_escaped(struct buffer *to, const char *text)
{
    for (; *text != '\0'; text++) {
        switch (*text) {
        case '\\': buffer_append(to, "\\\\", 2); break;
        case '"': buffer_append(to, "\\\"", 2); break;
        case '\n': buffer_append(to, "\\n", 2); break;
        default: buffer_append(to, text, 1);
        }
    }
}

// Name and labels; `more` is one behind the others, or NULL.
static void put_series(struct buffer *to, const char *name, const struct label *labels,
                       const struct label *more)
{
    const char *between = "{";
    put(to, "%s", name);
    for (int i = 0; labels[i].name != NULL; i++, between = ",") {
        check(i < EXPOSITION_LABELS_MAX);
        put(to, "%s%s=\"", between, labels[i].name);
        put_escaped(to, labels[i].value);
        put(to, "\"");
    }
    if (more != NULL) put(to, "%s%s=\"%s\"", between, more->name, more->value);
    if (more != NULL || labels[0].name != NULL) put(to, "}");
}

void exposition_family(struct buffer *to, const char *name, const char *type, const char *help)
{
    put(to, "# HELP %s %s\n", name, help);
    put(to, "# TYPE %s %s\n", name, type);
}

void exposition_count(struct buffer *to, const char *name, const struct label *labels,
                      uint64_t value)
{
    put_series(to, name, labels, NULL);
    put(to, " %" PRIu64 "\n", value);
}

void exposition_real(struct buffer *to, const char *name, const struct label *labels, double value)
{
    put_series(to, name, labels, NULL);
    put(to, " %.15g\n", value);
}

void exposition_histogram(struct buffer *to, const char *name, const struct label *labels,
                          const struct histogram *h, int first, int last)
{
    char part[PART_MAX], bound[32];
    uint64_t all = histogram_count(h, HISTOGRAM_BUCKETS - 1);
    snprintf(part, sizeof part, "%s_bucket", name);
    for (int i = first; i <= last; i++) {
        snprintf(bound, sizeof bound, "%.9g", (double) histogram_bound_us(i) / 1e6);
        put_series(to, part, labels, &(struct label){"le", bound});
        put(to, " %" PRIu64 "\n", histogram_count(h, i));
    }
    put_series(to, part, labels, &(struct label){"le", "+Inf"});
    put(to, " %" PRIu64 "\n", all);
    snprintf(part, sizeof part, "%s_sum", name);
    exposition_real(to, part, labels, (double) h->sum_us / 1e6);
    snprintf(part, sizeof part, "%s_count", name);
    exposition_count(to, part, labels, all);
}
