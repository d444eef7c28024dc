// Writing msgpack into a buffer: the few lines that the codecs share. Failures stick in the buffer,
// so the packer's own returns need no look. Codecs only.
#ifndef PENSTOCK_COMMON_MPPACK_H
#define PENSTOCK_COMMON_MPPACK_H

#include "common/buffer.h"

#include <msgpack.h>
#include <stdbool.h>
#include <string.h>

static inline int mppack_write(void *to, const char *bytes, size_t n)
{
    return buffer_append(to, bytes, n) == OK ? 0 : -1;
}

static inline msgpack_packer mppack_to(struct buffer *to)
{
    msgpack_packer p;
    msgpack_packer_init(&p, to, mppack_write);
    return p;
}

static inline void mppack_str(msgpack_packer *p, const char *text, size_t n)
{
    msgpack_pack_str(p, n);
    if (n > 0) msgpack_pack_str_body(p, text, n);
}

static inline void mppack_bin(msgpack_packer *p, const void *bytes, size_t n)
{
    msgpack_pack_bin(p, n);
    if (n > 0) msgpack_pack_bin_body(p, bytes, n);
}

static inline void mppack_text(msgpack_packer *p, const char *text)
{
    mppack_str(p, text, strlen(text));
}

static inline void mppack_bool(msgpack_packer *p, bool value)
{
    if (value) msgpack_pack_true(p);
    else msgpack_pack_false(p);
}

#endif
