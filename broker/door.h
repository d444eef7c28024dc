// Where groups come in: the ROUTER, the address it is bound to, and whose keys open it. Beyond
// loopback it takes keys. The loop's thread.
#ifndef PENSTOCK_BROKER_DOOR_H
#define PENSTOCK_BROKER_DOOR_H

#include "broker/allow.h"
#include "common/limits.h"
#include "common/status.h"

#include <stdbool.h>

struct door_options {
    const char *listen; // tcp://127.0.0.1:PORT (PORT 0: any free one), ipc://PATH
    const char *key;    // secret file: groups connect with CURVE; NULL: plain
    const char *allow;  // folder of their public keys
    bool insecure;      // plain beyond loopback
};

struct door {
    void *zmq;    // context
    void *socket; // ROUTER
    void *zap;    // libzmq asks here whether a key may connect; NULL: plain
    struct allow allow;
    char endpoint[ENDPOINT_MAX + 1]; // once it listens
};

// ERR_INPUT bad_usage; not_loopback: beyond this machine it takes keys, or `insecure`.
enum status door_check(const struct door_options *o, struct error *e);

// The sockets, and the keys if there are any; nobody can connect yet.
enum status door_init(struct door *d, const struct door_options *o, struct error *e);

// ERR_IO port_taken, cannot_listen.
enum status door_listen(struct door *d, const struct door_options *o, struct error *e);

// Whose keys may speak, for those who hear them; NULL: plain, anyone may.
const struct allow *door_allow(const struct door *d);

// Closes all, once nobody uses the socket any more.
void door_deinit(struct door *d);

#endif
