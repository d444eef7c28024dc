// Structs as msgpack maps, described by tables: one row a field, read by the encoder and the
// decoder, so that a format is written down once. Any thread. Knows no format itself.
#ifndef PENSTOCK_COMMON_SCHEMA_H
#define PENSTOCK_COMMON_SCHEMA_H

#include "common/buffer.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum schema_type {
    SCHEMA_CONST,    // an integer that is always `most`; in no struct
    SCHEMA_U64,      // uint64_t
    SCHEMA_INT,      // int or int32_t, `least` to `most`
    SCHEMA_FLOAT,    // float
    SCHEMA_BOOL,     // bool
    SCHEMA_TEXT,     // char[size], terminated, as str
    SCHEMA_ID,       // char[size], a job id
    SCHEMA_FIXED,    // uint8_t[size], as bin
    SCHEMA_ENUM,     // enum, as one of `names`
    SCHEMA_STR,      // borrowed: pointer at `at`, size_t at count_at, UTF-8
    SCHEMA_BIN,      // the same, any bytes
    SCHEMA_IDS,      // the same, 4 bytes an id, at most `most` ids
    SCHEMA_PIECES,   // struct schema_bytes[most], an array of bin; an int at count_at
    SCHEMA_INTS,     // int32_t[most], each >= 0; an int at count_at
    SCHEMA_U64S,     // uint64_t[most]; an int at count_at
    SCHEMA_INT_LIST, // pointer to int32_t, each >= 0, at most `most`; an int at count_at
    SCHEMA_LIST,     // pointer to structs of `sub`, `size` bytes each, at most `most`; as above
    SCHEMA_SUB,      // struct of `sub`; if optional, the byte at count_at is not 0 when it is there
};

// Borrowed bytes.
struct schema_bytes {
    const void *at;
    size_t n;
};

struct schema_field {
    const char *name;
    enum schema_type type;
    bool optional; // left out when zero, empty or NULL; stays zero when left out or nil
    size_t at;     // offset in the struct
    size_t count_at;
    size_t size;
    int64_t least, most;
    const struct schema *sub;
    const char *const *names; // ends with NULL
};

struct schema {
    const struct schema_field *fields;
    int n;
};

// Appends the map of the struct `from`. ERR_INPUT `code` names a field that is out of its bounds;
// the buffer's own failure is left in it.
enum status schema_encode(const struct schema *s, const void *from, struct buffer *to,
                          const char *code, struct error *e);

// Checks the n bytes (mpwalk) and fills the struct `to`, zeroed before. Borrowed fields point into
// the bytes; lists are allocated and chained to *storage, also when it fails. Unknown keys are
// ignored. ERR_INPUT bad_msgpack, `code` (names the field); ERR_NOMEM.
enum status schema_decode(const struct schema *s, void *to, const void *data, size_t n,
                          void **storage, const char *code, struct error *e);

// Frees what was chained to *storage; NULL then.
void schema_release(void **storage);

// Rows of tables: name, struct, member, and more as designated initialisers.
#define SCHEMA_AT(s, member) .at = offsetof(struct s, member)
#define SCHEMA_SIZE(s, member) .size = sizeof(((struct s *) 0)->member)
#define SCHEMA_COUNT(s, member) .count_at = offsetof(struct s, member)
#define SCHEMA_OPTIONAL .optional = true
#define SCHEMA_FIELDS(list) {list, sizeof list / sizeof list[0]}

#define U64(name, s, member, ...) {name, SCHEMA_U64, SCHEMA_AT(s, member), ##__VA_ARGS__}
#define INT(name, s, member, top, ...)                                                             \
    {name, SCHEMA_INT, SCHEMA_AT(s, member), .most = (top), ##__VA_ARGS__}
#define FLOAT(name, s, member) {name, SCHEMA_FLOAT, SCHEMA_AT(s, member)}
#define BOOL(name, s, member) {name, SCHEMA_BOOL, SCHEMA_AT(s, member), SCHEMA_OPTIONAL}
#define TEXT(name, s, member, ...)                                                                 \
    {name, SCHEMA_TEXT, SCHEMA_AT(s, member), SCHEMA_SIZE(s, member), ##__VA_ARGS__}
#define ID(name, s, member) {name, SCHEMA_ID, SCHEMA_AT(s, member), SCHEMA_SIZE(s, member)}
#define FIXED(name, s, member) {name, SCHEMA_FIXED, SCHEMA_AT(s, member), SCHEMA_SIZE(s, member)}
#define ENUM(name, s, member, list, ...)                                                           \
    {name, SCHEMA_ENUM, SCHEMA_AT(s, member), .names = list, ##__VA_ARGS__}
// type: SCHEMA_STR, SCHEMA_BIN or SCHEMA_IDS; `length` is the member with its bytes.
#define BORROWED(name, type, s, member, length, ...)                                               \
    {name, type, SCHEMA_AT(s, member), SCHEMA_COUNT(s, length), ##__VA_ARGS__}
#define LIST(name, s, member, count, top, element, fields, ...)                                    \
    {name, SCHEMA_LIST, SCHEMA_AT(s, member), SCHEMA_COUNT(s, count), .most = (top),               \
     .size = sizeof(struct element), .sub = fields, ##__VA_ARGS__}

#endif
