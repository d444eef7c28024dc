#include "common/job.h"
#include "common/mppack.h"
#include "common/mpwalk.h"
#include "common/schema.h"

#include <string.h>

struct encoder {
    msgpack_packer packer;
    const char *code;
    struct error *e;
};

static enum status refuse(struct encoder *c, const struct schema_field *f, const char *why)
{
    return error_set(c->e, ERR_INPUT, c->code, "field %s %s", f->name, why);
}

// --- members of the struct

static int int_at(const char *from, size_t at)
{
    int n;
    memcpy(&n, from + at, sizeof n);
    return n;
}

static const char *pointer_at(const char *from, size_t at)
{
    const char *p;
    memcpy(&p, from + at, sizeof p);
    return p;
}

static struct schema_bytes bytes_at(const struct schema_field *f, const char *from)
{
    struct schema_bytes bytes = {.at = pointer_at(from, f->at)};
    memcpy(&bytes.n, from + f->count_at, sizeof bytes.n);
    return bytes;
}

static bool is_there(const struct schema_field *f, const char *from)
{
    const void *at = from + f->at;
    if (!f->optional) return true;
    switch (f->type) {
    case SCHEMA_U64: return *(const uint64_t *) at != 0;
    case SCHEMA_INT: case SCHEMA_ENUM: return int_at(from, f->at) != 0;
    case SCHEMA_BOOL: return *(const bool *) at;
    case SCHEMA_TEXT: case SCHEMA_ID: return *(const char *) at != '\0';
    case SCHEMA_SUB: return from[f->count_at] != '\0';
    case SCHEMA_STR: case SCHEMA_BIN: case SCHEMA_IDS: return pointer_at(from, f->at) != NULL;
    case SCHEMA_PIECES: case SCHEMA_INTS: case SCHEMA_U64S: case SCHEMA_INT_LIST:
    case SCHEMA_LIST:
        return int_at(from, f->count_at) != 0;
    case SCHEMA_CONST: case SCHEMA_FLOAT: case SCHEMA_FIXED: return true;
    }
    return true;
}

// --- values

static enum status put_int(struct encoder *c, const struct schema_field *f, int value)
{
    if (value < f->least || value > f->most) return refuse(c, f, "is out of its bounds");
    msgpack_pack_int(&c->packer, value);
    return OK;
}

static enum status put_text(struct encoder *c, const struct schema_field *f, const char *text)
{
    size_t n = strnlen(text, f->size);
    if (n == f->size) return refuse(c, f, "is not terminated");
    if (f->type == SCHEMA_ID && !job_id_ok(text, n)) return refuse(c, f, "is no job id");
    // A sentence that was cut within a character must not cost the whole message.
    n = utf8_valid_prefix(text, n);
    if (n == 0 && !f->optional) return refuse(c, f, "is empty");
    mppack_str(&c->packer, text, n);
    return OK;
}

static enum status put_enum(struct encoder *c, const struct schema_field *f, int value)
{
    for (int i = 0; f->names[i] != NULL; i++) {
        if (i != value) continue;
        mppack_text(&c->packer, f->names[i]);
        return OK;
    }
    return refuse(c, f, "has no such value");
}

static enum status put_bytes(struct encoder *c, const struct schema_field *f,
                             struct schema_bytes bytes)
{
    bool ids = f->type == SCHEMA_IDS;
    if (ids && (bytes.n % sizeof(int32_t) != 0 || bytes.n / sizeof(int32_t) > (size_t) f->most))
        return refuse(c, f, "is no list of ids, or too long");
    if (f->type != SCHEMA_STR) {
        mppack_bin(&c->packer, bytes.at, bytes.n);
        return OK;
    }
    if (utf8_valid_prefix(bytes.at, bytes.n) < bytes.n) return refuse(c, f, "is not UTF-8");
    mppack_str(&c->packer, bytes.at, bytes.n);
    return OK;
}

static enum status put_struct(struct encoder *c, const struct schema *s, const char *from);

static enum status put_element(struct encoder *c, const struct schema_field *f,
                               const char *elements, int i)
{
    switch (f->type) {
    case SCHEMA_LIST: return put_struct(c, f->sub, elements + (size_t) i * f->size);
    case SCHEMA_PIECES:
        return put_bytes(c, f, ((const struct schema_bytes *) (const void *) elements)[i]);
    case SCHEMA_U64S:
        msgpack_pack_uint64(&c->packer, ((const uint64_t *) (const void *) elements)[i]);
        return OK;
    default: {
        int id = int_at(elements, (size_t) i * sizeof(int32_t));
        if (id < 0) return refuse(c, f, "holds a negative id");
        msgpack_pack_int32(&c->packer, id);
        return OK;
    }
    }
}

static enum status put_several(struct encoder *c, const struct schema_field *f, const char *from)
{
    int n = int_at(from, f->count_at);
    if (n < 0 || n > f->most) return refuse(c, f, "has too many elements");
    bool far = f->type == SCHEMA_LIST || f->type == SCHEMA_INT_LIST;
    const char *elements = far ? pointer_at(from, f->at) : from + f->at;
    msgpack_pack_array(&c->packer, (size_t) n);
    for (int i = 0; i < n; i++) try(put_element(c, f, elements, i));
    return OK;
}

static enum status put_value(struct encoder *c, const struct schema_field *f, const char *from)
{
    const void *at = from + f->at;
    switch (f->type) {
    case SCHEMA_CONST: return put_int(c, f, (int) f->most);
    case SCHEMA_U64: msgpack_pack_uint64(&c->packer, *(const uint64_t *) at); return OK;
    case SCHEMA_INT: return put_int(c, f, int_at(from, f->at));
    case SCHEMA_FLOAT: msgpack_pack_float(&c->packer, *(const float *) at); return OK;
    case SCHEMA_BOOL: mppack_bool(&c->packer, *(const bool *) at); return OK;
    case SCHEMA_TEXT: case SCHEMA_ID: return put_text(c, f, at);
    case SCHEMA_FIXED: mppack_bin(&c->packer, at, f->size); return OK;
    case SCHEMA_ENUM: return put_enum(c, f, int_at(from, f->at));
    case SCHEMA_STR: case SCHEMA_BIN: case SCHEMA_IDS: return put_bytes(c, f, bytes_at(f, from));
    case SCHEMA_PIECES: case SCHEMA_INTS: case SCHEMA_U64S: case SCHEMA_INT_LIST:
    case SCHEMA_LIST:
        return put_several(c, f, from);
    case SCHEMA_SUB: return put_struct(c, f->sub, at);
    }
    return OK;
}

static enum status put_struct(struct encoder *c, const struct schema *s, const char *from)
{
    size_t n = 0;
    for (int i = 0; i < s->n; i++) n += is_there(&s->fields[i], from);
    msgpack_pack_map(&c->packer, n);
    for (int i = 0; i < s->n; i++) {
        if (!is_there(&s->fields[i], from)) continue;
        mppack_text(&c->packer, s->fields[i].name);
        try(put_value(c, &s->fields[i], from));
    }
    return OK;
}

enum status schema_encode(const struct schema *s, const void *from, struct buffer *to,
                          const char *code, struct error *e)
{
    struct encoder c = {.packer = mppack_to(to), .code = code, .e = e};
    return put_struct(&c, s, from);
}
