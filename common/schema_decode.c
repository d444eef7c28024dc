#include "common/job.h"
#include "common/mpwalk.h"
#include "common/schema.h"

#include <stdlib.h>
#include <string.h>

enum { FIELDS_MAX = 64 }; // of one struct: a bit each

struct decoder {
    void **storage;
    const char *code;
    struct error *e;
};

// One allocation of a decoded list.
struct block {
    struct block *next;
    max_align_t elements[];
};

static enum status refuse(struct decoder *d, const char *field, const char *why)
{
    return error_set(d->e, ERR_INPUT, d->code, "field %s %s", field, why);
}

// --- scalars

static enum status take_const(struct decoder *d, const struct schema_field *f,
                              const struct mp_value *v)
{
    if (v->type != MP_UINT || v->uint != (uint64_t) f->most)
        return refuse(d, f->name, "has a value that is not known");
    return OK;
}

static enum status take_int(struct decoder *d, const struct schema_field *f,
                            const struct mp_value *v, int *to)
{
    if (v->type != MP_UINT && v->type != MP_INT) return refuse(d, f->name, "must be an integer");
    bool inside = v->type == MP_INT
                      ? v->sint >= f->least
                      : v->uint <= (uint64_t) f->most && (int64_t) v->uint >= f->least;
    if (!inside) return refuse(d, f->name, "is out of its bounds");
    *to = (int) (v->type == MP_UINT ? (int64_t) v->uint : v->sint);
    return OK;
}

static enum status take_float(struct decoder *d, const struct schema_field *f,
                              const struct mp_value *v, float *to)
{
    switch (v->type) {
    case MP_FLOAT: *to = (float) v->real; return OK;
    case MP_UINT: *to = (float) v->uint; return OK;
    case MP_INT: *to = (float) v->sint; return OK;
    default: return refuse(d, f->name, "must be a number");
    }
}

static enum status take_text(struct decoder *d, const struct schema_field *f,
                             const struct mp_value *v, char *to)
{
    if (v->type != MP_STR) return refuse(d, f->name, "must be a str");
    if (v->n >= f->size) return refuse(d, f->name, "is too long");
    if (v->n == 0 && !f->optional) return refuse(d, f->name, "is empty");
    if (memchr(v->at, '\0', v->n) != NULL) return refuse(d, f->name, "holds a zero byte");
    if (f->type == SCHEMA_ID && !job_id_ok(v->at, v->n)) return refuse(d, f->name, "is no job id");
    memcpy(to, v->at, v->n);
    to[v->n] = '\0';
    return OK;
}

static enum status take_enum(struct decoder *d, const struct schema_field *f,
                             const struct mp_value *v, void *to)
{
    for (unsigned i = 0; f->names[i] != NULL; i++) {
        if (!mp_is(v, f->names[i])) continue;
        memcpy(to, &i, sizeof i);
        return OK;
    }
    return refuse(d, f->name, "has no such value");
}

static enum status take_bytes(struct decoder *d, const struct schema_field *f,
                              const struct mp_value *v, struct schema_bytes *to)
{
    if (f->type == SCHEMA_STR && v->type != MP_STR) return refuse(d, f->name, "must be a str");
    if (f->type != SCHEMA_STR && v->type != MP_BIN) return refuse(d, f->name, "must be bin");
    if (f->type == SCHEMA_IDS && v->n % sizeof(int32_t) != 0)
        return refuse(d, f->name, "must have 4 bytes an id");
    if (f->type == SCHEMA_IDS && v->n / sizeof(int32_t) > (size_t) f->most)
        return refuse(d, f->name, "has too many ids");
    *to = (struct schema_bytes){v->at, v->n};
    return OK;
}

static enum status take_borrowed(struct decoder *d, const struct schema_field *f,
                                 const struct mp_value *v, char *to)
{
    struct schema_bytes bytes;
    try(take_bytes(d, f, v, &bytes));
    memcpy(to + f->at, &bytes.at, sizeof bytes.at);
    memcpy(to + f->count_at, &bytes.n, sizeof bytes.n);
    return OK;
}

// --- lists and structs

static enum status take_struct(struct decoder *d, const struct schema *s, const char *name,
                               struct mp_cursor *cursor, char *to);

// Room for a list; it belongs to the storage.
static enum status make_list(struct decoder *d, const char *name, size_t bytes, char **elements)
{
    struct block *block = calloc(1, sizeof *block + bytes);
    if (block == NULL)
        return error_set(d->e, ERR_NOMEM, "no_memory", "no memory for %s: %zu bytes", name, bytes);
    block->next = *d->storage;
    *d->storage = block;
    *elements = (char *) block->elements;
    return OK;
}

static enum status take_element(struct decoder *d, const struct schema_field *f,
                                struct mp_cursor *cursor, char *elements, size_t i)
{
    if (f->type == SCHEMA_LIST)
        return take_struct(d, f->sub, f->name, cursor, elements + i * f->size);
    struct mp_value v;
    check(mp_take(cursor, &v), "walked");
    if (f->type == SCHEMA_PIECES)
        return take_bytes(d, f, &v, (struct schema_bytes *) (void *) elements + i);
    if (f->type == SCHEMA_U64S) {
        if (v.type != MP_UINT) return refuse(d, f->name, "must hold unsigned integers");
        ((uint64_t *) (void *) elements)[i] = v.uint;
        return OK;
    }
    if (v.type != MP_UINT || v.uint > INT32_MAX) return refuse(d, f->name, "must hold ids");
    ((int32_t *) (void *) elements)[i] = (int32_t) v.uint;
    return OK;
}

