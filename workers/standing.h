// Standing messages: one buffer of the group's arena as libzmq messages of every size that is ever
// sent of it, made once, so that sending a step allocates nothing. Each holds the arena until
// libzmq has let go of all its copies. The leader's thread. Knows no sockets and not what is sent.
//
// Whoever writes into the buffer must know that all have read the last message of it: a step's
// buffers are written again steps_in_flight steps later, when the step's tokens are back at the
// head, so every stage behind this one is done with them.
#ifndef PENSTOCK_WORKERS_STANDING_H
#define PENSTOCK_WORKERS_STANDING_H

#include "common/arena.h"

#include <stddef.h>
#include <zmq.h>

// Message i holds the first (i + 1) * unit bytes of the buffer, or with `doubling` the first
// unit << i.
struct standing {
    zmq_msg_t *messages; // (n)
    int n;
    size_t unit;
    bool doubling;
};

// Of the array of as many messages as cover `most` bytes.
size_t standing_bytes(size_t most, size_t unit, bool doubling);

// `storage`: standing_bytes. `buffer` inside `arena`: `most` bytes, rounded up to the last
// message's. ERR_NOMEM.
enum status standing_init(struct standing *s, void *storage, void *buffer, size_t most,
                          size_t unit, bool doubling, struct arena *arena, struct error *e);
void standing_deinit(struct standing *s);

// The smallest message that holds `bytes`; bytes > 0.
zmq_msg_t *standing_message(struct standing *s, size_t bytes);

#endif
