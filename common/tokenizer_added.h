// Special strings: the added tokens that are found in the raw text before it is split. Immutable
// after added_index; any thread.
#ifndef PENSTOCK_COMMON_TOKENIZER_ADDED_H
#define PENSTOCK_COMMON_TOKENIZER_ADDED_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct added_string {
    const char *text; // n bytes, in added.bytes
    size_t n;
    int32_t id;
};

struct added {
    struct added_string *strings; // (n), sorted by their bytes
    int n;
    char *bytes;
    size_t n_bytes;
    bool first[256]; // bytes that one of them begins with
};

// Room for `most` strings of text_bytes in all. ERR_NOMEM.
enum status added_init(struct added *a, int most, size_t text_bytes, struct error *e);
void added_deinit(struct added *a);

// One more, of n >= 1 bytes; copied.
void added_put(struct added *a, const char *text, size_t n, int32_t id);

// After the last added_put. ERR_INPUT bad_tokenizer if a string comes twice.
enum status added_index(struct added *a, struct error *e);

// The first place where one of them stands, and the longest of those that stand there; n if none
// does.
size_t added_next(const struct added *a, const char *text, size_t n,
                  const struct added_string **which);

// The id of exactly this string, -1 if it is none of them.
int32_t added_find(const struct added *a, const char *text, size_t n);

#endif