// The cursor stands behind the head of the array v.
static enum status take_several(struct decoder *d, const struct schema_field *f,
                                const struct mp_value *v, struct mp_cursor cursor, char *to)
{
    if (v->type != MP_ARRAY) return refuse(d, f->name, "must be an array");
    if (v->n > (size_t) f->most) return refuse(d, f->name, "has too many elements");
    char *elements = to + f->at;
    if (f->type == SCHEMA_LIST || f->type == SCHEMA_INT_LIST) {
        size_t size = f->type == SCHEMA_LIST ? f->size : sizeof(int32_t);
        try(make_list(d, f->name, v->n * size, &elements));
        memcpy(to + f->at, &elements, sizeof elements);
    }
    for (size_t i = 0; i < v->n; i++) try(take_element(d, f, &cursor, elements, i));
    int n = (int) v->n;
    memcpy(to + f->count_at, &n, sizeof n);
    return OK;
}

static enum status take_sub(struct decoder *d, const struct schema_field *f,
                            struct mp_cursor cursor, char *to)
{
    try(take_struct(d, f->sub, f->name, &cursor, to + f->at));
    if (f->optional && to[f->count_at] == '\0') to[f->count_at] = true;
    return OK;
}

// The value whose encoding begins at the cursor.
static enum status take_value(struct decoder *d, const struct schema_field *f,
                              struct mp_cursor cursor, char *to)
{
    struct mp_cursor start = cursor;
    struct mp_value v;
    void *at = to + f->at;
    check(mp_take(&cursor, &v), "walked");
    switch (f->type) {
    case SCHEMA_CONST: return take_const(d, f, &v);
    case SCHEMA_U64:
        if (v.type != MP_UINT) return refuse(d, f->name, "must be an unsigned integer");
        *(uint64_t *) at = v.uint;
        return OK;
    case SCHEMA_INT: return take_int(d, f, &v, at);
    case SCHEMA_FLOAT: return take_float(d, f, &v, at);
    case SCHEMA_BOOL:
        if (v.type != MP_BOOL) return refuse(d, f->name, "must be a boolean");
        *(bool *) at = v.boolean;
        return OK;
    case SCHEMA_TEXT: case SCHEMA_ID: return take_text(d, f, &v, at);
    case SCHEMA_FIXED:
        if (v.type != MP_BIN || v.n != f->size)
            return refuse(d, f->name, "must be bin of its size");
        memcpy(at, v.at, v.n);
        return OK;
    case SCHEMA_ENUM: return take_enum(d, f, &v, at);
    case SCHEMA_STR: case SCHEMA_BIN: case SCHEMA_IDS: return take_borrowed(d, f, &v, to);
    case SCHEMA_PIECES: case SCHEMA_INTS: case SCHEMA_U64S: case SCHEMA_INT_LIST:
    case SCHEMA_LIST:
        return take_several(d, f, &v, cursor, to);
    case SCHEMA_SUB: return take_sub(d, f, start, to);
    }
    return OK;
}

// Passes over a map and fills the fields it has. nil counts as left out.
static enum status take_struct(struct decoder *d, const struct schema *s, const char *name,
                               struct mp_cursor *cursor, char *to)
{
    uint64_t seen = 0;
    struct mp_value map, key, value;
    check(s->n <= FIELDS_MAX, "%d fields", s->n);
    check(mp_take(cursor, &map), "walked");
    if (map.type != MP_MAP) return refuse(d, name, "must be a map");
    for (size_t i = 0; i < map.n; i++) {
        check(mp_take(cursor, &key), "walked");
        struct mp_cursor start = *cursor, inside = *cursor;
        check(mp_take(&inside, &value) && mp_skip(cursor), "walked");
        int f = 0;
        while (f < s->n && !mp_is(&key, s->fields[f].name)) f++;
        if (f == s->n || value.type == MP_NIL) continue;
        try(take_value(d, &s->fields[f], start, to));
        seen |= 1ull << f;
    }
    for (int f = 0; f < s->n; f++)
        if (!s->fields[f].optional && !(seen & 1ull << f))
            return refuse(d, s->fields[f].name, "is missing");
    return OK;
}

enum status schema_decode(const struct schema *s, void *to, const void *data, size_t n,
                          void **storage, const char *code, struct error *e)
{
    struct decoder d = {.storage = storage, .code = code, .e = e};
    try(mpwalk(data, n, e));
    struct mp_cursor cursor = mp_cursor(data, n);
    return take_struct(&d, s, "(all)", &cursor, to);
}

void schema_release(void **storage)
{
    for (struct block *b = *storage, *next; b != NULL; b = next) {
        next = b->next;
        free(b);
    }
    *storage = NULL;
}
