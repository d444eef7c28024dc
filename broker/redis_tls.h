// TLS on a connection to Redis, for rediss:// URLs: OpenSSL judges the server's certificate and
// that it is for the host of the URL. Built where hiredis brings hiredis_ssl. Files come from the
// environment, as PEM: PENSTOCK_REDIS_CA (default: what this machine trusts), and for servers that
// ask who we are PENSTOCK_REDIS_CERT and PENSTOCK_REDIS_KEY; they are read at each connection. One
// thread for each connection. Knows nothing of what is said over it.
#ifndef PENSTOCK_BROKER_REDIS_TLS_H
#define PENSTOCK_BROKER_REDIS_TLS_H

#include "broker/redis.h"

#include <stdbool.h>

// Whether this build has it.
bool redis_tls_available(void);

// Call once a connection has been begun: a blocking one is ready then, of another one the first
// reads and writes go on with it. Does nothing for other URLs. ERR_INPUT bad_tls for files that
// cannot be used, ERR_UNAVAILABLE redis_unavailable if the server is not whom it should be.
enum status redis_tls_start(struct redisContext *c, const struct redis_url *url, struct error *e);

// What was wrong with the certificate of this thread's last connection; empty: nothing.
const char *redis_tls_why(void);

// A blocking connection by any URL: wait_ms for the connection, reply_ms for each reply. *c is
// NULL after an error.
enum status redis_connect(struct redisContext **c, const struct redis_url *url, int wait_ms,
                          int reply_ms, struct error *e);

#endif
