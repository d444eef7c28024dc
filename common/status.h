// Status codes and the error record that travels with them: the one way anything reports a failure
// that has an outside cause (input, files, peers, limits). Any thread; no allocation. Bugs are not
// reported here: they end the program through check().
#ifndef PENSTOCK_COMMON_STATUS_H
#define PENSTOCK_COMMON_STATUS_H

#include <stdarg.h>
#include <stdbool.h>

enum status {
    OK = 0,
    ERR_INPUT,       // bytes or values from outside are wrong; never retried
    ERR_UNSUPPORTED, // well formed, but not something Penstock does
    ERR_LIMIT,       // a named limit was hit (common/limits.h)
    ERR_NOMEM,       // it does not fit in the memory that was granted
    ERR_IO,          // the operating system said no
    ERR_UNAVAILABLE, // a peer (Redis, broker, group) is away; try again
    ERR_TIMEOUT,     // a deadline passed
    ERR_ABORTED,     // somebody asked for the end
    ERR_STATE,       // not now: the object is in another state
};

enum { ERROR_CODE_SIZE = 32, ERROR_TEXT_SIZE = 480 };

// What went wrong: a stable code for programs (snake_case, e.g. "bad_msgpack") and one sentence for
// people that says what, where and what to do. Zero-initialised means no error.
struct error {
    enum status status;
    char code[ERROR_CODE_SIZE];
    char text[ERROR_TEXT_SIZE];
};

// Fills `e` (which may be NULL) and returns `status`, so that `return error_set(...)` reads well.
// `code` NULL takes the status' own name. Long texts are cut, never overflow. What the arguments
// point to may lie in *e.
enum status error_set(struct error *e, enum status status, const char *code, const char *format,
                      ...) __attribute__((format(printf, 4, 5)));

// Puts "prefix: " before the text that is there (to say which file, which field).
void error_prefix(struct error *e, const char *format, ...) __attribute__((format(printf, 2, 3)));

// The stable name of a status: "input", "limit", ...
const char *status_name(enum status status);

// Ends the program with file, line and sentence if `condition` is false: for bugs only, always on.
#define check(condition, ...)                                                                      \
    ((condition) ? (void) 0 : check_failed(__FILE__, __LINE__, #condition, " " __VA_ARGS__))

_Noreturn void check_failed(const char *file, int line, const char *condition, const char *format,
                            ...) __attribute__((format(printf, 4, 5)));

// Returns from the calling function with the status of `expression` unless it is OK.
#define try(expression)                                                                            \
    do {                                                                                           \
        enum status try_status_ = (expression);                                                    \
        if (try_status_ != OK) return try_status_;                                                 \
    } while (0)

#endif
