// The brokers of a group as its flags give them: endpoints and public keys, separated by commas.
// Any thread; knows no sockets.
#ifndef PENSTOCK_WORKERS_BROKERS_H
#define PENSTOCK_WORKERS_BROKERS_H

#include "workers/control.h"

struct brokers {
    struct control_broker at[BROKERS_MAX]; // points into what follows
    int n;
    char endpoints[BROKERS_MAX][ENDPOINT_MAX + 1];
    char keys[BROKERS_MAX][CURVE_SIZE];
};

// ERR_INPUT bad_usage: none, too many, one too long, one twice, or what is
// no endpoint.
enum status brokers_parse(struct brokers *b, const char *endpoints, struct error *e);

// One key (or its file) for all of them, or one for each. ERR_INPUT bad_usage, and as
// curve_read_public.
enum status brokers_read_keys(struct brokers *b, const char *keys, struct error *e);

// The first endpoint that can be reached from other machines; NULL: none.
const char *brokers_beyond_loopback(const struct brokers *b);

#endif
