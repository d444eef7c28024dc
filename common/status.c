#include "common/status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *status_name(enum status status)
{
    static const char *const names[] = {
        [OK] = "ok",
        [ERR_INPUT] = "input",
        [ERR_UNSUPPORTED] = "unsupported",
        [ERR_LIMIT] = "limit",
        [ERR_NOMEM] = "no_memory",
        [ERR_IO] = "io",
        [ERR_UNAVAILABLE] = "unavailable",
        [ERR_TIMEOUT] = "timeout",
        [ERR_ABORTED] = "aborted",
        [ERR_STATE] = "state",
    };
    return (size_t) status < sizeof names / sizeof *names ? names[status] : "unknown";
}

enum status error_set(struct error *e, enum status status, const char *code, const char *format,
                      ...)
{
    if (e == NULL) return status;
    struct error made = {.status = status}; // apart, since the arguments may lie in *e
    snprintf(made.code, sizeof made.code, "%s", code != NULL ? code : status_name(status));
    va_list args;
    va_start(args, format);
    vsnprintf(made.text, sizeof made.text, format, args);
    va_end(args);
    *e = made;
    return status;
}

void error_prefix(struct error *e, const char *format, ...)
{
    if (e == NULL) return;
    char old[ERROR_TEXT_SIZE];
    memcpy(old, e->text, sizeof old);
    va_list args;
    va_start(args, format);
    int n = vsnprintf(e->text, sizeof e->text, format, args);
    va_end(args);
    if (n < 0 || (size_t) n >= sizeof e->text - 3) return;
    char *to = e->text + n;
    size_t room = sizeof e->text - (size_t) n - 3, length = strnlen(old, room);
    memcpy(to, ": ", 2);
    memcpy(to + 2, old, length);
    to[2 + length] = 0;
}

_Noreturn void check_failed(const char *file, int line, const char *condition, const char *format,
                            ...)
{
    fprintf(stderr, "penstock: bug at %s:%d: %s is false", file, line, condition);
    if (format[1] != 0) {
        fputs(":", stderr);
        va_list args;
        va_start(args, format);
        vfprintf(stderr, format, args);
        va_end(args);
    }
    fputc('\n', stderr);
    abort();
}
