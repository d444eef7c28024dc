#include "common/log.h"

#include "common/clock.h"
#include "common/utf8.h"

#include <math.h>
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

static _Atomic bool overwrites;

void log_overwrites(bool yes) { overwrites = yes; }

bool log_enabled(enum log_level level) { return level >= config.least; }

struct line {
    char bytes[LINE_BYTES];
    size_t n;
};

// A closing brace and the newline always fit.
static size_t room(const struct line *l) { return sizeof l->bytes - 2 - l->n; }

static void put(struct line *l, const char *s, size_t n)
{
    if (n > room(l)) n = room(l);
    memcpy(l->bytes + l->n, s, n);
    l->n += n;
}

static void put_str(struct line *l, const char *s) { put(l, s, strlen(s)); }

// Bytes of the UTF-8 character at s, 0 if it is none.
static size_t character(const char *s)
{
    for (size_t n = 1; n <= 4 && s[n - 1] != '\0'; n++)
        if (utf8_valid_prefix(s, n) == n) return n;
    return 0;
}

// In JSON's way. What doesn't fit is cut between characters, and the closing quote always fits.
static void put_quoted(struct line *l, const char *s)
{
    enum { LONGEST = 6 }; // \u001f
    put_str(l, "\"");
    for (size_t n; *s != '\0' && room(l) > LONGEST; s += n > 0 ? n : 1) {
        char escaped[LONGEST + 1];
        n = character(s);
        if (n == 0) {
            put_str(l, "?");
        } else if (*s == '"' || *s == '\\') {
            snprintf(escaped, sizeof escaped, "\\%c", *s);
            put_str(l, escaped);
        } else if ((unsigned char) *s < ' ') {
            snprintf(escaped, sizeof escaped, "\\u%04x", (unsigned) (unsigned char) *s);
            put_str(l, escaped);
        } else {
            put(l, s, n);
        }
    }
    put_str(l, "\"");
}

// Plain words stay bare in key=value lines.
static void put_value(struct line *l, const char *s)
{
    bool bare = !config.json && s[0] != '\0';
    for (const char *p = s; *p != '\0' && bare; p++) {
        bare = *p > ' ' && *p <= '~' && *p != '"' && *p != '=' && *p != '\\';
    }
    if (bare) put_str(l, s);
    else put_quoted(l, s);
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
    if (room(l) < strlen(f->key) + sizeof number) return; // left out whole: a line stays readable
    put_key(l, f->key);
    switch (f->kind) {
    case LOG_STR: put_value(l, f->str != NULL ? f->str : ""); break;
    case LOG_INT:
        snprintf(number, sizeof number, "%lld", (long long) f->num);
        put_str(l, number);
        break;
    case LOG_REAL:
        snprintf(number, sizeof number, "%.6g", f->real);
        if (config.json && !isfinite(f->real)) put_quoted(l, number);
        else put_str(l, number);
        break;
    case LOG_END: break;
    }
}

void log_write(enum log_level level, const char *event, const struct log_field *fields)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    if (!log_enabled(level)) return;
    struct line l = {.n = 0};
    if (overwrites) { // no other thread's, or one more empty line
        overwrites = false;
        ssize_t lost = write(STDERR_FILENO, "\r\033[K", 4);
        (void) lost;
    }
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
