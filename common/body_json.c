#include "common/body_json.h"

#include "common/limits.h"

#include <math.h>
#include <string.h>

static enum status too_many(struct error *e)
{
    return error_set(e, ERR_LIMIT, "too_large", "body holds more than %d values",
                     JOB_BODY_VALUES_MAX);
}

// The byte after a string that begins at text[at]; n if it never ends.
static size_t string_end(const char *text, size_t n, size_t at)
{
    for (at++; at < n; at++) {
        if (text[at] == '\\') at++;
        else if (text[at] == '"') return at + 1;
    }
    return n;
}

// What the parser would need memory for, before it gets any.
static enum status prescan(const char *text, size_t n, struct error *e)
{
    int values = 0, depth = 0;
    for (size_t at = 0; at < n;) {
        char c = text[at];
        bool opens = c == '[' || c == '{';
        if ((opens || c == '"') && ++values > JOB_BODY_VALUES_MAX) return too_many(e);
        if (opens && ++depth > MSGPACK_DEPTH_MAX)
            return error_set(e, ERR_INPUT, "bad_body", "body is nested deeper than %d at byte %zu",
                             MSGPACK_DEPTH_MAX, at);
        if (c == ']' || c == '}') depth--;
        at = c == '"' ? string_end(text, n, at) : at + 1;
    }
    return OK;
}

enum status body_json_parse(json_t **to, const char *text, size_t n, struct error *e)
{
    *to = NULL;
    try(prescan(text, n, e));
    json_error_t why;
    json_t *value = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    if (value == NULL) {
        if (json_error_code(&why) == json_error_out_of_memory)
            return error_set(e, ERR_NOMEM, "no_memory", "no memory for a body of %zu bytes", n);
        // What follows " near " is the body's own bytes, cut anywhere.
        char *near = strstr(why.text, " near ");
        if (near != NULL) *near = '\0';
        return error_set(e, ERR_INPUT, "bad_body", "body is not JSON at line %d, column %d: %s",
                         why.line, why.column, why.text);
    }
    if (!json_is_object(value)) {
        json_decref(value);
        return error_set(e, ERR_INPUT, "bad_body", "body must be a JSON object");
    }
    *to = value;
    return OK;
}

static enum status convert_children(json_t *into, const struct mp_value *v,
                                    struct mp_cursor *cursor, const char *field, int *budget,
                                    struct error *e)
{
    for (size_t i = 0; i < v->n; i++) {
        struct mp_value key = {0};
        json_t *child;
        if (v->type == MP_MAP) check(mp_take(cursor, &key), "walked");
        if (v->type == MP_MAP && memchr(key.at, '\0', key.n) != NULL)
            return error_set(e, ERR_INPUT, "bad_body", "%s holds U+0000", field);
        try(body_json_convert(&child, cursor, field, budget, e));
        int rc = v->type == MP_MAP ? json_object_setn_new_nocheck(into, key.at, key.n, child)
                                   : json_array_append_new(into, child);
        if (rc != 0) return error_set(e, ERR_NOMEM, "no_memory", "no memory for %s", field);
    }
    return OK;
}

static enum status refused(const struct mp_value *v, const char *field, struct error *e)
{
    switch (v->type) {
    case MP_UINT:
        if (v->uint <= INT64_MAX) return OK;
        return error_set(e, ERR_INPUT, "bad_body", "%s holds an integer beyond 63 bits", field);
    case MP_FLOAT:
        if (isfinite(v->real)) return OK;
        return error_set(e, ERR_INPUT, "bad_body", "%s holds a number that is not finite", field);
    case MP_STR:
        if (memchr(v->at, '\0', v->n) == NULL) return OK;
        return error_set(e, ERR_INPUT, "bad_body", "%s holds U+0000", field);
    case MP_BIN: case MP_EXT:
        return error_set(e, ERR_INPUT, "bad_body", "%s holds msgpack %s, which JSON has not", field,
                         mp_type_name(v->type));
    default: return OK;
    }
}

static json_t *make(const struct mp_value *v)
{
    switch (v->type) {
    case MP_NIL: return json_null();
    case MP_BOOL: return json_boolean(v->boolean);
    case MP_UINT: return json_integer((json_int_t) v->uint);
    case MP_INT: return json_integer(v->sint);
    case MP_FLOAT: return json_real(v->real);
    case MP_STR: return json_stringn_nocheck(v->at, v->n);
    case MP_ARRAY: return json_array();
    case MP_MAP: return json_object();
    case MP_BIN: case MP_EXT: break;
    }
    return NULL;
}

enum status body_json_convert(json_t **to, struct mp_cursor *cursor, const char *field, int *budget,
                              struct error *e)
{
    *to = NULL;
    struct mp_value v;
    check(mp_take(cursor, &v), "walked");
    if (--*budget < 0) return too_many(e);
    try(refused(&v, field, e));
    json_t *value = make(&v);
    if (value == NULL) return error_set(e, ERR_NOMEM, "no_memory", "no memory for %s", field);
    if (v.type == MP_ARRAY || v.type == MP_MAP) {
        enum status status = convert_children(value, &v, cursor, field, budget, e);
        if (status != OK) {
            json_decref(value);
            return status;
        }
    }
    *to = value;
    return OK;
}
