#include "tests/support/bytes.h"

#include <jansson.h>
#include <msgpack.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int digit(char c)
{
    const char *digits = "0123456789abcdef", *at = strchr(digits, c | 0x20);
    check(c != '\0' && at != NULL, "%c is no hex digit", c);
    return (int) (at - digits);
}

void bytes_hex(struct buffer *to, const char *hex)
{
    for (const char *p = hex; *p != '\0';) {
        if (*p == ' ' || *p == '\n') {
            p++;
            continue;
        }
        uint8_t byte = (uint8_t) (digit(p[0]) << 4 | digit(p[1]));
        check(buffer_append(to, &byte, 1) == OK);
        p += 2;
    }
}

char *bytes_to_hex(const void *bytes, size_t n)
{
    const uint8_t *from = bytes;
    char *hex = malloc(2 * n + 1);
    check(hex != NULL);
    for (size_t i = 0; i < n; i++) snprintf(hex + 2 * i, 3, "%02x", from[i]);
    hex[2 * n] = '\0';
    return hex;
}

// --- JSON as msgpack

static void pack(msgpack_packer *p, const json_t *value)
{
    const char *key;
    json_t *child;
    size_t i;
    switch (json_typeof(value)) {
    case JSON_NULL: msgpack_pack_nil(p); break;
    case JSON_TRUE: msgpack_pack_true(p); break;
    case JSON_FALSE: msgpack_pack_false(p); break;
    case JSON_INTEGER: msgpack_pack_int64(p, json_integer_value(value)); break;
    case JSON_REAL: msgpack_pack_double(p, json_real_value(value)); break;
    case JSON_STRING:
        msgpack_pack_str(p, json_string_length(value));
        msgpack_pack_str_body(p, json_string_value(value), json_string_length(value));
        break;
    case JSON_ARRAY:
        msgpack_pack_array(p, json_array_size(value));
        json_array_foreach(value, i, child) pack(p, child);
        break;
    case JSON_OBJECT:
        msgpack_pack_map(p, json_object_size(value));
        json_object_foreach((json_t *) (uintptr_t) value, key, child) {
            msgpack_pack_str(p, strlen(key));
            msgpack_pack_str_body(p, key, strlen(key));
            pack(p, child);
        }
        break;
    }
}

static int write_bytes(void *to, const char *bytes, size_t n)
{
    return buffer_append(to, bytes, n) == OK ? 0 : -1;
}

void bytes_json(struct buffer *to, const char *json)
{
    char *text = strdup(json);
    check(text != NULL);
    for (char *p = text; *p != '\0'; p++)
        if (*p == '\'') *p = '"';
    json_error_t why;
    json_t *value = json_loads(text, JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
    check(value != NULL, "%s: %s", why.text, text);
    msgpack_packer p;
    msgpack_packer_init(&p, to, write_bytes);
    pack(&p, value);
    check(to->status == OK, "the buffer is too small");
    json_decref(value);
    free(text);
}

// --- files and copies

char *bytes_file(const char *path, size_t *n)
{
    FILE *file = fopen(path, "rb");
    check(file != NULL, "cannot open %s", path);
    check(fseek(file, 0, SEEK_END) == 0);
    size_t size = (size_t) ftell(file);
    rewind(file);
    char *bytes = malloc(size + 1);
    check(bytes != NULL && fread(bytes, 1, size, file) == size, "cannot read %s", path);
    fclose(file);
    bytes[size] = '\0';
    if (n != NULL) *n = size;
    return bytes;
}

uint8_t *bytes_copy(const void *bytes, size_t n)
{
    uint8_t *copy = malloc(n > 0 ? n : 1);
    check(copy != NULL);
    if (n > 0) memcpy(copy, bytes, n);
    return copy;
}

// --- damage

uint32_t bytes_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t) (*state >> 33);
}

static size_t insert(uint8_t *bytes, size_t n, size_t at, const uint8_t *from, size_t count)
{
    memmove(bytes + at + count, bytes + at, n - at);
    memcpy(bytes + at, from, count);
    return n + count;
}

static size_t damage_once(uint8_t *bytes, size_t n, size_t room, uint64_t *state)
{
    // Heads of msgpack containers and strings whose counts are too large.
    static const uint8_t heads[][5] = {
        {0xdd, 0xff, 0xff, 0xff, 0xff}, {0xdf, 0x7f, 0xff, 0xff, 0xff},
        {0xdb, 0xff, 0xff, 0xff, 0xff}, {0xc6, 0x80, 0x00, 0x00, 0x00},
        {0xdc, 0xff, 0xff, 0x91, 0x81}, {0xc9, 0xff, 0xff, 0xff, 0xff},
    };
    uint8_t copy[64];
    size_t at = n > 0 ? bytes_random(state) % n : 0, count = 1 + bytes_random(state) % sizeof copy;
    if (n > 0 && count > n - at) count = n - at;
    switch (bytes_random(state) % 7) {
    case 0:
        if (n > 0) bytes[at] = (uint8_t) bytes_random(state);
        return n;
    case 1:
        if (n > 0) bytes[at] ^= (uint8_t) (1u << bytes_random(state) % 8);
        return n;
    case 2:
        if (n > 0) bytes[at] = (uint8_t) (bytes[at] + 1 - 2 * (bytes_random(state) & 1));
        return n;
    case 3: // cut the end
        return at;
    case 4: // remove
        if (n == 0) return 0;
        memmove(bytes + at, bytes + at + count, n - at - count);
        return n - count;
    case 5: // double
        if (n == 0 || n + count > room) return n;
        memcpy(copy, bytes + at, count);
        return insert(bytes, n, at, copy, count);
    default:
        if (n + sizeof heads[0] > room) return n;
        return insert(bytes, n, at, heads[bytes_random(state) % (sizeof heads / sizeof heads[0])],
                      sizeof heads[0]);
    }
}

size_t bytes_damage(uint8_t *bytes, size_t n, size_t room, uint64_t *state)
{
    for (uint32_t times = 1 + bytes_random(state) % 3; times > 0; times--)
        n = damage_once(bytes, n, room, state);
    return n;
}
