#include "common/mpwalk.h"

#include "common/limits.h"

#include <string.h>

// --- reading

struct mp_cursor mp_cursor(const void *data, size_t n)
{
    const uint8_t *at = data;
    return (struct mp_cursor){at, n == 0 ? at : at + n};
}

static size_t left(const struct mp_cursor *c)
{
    return (size_t) (c->end - c->at);
}

// A big-endian number of n bytes.
static bool take_number(struct mp_cursor *c, size_t n, uint64_t *number)
{
    if (left(c) < n) return false;
    *number = 0;
    for (size_t i = 0; i < n; i++) *number = *number << 8 | *c->at++;
    return true;
}

static bool take_bytes(struct mp_cursor *c, struct mp_value *v, enum mp_type type, size_t n)
{
    if (left(c) < n) return false;
    v->type = type;
    v->at = (const char *) c->at;
    v->n = n;
    c->at += n;
    return true;
}

// Bytes behind a length of `width` bytes.
static bool take_long(struct mp_cursor *c, struct mp_value *v, enum mp_type type, size_t width)
{
    uint64_t n;
    if (!take_number(c, width, &n)) return false;
    if (type == MP_EXT) n++; // its type
    return take_bytes(c, v, type, n);
}

// A count that the bytes left cannot hold is refused here, before anyone believes it.
static bool take_children(struct mp_cursor *c, struct mp_value *v, enum mp_type type, uint64_t n)
{
    if (n > left(c) / (type == MP_MAP ? 2 : 1)) return false;
    v->type = type;
    v->n = n;
    return true;
}

static bool take_container(struct mp_cursor *c, struct mp_value *v, enum mp_type type, size_t width)
{
    uint64_t n;
    return take_number(c, width, &n) && take_children(c, v, type, n);
}

static bool take_float(struct mp_cursor *c, struct mp_value *v, size_t width)
{
    uint64_t bits;
    if (!take_number(c, width, &bits)) return false;
    v->type = MP_FLOAT;
    if (width == sizeof(float)) {
        uint32_t narrow = (uint32_t) bits;
        float f;
        memcpy(&f, &narrow, sizeof f);
        v->real = (double) f;
    } else {
        memcpy(&v->real, &bits, sizeof v->real);
    }
    return true;
}

static bool take_uint(struct mp_cursor *c, struct mp_value *v, size_t width)
{
    v->type = MP_UINT;
    return take_number(c, width, &v->uint);
}

static bool take_int(struct mp_cursor *c, struct mp_value *v, size_t width)
{
    uint64_t bits;
    if (!take_number(c, width, &bits)) return false;
    uint64_t sign = 1ull << (8 * width - 1);
    if (bits & sign) {
        v->type = MP_INT;
        v->sint = (int64_t) ((bits ^ sign) - sign);
    } else {
        v->type = MP_UINT;
        v->uint = bits;
    }
    return true;
}

static bool take_scalar(struct mp_cursor *c, struct mp_value *v, uint8_t byte)
{
    switch (byte) {
    case 0xc0: v->type = MP_NIL; return true;
    case 0xc2: case 0xc3:
        v->type = MP_BOOL;
        v->boolean = byte == 0xc3;
        return true;
    case 0xca: case 0xcb: return take_float(c, v, byte == 0xca ? 4 : 8);
    case 0xcc: case 0xcd: case 0xce: case 0xcf: return take_uint(c, v, 1u << (byte - 0xcc));
    case 0xd0: case 0xd1: case 0xd2: case 0xd3: return take_int(c, v, 1u << (byte - 0xd0));
    default: return false; // 0xc1 is never used
    }
}

bool mp_take(struct mp_cursor *c, struct mp_value *v)
{
    *v = (struct mp_value){0};
    if (left(c) == 0) return false;
    uint8_t byte = *c->at++;
    if (byte <= 0x7f || byte >= 0xe0) { // fixint
        c->at--;
        return take_int(c, v, 1);
    }
    if (byte <= 0x8f) return take_children(c, v, MP_MAP, byte & 0x0f);
    if (byte <= 0x9f) return take_children(c, v, MP_ARRAY, byte & 0x0f);
    if (byte <= 0xbf) return take_bytes(c, v, MP_STR, byte & 0x1f);
    switch (byte) {
    case 0xc4: case 0xc5: case 0xc6: return take_long(c, v, MP_BIN, 1u << (byte - 0xc4));
    case 0xc7: case 0xc8: case 0xc9: return take_long(c, v, MP_EXT, 1u << (byte - 0xc7));
    case 0xd4: case 0xd5: case 0xd6: case 0xd7: case 0xd8:
        return take_bytes(c, v, MP_EXT, 1 + (1u << (byte - 0xd4)));
    case 0xd9: case 0xda: case 0xdb: return take_long(c, v, MP_STR, 1u << (byte - 0xd9));
    case 0xdc: case 0xdd: return take_container(c, v, MP_ARRAY, 2u << (byte - 0xdc));
    case 0xde: case 0xdf: return take_container(c, v, MP_MAP, 2u << (byte - 0xde));
    default: return take_scalar(c, v, byte);
    }
}

