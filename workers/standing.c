#include "workers/standing.h"

static size_t size_of(size_t unit, bool doubling, int i)
{
    return doubling ? unit << i : unit * ((size_t) i + 1);
}

// Of the smallest message that holds `bytes`.
static int index_of(size_t bytes, size_t unit, bool doubling)
{
    if (!doubling) return bytes > 0 ? (int) ((bytes - 1) / unit) : 0;
    int i = 0;
    while (unit << i < bytes) i++;
    return i;
}

static int count_of(size_t most, size_t unit, bool doubling)
{
    return index_of(most, unit, doubling) + 1;
}

size_t standing_bytes(size_t most, size_t unit, bool doubling)
{
    return (size_t) count_of(most, unit, doubling) * sizeof(zmq_msg_t);
}

// The last copy of one message is closed; in whichever thread of libzmq that happens.
static void let_go(void *data, void *arena)
{
    (void) data;
    arena_release(arena);
}

enum status standing_init(struct standing *s, void *storage, void *buffer, size_t most,
                          size_t unit, bool doubling, struct arena *arena, struct error *e)
{
    *s = (struct standing){.messages = storage, .unit = unit, .doubling = doubling};
    int count = count_of(most, unit, doubling);
    for (; s->n < count; s->n++) {
        if (zmq_msg_init_data(&s->messages[s->n], buffer, size_of(unit, doubling, s->n), let_go,
                              arena) != 0) {
            standing_deinit(s);
            return error_set(e, ERR_NOMEM, NULL, "no memory for %d messages of a link", count);
        }
        arena_hold(arena);
    }
    return OK;
}

void standing_deinit(struct standing *s)
{
    for (int i = 0; i < s->n; i++) zmq_msg_close(&s->messages[i]);
    *s = (struct standing){0};
}

zmq_msg_t *standing_message(struct standing *s, size_t bytes)
{
    int i = index_of(bytes, s->unit, s->doubling);
    check(bytes > 0 && i < s->n, "a message of %zu bytes where the largest has %zu", bytes,
          size_of(s->unit, s->doubling, s->n - 1));
    return &s->messages[i];
}
