#include "common/buffer.h"

#include <stdlib.h>
#include <string.h>

enum { BUFFER_FIRST_CAPACITY = 256 };

void buffer_init(struct buffer *b, size_t most)
{
    *b = (struct buffer){.most = most};
}

void buffer_deinit(struct buffer *b)
{
    free(b->data);
    buffer_init(b, b->most);
}

void buffer_clear(struct buffer *b)
{
    b->n = 0;
    b->status = OK;
}

static enum status grow(struct buffer *b, size_t need)
{
    size_t capacity = b->capacity < BUFFER_FIRST_CAPACITY ? BUFFER_FIRST_CAPACITY : b->capacity;
    while (capacity < need) capacity = capacity > b->most / 2 ? b->most : 2 * capacity;
    uint8_t *data = realloc(b->data, capacity);
    if (data == NULL) return ERR_NOMEM;
    b->data = data;
    b->capacity = capacity;
    return OK;
}

enum status buffer_append(struct buffer *b, const void *bytes, size_t n)
{
    if (b->status != OK || n == 0) return b->status;
    if (n > b->most - b->n) return b->status = ERR_LIMIT;
    if (b->n + n > b->capacity) b->status = grow(b, b->n + n);
    if (b->status != OK) return b->status;
    memcpy(b->data + b->n, bytes, n);
    b->n += n;
    return OK;
}

enum status buffer_check(const struct buffer *b, const char *what, struct error *e)
{
    if (b->status == OK) return OK;
    if (b->status == ERR_LIMIT)
        return error_set(e, ERR_LIMIT, "too_large", "%s takes more than %zu bytes", what, b->most);
    return error_set(e, b->status, "no_memory", "%s: no memory beyond %zu bytes", what, b->n);
}
