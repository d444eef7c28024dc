#include "workers/brokers.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

// The next part of a list with commas; false at its end.
static bool next_part(const char **at, const char **part, size_t *n)
{
    if (*at == NULL) return false;
    *part = *at;
    *n = strcspn(*at, ",");
    *at = (*at)[*n] == ',' ? *at + *n + 1 : NULL;
    return true;
}

static bool is_endpoint(const char *part, size_t n)
{
    if (n > 6 && strncmp(part, "ipc://", 6) == 0) return true;
    return n > 6 && strncmp(part, "tcp://", 6) == 0 && memchr(part + 6, ':', n - 6) != NULL;
}

static enum status add(struct brokers *b, const char *part, size_t n, struct error *e)
{
    if (b->n == BROKERS_MAX) {
        return error_set(e, ERR_INPUT, "bad_usage", "--broker takes at most %d brokers",
                         BROKERS_MAX);
    }
    if (n < 1 || n > ENDPOINT_MAX) {
        return error_set(e, ERR_INPUT, "bad_usage",
                         "--broker wants endpoints of 1 to %d bytes between commas", ENDPOINT_MAX);
    }
    if (!is_endpoint(part, n)) {
        return error_set(e, ERR_INPUT, "bad_usage",
                         "--broker wants tcp://ADDRESS:PORT, not \"%.*s\"", (int) n, part);
    }
    char *to = b->endpoints[b->n];
    snprintf(to, sizeof b->endpoints[0], "%.*s", (int) n, part);
    for (int i = 0; i < b->n; i++) {
        if (strcmp(b->endpoints[i], to) != 0) continue;
        return error_set(e, ERR_INPUT, "bad_usage", "--broker names %s twice", to);
    }
    b->at[b->n++].endpoint = to;
    return OK;
}

enum status brokers_parse(struct brokers *b, const char *endpoints, struct error *e)
{
    const char *part;
    size_t n;
    *b = (struct brokers){0};
    while (next_part(&endpoints, &part, &n)) try(add(b, part, n, e));
    return OK;
}

enum status brokers_read_keys(struct brokers *b, const char *keys, struct error *e)
{
    const char *part;
    size_t n;
    int n_keys = 0;
    while (next_part(&keys, &part, &n)) {
        char text[PATH_MAX];
        if (n_keys == b->n) {
            return error_set(e, ERR_INPUT, "bad_usage", "--broker-key has more keys than --broker "
                             "has brokers");
        }
        snprintf(text, sizeof text, "%.*s", (int) n, part);
        try(curve_read_public(b->keys[n_keys++], text, e));
    }
    if (n_keys != 1 && n_keys != b->n) {
        return error_set(e, ERR_INPUT, "bad_usage",
                         "--broker-key has %d keys for %d brokers: give one for all, or one for "
                         "each", n_keys, b->n);
    }
    for (int i = 0; i < b->n; i++) b->at[i].key = b->keys[n_keys == 1 ? 0 : i];
    return OK;
}

const char *brokers_beyond_loopback(const struct brokers *b)
{
    for (int i = 0; i < b->n; i++) {
        if (!curve_is_local(b->endpoints[i])) return b->endpoints[i];
    }
    return NULL;
}
