// The custom ids of a batch so far, as hashes of 128 bits: whether one was there before. One
// thread.
#ifndef PENSTOCK_TOOLS_CUSTOM_IDS_H
#define PENSTOCK_TOOLS_CUSTOM_IDS_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct custom_ids {
    uint64_t (*table)[2]; // (capacity) zeros: free
    size_t n, capacity;   // a power of two
};

// Zero-initialised is empty. *is_new: it was not there. ERR_NOMEM.
enum status custom_ids_add(struct custom_ids *ids, const char *id, bool *is_new, struct error *e);
void custom_ids_deinit(struct custom_ids *ids);

#endif
