#include "common/log.h"

#include "common/clock.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LINE_BYTES = 2048 };

static struct {
    const char *who;
    enum log_level least;
    bool json;
} config = {"penstock", LOG_INFO, false};

void log_init(const char *who, enum log_level least, bool json)
{
    config.who = who;
    config.least = least;
    config.json = json;
}

enum status log_level_parse(const char *text, enum log_level *level, struct error *e)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    for (int i = LOG_DEBUG; i <= LOG_ERROR; i++) {
        if (strcmp(text, names[i]) != 0) continue;
        *level = (enum log_level) i;
        return OK;
    }
    return error_set(e, ERR_INPUT, "bad_usage", "--log-level wants debug, info, warn or error, not "
                     "\"%s\"", text);
}

bool log_enabled(enum log_level level) { return level >= config.least; }

struct line {
    char bytes[LINE_BYTES];
    size_t n;
};

static void put(struct line *l, const char *s, size_t n)
{
    size_t room = sizeof l->bytes - 2 - l->n; // a closing brace and the newline always fit
    if (n > room) n = room;
    memcpy(l->bytes + l->n, s, n);
    l->n += n;
}

static void put_str(struct line *l, const char *s) { put(l, s, strlen(s)); }

// Quotes `s` in JSON's way; plain words stay bare in key=value lines.
static void put_value(struct line *l, const char *s)
{
    bool bare = !config.json && s[0] != '\0';
    for (const char *p = s; *p != '\0' && bare; p++) {
        bare = (unsigned char) *p > ' ' && *p != '"' && *p != '=' && *p != '\\';
    }
    if (bare) {
        put_str(l, s);
        return;
    }
    put_str(l, "\"");
    for (const char *p = s; *p != '\0'; p++) {
        char escaped[8];
        if (*p == '"' || *p == '\\') {
            snprintf(escaped, sizeof escaped, "\\%c", *p);
            put_str(l, escaped);
        } else if ((unsigned char) *p < ' ') {
            snprintf(escaped, sizeof escaped, "\\u%04x", (unsigned) (unsigned char) *p);
            put_str(l, escaped);
        } else {
            put(l, p, 1);
        }
    }
    put_str(l, "\"");
}

static void put_key(struct line *l, const char *key)
{
    if (config.json) {
        put_str(l, l->n > 1 ? ",\"" : "\"");
        put_str(l, key);
        put_str(l, "\":");
    } else {
        if (l->n > 0) put_str(l, " ");
        put_str(l, key);
        put_str(l, "=");
    }
}

static void put_field(struct line *l, const struct log_field *f)
{
    char number[40];
    put_key(l, f->key);
    switch (f->kind) {
    case LOG_STR: put_value(l, f->str != NULL ? f->str : ""); break;
    case LOG_INT:
        snprintf(number, sizeof number, "%lld", (long long) f->num);
        put_str(l, number);
        break;
    case LOG_REAL:
        snprintf(number, sizeof number, "%.6g", f->real);
        put_str(l, number);
        break;
    case LOG_END: break;
    }
}

void log_write(enum log_level level, const char *event, const struct log_field *fields)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    if (!log_enabled(level)) return;
    struct line l = {.n = 0};
    if (config.json) put_str(&l, "{");
    put_field(&l, &log_int("t", clock_wall_ms()));
    put_field(&l, &log_str("level", names[level]));
    put_field(&l, &log_str("who", config.who));
    put_field(&l, &log_str("event", event));
    for (const struct log_field *f = fields; f->kind != LOG_END; f++) put_field(&l, f);
    if (config.json) l.bytes[l.n++] = '}';
    l.bytes[l.n++] = '\n';
    // A log that cannot be written has nowhere to complain.
    ssize_t ignored = write(STDERR_FILENO, l.bytes, l.n);
    (void) ignored;
}
