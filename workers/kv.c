#include "workers/kv.h"

void kv_init(struct kv *kv, int32_t *storage, int n_blocks)
{
    *kv = (struct kv){.free = storage, .n_blocks = n_blocks, .n_free = n_blocks};
    // The lowest ids are handed out first, so that a half-used pool touches half the pages.
    for (int i = 0; i < n_blocks; i++) storage[i] = n_blocks - 1 - i;
}

enum status kv_reserve(struct kv *kv, int n, int32_t *blocks)
{
    if (n > kv->n_free) return ERR_NOMEM;
    for (int i = 0; i < n; i++) blocks[i] = kv->free[--kv->n_free];
    return OK;
}

void kv_release(struct kv *kv, int n, const int32_t *blocks)
{
    check(kv->n_free + n <= kv->n_blocks, "%d blocks returned to a pool that misses %d", n,
          kv->n_blocks - kv->n_free);
    for (int i = n - 1; i >= 0; i--) kv->free[kv->n_free++] = blocks[i];
}
