// The KV block allocator: which of a pipeline's KV blocks (64 rows each) belong to which sequence.
// Pure: no clock, no heap, no device; only the head uses it. A block id means the same rows in
// every stage's and rank's pool.
#ifndef PENSTOCK_WORKERS_KV_H
#define PENSTOCK_WORKERS_KV_H

#include "common/status.h"

#include <stdint.h>

// A stack of free block ids over storage that the caller owns.
struct kv {
    int32_t *free; // (n_blocks) the first n_free are free
    int n_blocks;
    int n_free;
};

// `storage` holds n_blocks ids and outlives `kv`.
void kv_init(struct kv *kv, int32_t *storage, int n_blocks);

// Takes n blocks into `blocks` (n), all or none. ERR_NOMEM if fewer are free.
enum status kv_reserve(struct kv *kv, int n, int32_t *blocks);

// Gives n blocks back. A block that isn't out is a bug of the caller.
void kv_release(struct kv *kv, int n, const int32_t *blocks);

#endif