bool mp_skip(struct mp_cursor *c)
{
    // Each open child needs a byte, so the sum cannot pass twice the bytes there are.
    for (uint64_t open = 1; open > 0; open--) {
        struct mp_value v;
        if (open > left(c) || !mp_take(c, &v)) return false;
        if (v.type == MP_ARRAY) open += v.n;
        if (v.type == MP_MAP) open += 2 * (uint64_t) v.n;
    }
    return true;
}

bool mp_is(const struct mp_value *v, const char *text)
{
    return v->type == MP_STR && v->n == strlen(text) && memcmp(v->at, text, v->n) == 0;
}

const char *mp_type_name(enum mp_type type)
{
    static const char *const names[] = {"nil", "boolean", "integer", "integer", "float",
                                        "str", "bin",     "ext",     "array",   "map"};
    return names[type];
}

// --- checking

struct walk {
    const uint8_t *start;
    struct mp_cursor cursor;
    struct error *e;
};

static enum status bad(const struct walk *w, const uint8_t *at, const char *what)
{
    return error_set(w->e, ERR_INPUT, "bad_msgpack", "msgpack is broken at byte %zu: %s",
                     (size_t) (at - w->start), what);
}

// Orders the keys that begin at two offsets.
static int compare_keys(const struct walk *w, uint32_t a, uint32_t b)
{
    struct mp_value ka, kb;
    struct mp_cursor ca = {w->start + a, w->cursor.end}, cb = {w->start + b, w->cursor.end};
    check(mp_take(&ca, &ka) && mp_take(&cb, &kb), "both were read before");
    int order = memcmp(ka.at, kb.at, ka.n < kb.n ? ka.n : kb.n);
    return order != 0 ? order : (ka.n > kb.n) - (ka.n < kb.n);
}

static void sift_down(const struct walk *w, uint32_t *keys, size_t root, size_t n)
{
    for (size_t child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && compare_keys(w, keys[child], keys[child + 1]) < 0) child++;
        if (compare_keys(w, keys[root], keys[child]) >= 0) return;
        uint32_t swap = keys[root];
        keys[root] = keys[child];
        keys[child] = swap;
    }
}

// Heap sort: in place, and no input makes it quadratic.
static void sort_keys(const struct walk *w, uint32_t *keys, size_t n)
{
    for (size_t i = n / 2; i-- > 0;) sift_down(w, keys, i, n);
    for (size_t i = n; i-- > 1;) {
        uint32_t swap = keys[0];
        keys[0] = keys[i];
        keys[i] = swap;
        sift_down(w, keys, 0, i);
    }
}

static enum status check_keys(const struct walk *w, uint32_t *keys, size_t n)
{
    sort_keys(w, keys, n);
    for (size_t i = 1; i < n; i++)
        if (compare_keys(w, keys[i - 1], keys[i]) == 0)
            return bad(w, w->start + (keys[i] > keys[i - 1] ? keys[i] : keys[i - 1]),
                       "a map has this key twice");
    return OK;
}

static enum status walk_value(struct walk *w, int depth);

static enum status walk_map(struct walk *w, const uint8_t *at, size_t pairs, int depth)
{
    uint32_t keys[MSGPACK_MAP_MAX];
    if (pairs > MSGPACK_MAP_MAX) return bad(w, at, "a map has too many pairs");
    for (size_t i = 0; i < pairs; i++) {
        struct mp_cursor peek = w->cursor;
        struct mp_value key;
        const uint8_t *key_at = peek.at;
        if (mp_take(&peek, &key) && key.type != MP_STR)
            return bad(w, key_at, "a map's key is no str");
        keys[i] = (uint32_t) (key_at - w->start);
        try(walk_value(w, depth));
        try(walk_value(w, depth));
    }
    return check_keys(w, keys, pairs);
}

static enum status walk_value(struct walk *w, int depth)
{
    const uint8_t *at = w->cursor.at;
    struct mp_value v;
    if (left(&w->cursor) == 0) return bad(w, at, "it ends where a value should begin");
    if (!mp_take(&w->cursor, &v))
        return bad(w, at, "a value is malformed or longer than the bytes left");
    if (v.type == MP_STR) {
        size_t valid = utf8_valid_prefix(v.at, v.n);
        if (valid < v.n) return bad(w, (const uint8_t *) v.at + valid, "a str is not UTF-8");
    }
    if (v.type != MP_ARRAY && v.type != MP_MAP) return OK;
    if (depth >= MSGPACK_DEPTH_MAX) return bad(w, at, "containers are nested too deeply");
    if (v.type == MP_MAP) return walk_map(w, at, v.n, depth + 1);
    for (size_t i = 0; i < v.n; i++) try(walk_value(w, depth + 1));
    return OK;
}

enum status mpwalk(const void *data, size_t n, struct error *e)
{
    struct walk w = {.start = data, .cursor = mp_cursor(data, n), .e = e};
    if (n > UINT32_MAX) return bad(&w, data, "it is larger than 4 GiB");
    try(walk_value(&w, 0));
    if (left(&w.cursor) > 0) return bad(&w, w.cursor.at, "bytes follow the value");
    return OK;
}
