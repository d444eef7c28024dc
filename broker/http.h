// A small HTTP server inside the broker's loop, for what only reads: GET and HEAD, answered at once
// and whole. Connections, their requests and the time they may take are bounded. The loop's thread.
// Knows nothing of what is answered. libmicrohttpd is seen by http.c alone.
#ifndef PENSTOCK_BROKER_HTTP_H
#define PENSTOCK_BROKER_HTTP_H

#include "common/limits.h"
#include "common/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct _zloop_t zloop_t;

struct http;

struct http_answer {
    int status;       // 200, ...
    const char *type; // Content-Type
    const void *body; // n bytes, copied
    size_t n;
    // Not 0: as long as this stays the same all get the copy that was made first, and the type with
    // it. It goes when the last one has read it.
    uint64_t version;
};

// What is at this path (without a query). `answer` comes as 404 without a body.
typedef void http_fn(void *arg, const char *path, struct http_answer *answer);

// Whether this can be listened to: PORT (of 127.0.0.1), IP:PORT or [IP]:PORT; port 0 is any free
// one. ERR_INPUT bad_usage.
enum status http_check(const char *address, struct error *e);

// Whether nobody else listens there now. Besides ERR_IO port_taken, cannot_listen.
enum status http_free(const char *address, struct error *e);

// Listens, and answers from the loop. Logs `event=http endpoint=ADDRESS:PORT`. ERR_INPUT bad_usage;
// ERR_IO port_taken, cannot_listen.
enum status http_create(struct http **self, zloop_t *loop, const char *address, http_fn *fn,
                        void *arg, struct error *e);

// Before the loop is destroyed.
void http_destroy(struct http **self);

// Call a few times a second: ends connections that take too long.
void http_tick(struct http *h);

// "127.0.0.1:9464", as bound.
const char *http_endpoint(const struct http *h);

#endif
