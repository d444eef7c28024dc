// CURVE key pairs of brokers and groups, as files: made, written, read. Any thread, but keys are
// read at start. Knows nothing of connections; who is allowed is the broker's (broker/allow.h).
//
// A secret file (NAME.key, mode 0600) has the line `secret = KEY`, a public one (NAME.pub) the line
// `public = KEY`, where KEY is 40 characters of Z85. Empty lines and those that begin with # are
// remarks.
#ifndef PENSTOCK_COMMON_CURVE_H
#define PENSTOCK_COMMON_CURVE_H

#include "common/status.h"

#include <stdbool.h>

enum { CURVE_TEXT = 40, CURVE_SIZE = CURVE_TEXT + 1 }; // Z85 of 32 bytes

struct curve_pair {
    char public_key[CURVE_SIZE], secret_key[CURVE_SIZE];
};

// A fresh pair. ERR_UNSUPPORTED no_curve if libzmq has none.
enum status curve_make(struct curve_pair *p, struct error *e);

// Writes FOLDER/NAME.key (0600) and FOLDER/NAME.pub. ERR_INPUT key_exists: neither is overwritten.
enum status curve_write(const struct curve_pair *p, const char *folder, const char *name,
                        struct error *e);

// The pair of a secret file; its public key is computed. ERR_INPUT key_readable if others may read
// the file, bad_key; ERR_IO.
enum status curve_read_secret(struct curve_pair *p, const char *path, struct error *e);

// The key of a public file, or the key itself. ERR_INPUT bad_key, ERR_IO.
enum status curve_read_public(char key[CURVE_SIZE], const char *path_or_key, struct error *e);

// Of an open ZeroMQ socket, before it binds or connects: `p` is its identity. server_key NULL: it
// is the server.
enum status curve_apply(void *socket, const struct curve_pair *p, const char *server_key,
                        struct error *e);

// Whether an endpoint or address stays on this machine: ipc, inproc, 127.x, localhost, [::1].
bool curve_is_local(const char *endpoint);

#endif
