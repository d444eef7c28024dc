// Foreign msgpack: checked in one walk over the bytes, then read in place. Nothing here allocates,
// and the stack it needs is bounded by MSGPACK_DEPTH_MAX. Any thread. Knows no schema, and needs no
// library: a five-byte array header must not be able to reserve gigabytes.
#ifndef PENSTOCK_COMMON_MPWALK_H
#define PENSTOCK_COMMON_MPWALK_H

#include "common/status.h"
#include "common/utf8.h" // what each str must be

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// ERR_INPUT bad_msgpack with the byte offset unless the n bytes are exactly one value, with at most
// MSGPACK_DEPTH_MAX nested containers; counts no larger than the bytes left; str valid UTF-8; map
// keys str, at most MSGPACK_MAP_MAX a map, none twice; nothing after it. Time O(n log pairs).
enum status mpwalk(const void *data, size_t n, struct error *e);

enum mp_type {
    MP_NIL, MP_BOOL, MP_UINT, MP_INT, MP_FLOAT, MP_STR, MP_BIN, MP_EXT, MP_ARRAY, MP_MAP
};

// One value; of a container only its head: its `n` children (a map: 2 n) come next from the cursor.
struct mp_value {
    enum mp_type type;
    bool boolean;     // MP_BOOL
    uint64_t uint;    // MP_UINT: any integer >= 0, however it was encoded
    int64_t sint;     // MP_INT: a negative integer
    double real;      // MP_FLOAT
    const char *at;   // MP_STR, MP_BIN, MP_EXT: the bytes, not terminated
    size_t n;         // bytes there; MP_ARRAY: elements; MP_MAP: pairs
};

// Reads values one after another. Safe on bytes that were not walked, too: it never passes the end.
struct mp_cursor {
    const uint8_t *at, *end;
};

struct mp_cursor mp_cursor(const void *data, size_t n);

// The next value's head. False at the end and for bytes that are no msgpack.
bool mp_take(struct mp_cursor *c, struct mp_value *v);

// Passes over one whole value (with all its children).
bool mp_skip(struct mp_cursor *c);

// True if the str v equals `text`.
bool mp_is(const struct mp_value *v, const char *text);

// "nil", "boolean", "integer", "float", "str", "bin", "ext", "array", "map".
const char *mp_type_name(enum mp_type type);

#endif
