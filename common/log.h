// Log lines on stderr, one event a line: `t=... level=info who=broker event=ready port=7300`, or
// one JSON object a line. Any thread: a line is one write. A line beyond 2 KiB loses the ends of
// long values and whole fields, never its form. No allocation.
#ifndef PENSTOCK_COMMON_LOG_H
#define PENSTOCK_COMMON_LOG_H

#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

// Called once by main before threads start. `who` (static string) names the program or group in
// each line.
void log_init(const char *who, enum log_level least, bool json);

// "debug", "info", "warn" or "error". ERR_INPUT bad_usage.
enum status log_level_parse(const char *text, enum log_level *level, struct error *e);

// Whether a line of this level would be written.
bool log_enabled(enum log_level level);

// One field of a line. Use the macros below.
struct log_field {
    const char *key;
    enum { LOG_END, LOG_STR, LOG_INT, LOG_REAL } kind;
    const char *str;
    int64_t num;
    double real;
};

#define log_str(k, v) ((struct log_field){.key = (k), .kind = LOG_STR, .str = (v)})
#define log_int(k, v) ((struct log_field){.key = (k), .kind = LOG_INT, .num = (int64_t) (v)})
#define log_real(k, v) ((struct log_field){.key = (k), .kind = LOG_REAL, .real = (v)})

// log_line(LOG_INFO, "ready", log_int("port", p), log_str("model", name));
#define log_line(level, event, ...)                                                                \
    log_write((level), (event),                                                                    \
              (const struct log_field[]){__VA_ARGS__ __VA_OPT__(, ) {.kind = LOG_END}})

// Whether the terminal shows a bar (bars.h) on its present line: the next log line takes its place.
void log_overwrites(bool yes);

void log_write(enum log_level level, const char *event, const struct log_field *fields);

#endif
