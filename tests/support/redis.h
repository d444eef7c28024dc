// A redis-server for one test: its own directory, a unix socket and a free TCP port, the safe
// settings. It starts, kills and stops only the process it started.
#ifndef PENSTOCK_TESTS_SUPPORT_REDIS_H
#define PENSTOCK_TESTS_SUPPORT_REDIS_H

#include "tests/support/folder.h"

#include <sys/types.h>

struct redisContext;

struct test_redis {
    pid_t pid; // 0: not running
    int port;
    char dir[FOLDER_SIZE], socket[96];
    char url[128];     // of the unix socket
    char tcp_url[128]; // of the port
    char options[512]; // further options of redis-server, kept over restarts
};

// `options` (NULL: none) follow the safe ones and so overrule them, e.g. "--appendfsync everysec".
void test_redis_start(struct test_redis *r, const char *options);

// Starts it again on the same data, socket and port.
void test_redis_restart(struct test_redis *r);

// SIGKILL, and waits until it is gone.
void test_redis_kill(struct test_redis *r);

// SIGKILL and removes the directory.
void test_redis_stop(struct test_redis *r);

// A blocking connection. The caller frees it.
struct redisContext *test_redis_connect(const struct test_redis *r);

#endif
