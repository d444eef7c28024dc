#include "tools/custom_ids.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { FIRST_CAPACITY = 1024 };

// The hash's place, or the free one where it belongs.
static uint64_t *find(const struct custom_ids *ids, const uint64_t hash[2])
{
    for (size_t i = hash[0] & (ids->capacity - 1);; i = (i + 1) & (ids->capacity - 1)) {
        uint64_t *at = ids->table[i];
        if ((at[0] == 0 && at[1] == 0) || (at[0] == hash[0] && at[1] == hash[1])) return at;
    }
}

// Keeps the table at most half full.
static enum status grow(struct custom_ids *ids, struct error *e)
{
    if (2 * (ids->n + 1) <= ids->capacity) return OK;
    struct custom_ids larger = {.n = ids->n,
                                .capacity = ids->capacity > 0 ? 2 * ids->capacity : FIRST_CAPACITY};
    larger.table = calloc(larger.capacity, sizeof *larger.table);
    if (larger.table == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for custom ids");
    for (size_t i = 0; i < ids->capacity; i++) {
        const uint64_t *from = ids->table[i];
        if (from[0] != 0 || from[1] != 0) memcpy(find(&larger, from), from, sizeof *larger.table);
    }
    free(ids->table);
    *ids = larger;
    return OK;
}

enum status custom_ids_add(struct custom_ids *ids, const char *id, bool *is_new, struct error *e)
{
    XXH128_hash_t h = XXH3_128bits(id, strlen(id));
    uint64_t hash[2] = {h.low64, h.high64 | 1}; // never zeros
    try(grow(ids, e));
    uint64_t *at = find(ids, hash);
    *is_new = at[1] == 0;
    if (*is_new) {
        memcpy(at, hash, sizeof hash);
        ids->n++;
    }
    return OK;
}

void custom_ids_deinit(struct custom_ids *ids)
{
    free(ids->table);
    *ids = (struct custom_ids){0};
}
