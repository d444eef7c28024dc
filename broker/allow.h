// The allow-list: public keys of the groups that may connect, one a file (*.pub) of a folder that
// may change while the broker runs, and the answers to libzmq's questions (ZAP, RFC 27) that follow
// from it. The loop's thread.
//
// A connection is judged when it is made. A key that is taken out later does not end it by itself:
// whoever reads frames asks allow_has for each.
#ifndef PENSTOCK_BROKER_ALLOW_H
#define PENSTOCK_BROKER_ALLOW_H

#include "broker/refusals.h"
#include "common/curve.h"
#include "common/limits.h"

#include <stdbool.h>
#include <stddef.h>

#define ALLOW_ENDPOINT "inproc://zeromq.zap.01" // a REP socket there, bound before any other

struct allow {
    const char *folder; // borrowed
    char keys[ALLOW_KEYS_MAX][CURVE_SIZE];
    int n, n_skipped; // files without a key
    bool unreadable;  // said already
    struct refusals refused; // a key that tries again and again is told of once
};

// Reads the folder. ERR_IO if that can't be done; files that hold no key are logged and skipped.
enum status allow_init(struct allow *a, const char *folder, struct error *e);

// Reads it again: true if the list has changed. A folder that can't be read keeps the last list.
bool allow_refresh(struct allow *a);

bool allow_has(const struct allow *a, const char *key);

// Answers one question if there is one: false if not.
bool allow_answer(struct allow *a, void *zap);

#endif
