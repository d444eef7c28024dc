#include "common/tokenizer_vocab.h"

#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

// Printable bytes of Latin-1 stand for themselves. The others, in order, are U+0100 and on: 0x00 to
// 0x20, 0x7f to 0xa0, and 0xad.
static int alphabet_byte(uint32_t character)
{
    bool itself = (character >= '!' && character <= '~') ||
                  (character >= 0xa1 && character <= 0xff && character != 0xad);
    if (itself) return (int) character;
    int moved = (int) character - 0x100;
    if (moved < 0 || moved > 67) return -1;
    if (moved <= 32) return moved;
    return moved < 67 ? 127 + moved - 33 : 0xad;
}

int64_t byte_level_decode(const char *text, size_t n, char *to)
{
    int64_t length = 0;
    for (size_t at = 0; at < n; at++) {
        uint32_t character = (uint8_t) text[at];
        if (character >= 0x80) { // the alphabet ends within the characters of two bytes
            if (character >= 0xe0 || at + 1 >= n) return -1;
            character = (character & 0x1f) << 6 | ((uint8_t) text[++at] & 0x3f);
        }
        int byte = alphabet_byte(character);
        if (byte < 0) return -1;
        to[length++] = (char) byte;
    }
    return length;
}

enum status vocab_init(struct vocab *v, int n_ids, size_t text_bytes, struct error *e)
{
    *v = (struct vocab){.n_ids = n_ids, .bytes_capacity = text_bytes};
    v->tokens = calloc((size_t) n_ids + 1, sizeof *v->tokens);
    v->bytes = malloc(text_bytes + 1);
    if (v->tokens != NULL && v->bytes != NULL) return OK;
    vocab_deinit(v);
    return error_set(e, ERR_NOMEM, "no_memory", "no memory for a vocabulary of %d ids", n_ids);
}

void vocab_deinit(struct vocab *v)
{
    free(v->tokens);
    free(v->bytes);
    free(v->slots);
    *v = (struct vocab){0};
}

void vocab_put(struct vocab *v, int32_t id, const char *text, size_t n, bool special)
{
    check(id >= 0 && id < v->n_ids && !v->tokens[id].known, "id %d", (int) id);
    check(n <= v->bytes_capacity - v->n_bytes, "%zu bytes", n);
    char *to = v->bytes + v->n_bytes;
    int64_t decoded = byte_level_decode(text, n, to);
    if (decoded < 0) memcpy(to, text, n);
    size_t length = decoded < 0 ? n : (size_t) decoded;
    v->tokens[id] = (struct vocab_token){.at = (uint32_t) v->n_bytes,
                                         .n = (uint32_t) length,
                                         .known = true,
                                         .special = special,
                                         .raw = decoded < 0};
    v->n_bytes += length;
    if (length > v->longest) v->longest = length;
}

static uint32_t slot_of(const struct vocab *v, const void *bytes, size_t n)
{
    return (uint32_t) XXH3_64bits(bytes, n) & v->mask;
}

static bool is(const struct vocab *v, int32_t id, const void *bytes, size_t n)
{
    const struct vocab_token *t = &v->tokens[id];
    return t->n == n && memcmp(v->bytes + t->at, bytes, n) == 0;
}

enum status vocab_index(struct vocab *v, struct error *e)
{
    uint32_t n_slots = 4;
    while (n_slots < 2u * (uint32_t) v->n_ids) n_slots *= 2;
    v->mask = n_slots - 1;
    v->slots = malloc(n_slots * sizeof *v->slots);
    if (v->slots == NULL) {
        return error_set(e, ERR_NOMEM, "no_memory", "no memory for a vocabulary of %d ids",
                         v->n_ids);
    }
    memset(v->slots, -1, n_slots * sizeof *v->slots);
    for (int32_t id = 0; id < v->n_ids; id++) {
        const struct vocab_token *t = &v->tokens[id];
        if (!t->known || t->raw) continue;
        uint32_t at = slot_of(v, v->bytes + t->at, t->n);
        while (v->slots[at] >= 0) at = (at + 1) & v->mask;
        v->slots[at] = id;
    }
    return OK;
}

int32_t vocab_find(const struct vocab *v, const void *bytes, size_t n)
{
    for (uint32_t at = slot_of(v, bytes, n); v->slots[at] >= 0; at = (at + 1) & v->mask) {
        if (is(v, v->slots[at], bytes, n)) return v->slots[at];
    }
    return -1;
}
