#include "common/tensor_hash.h"

#include <stdio.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

struct tensor_hash {
    XXH3_state_t state;
};

struct tensor_hash *tensor_hash_create(void)
{
    return (struct tensor_hash *) XXH3_createState(); // aligned as it wants to be
}

void tensor_hash_destroy(struct tensor_hash **h)
{
    if (*h != NULL) XXH3_freeState(&(*h)->state);
    *h = NULL;
}

void tensor_hash_begin(struct tensor_hash *h) { XXH3_128bits_reset(&h->state); }

void tensor_hash_add(struct tensor_hash *h, const void *bytes, size_t n)
{
    XXH3_128bits_update(&h->state, bytes, n);
}

void tensor_hash_end(const struct tensor_hash *h, char hex[TENSOR_HASH_SIZE])
{
    XXH128_hash_t hash = XXH3_128bits_digest(&h->state);
    snprintf(hex, TENSOR_HASH_SIZE, "%016llx%016llx", (unsigned long long) hash.high64,
             (unsigned long long) hash.low64);
}
