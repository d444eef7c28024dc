// A relay between the program that is tried and a Redis of this machine. It can do what cutting
// connections can't: let a push arrive, and lose its answer. A process of its own, since the checks
// wait for the program; one thread starts and stops it.
#ifndef PENSTOCK_TOOLS_CONFORMANCE_RELAY_H
#define PENSTOCK_TOOLS_CONFORMANCE_RELAY_H

#include "common/status.h"

#include <stdbool.h>
#include <sys/types.h>

struct conformance_relay {
    pid_t pid; // 0: none
    char url[64];
    int *lose; // shared with the process
};

enum status conformance_relay_start(struct conformance_relay *r, const char *url, struct error *e);
void conformance_relay_stop(struct conformance_relay *r);

// The next RPUSH reaches Redis; instead of its answer the connection ends.
void conformance_relay_lose(struct conformance_relay *r);
bool conformance_relay_lost(const struct conformance_relay *r); // it has come to that

#endif
