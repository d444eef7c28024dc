// The Redis of `penstock conformance producer`: a server for this run alone, and connections to it
// or to another one; and what a client has read there, as MONITOR tells. One thread.
#ifndef PENSTOCK_TOOLS_CONFORMANCE_SERVER_H
#define PENSTOCK_TOOLS_CONFORMANCE_SERVER_H

#include "common/status.h"

#include <stdbool.h>
#include <sys/types.h>

struct redisContext;

// Keeps nothing.
struct conformance_server {
    pid_t pid; // 0: none
    char dir[256], url[64];
};

enum status conformance_server_start(struct conformance_server *s, struct error *e);
void conformance_server_stop(struct conformance_server *s);

enum status conformance_server_connect(const char *url, struct redisContext **c, struct error *e);

// From now on the commands of all connections are told to this one, which is of no other use.
enum status conformance_server_watch(const char *url, struct redisContext **c, struct error *e);

// Has a command come, up to wait_ms from now, that names all these words? wait_ms 0: only what is
// there already.
bool conformance_server_saw(struct redisContext *watch, const char *word, const char *other,
                            int wait_ms);

#endif
