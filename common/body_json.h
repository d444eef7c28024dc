// Foreign JSON and msgpack as jansson values, under bounds on depth and on the number of values,
// since a value of one byte becomes a hundred. Any thread. Knows no schema.
#ifndef PENSTOCK_COMMON_BODY_JSON_H
#define PENSTOCK_COMMON_BODY_JSON_H

#include "common/mpwalk.h"
#include "common/status.h"

#include <jansson.h>
#include <stddef.h>

// Parses JSON text that must be one object: at most MSGPACK_DEPTH_MAX deep, at most
// JOB_BODY_VALUES_MAX strings, arrays and objects, no duplicate keys, no U+0000. New reference in
// *to. ERR_INPUT bad_body, ERR_LIMIT too_large.
enum status body_json_parse(json_t **to, const char *text, size_t n, struct error *e);

// Converts the next msgpack value (walked before); *budget counts values down. New reference in
// *to. ERR_INPUT bad_body names `field` if a number is not finite, an integer is beyond 63 bits, or
// it holds bin, ext or U+0000. ERR_LIMIT too_large.
enum status body_json_convert(json_t **to, struct mp_cursor *cursor, const char *field, int *budget,
                              struct error *e);

#endif
