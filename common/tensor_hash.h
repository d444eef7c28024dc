// XXH3-128 of a tensor's bytes as they lie in its file, piece by piece. One owner. Knows no files.
#ifndef PENSTOCK_COMMON_TENSOR_HASH_H
#define PENSTOCK_COMMON_TENSOR_HASH_H

#include <stddef.h>

enum { TENSOR_HASH_SIZE = 33 }; // hex and its end

struct tensor_hash;

// NULL: no memory.
struct tensor_hash *tensor_hash_create(void);
void tensor_hash_destroy(struct tensor_hash **h);

void tensor_hash_begin(struct tensor_hash *h);
void tensor_hash_add(struct tensor_hash *h, const void *bytes, size_t n);
void tensor_hash_end(const struct tensor_hash *h, char hex[TENSOR_HASH_SIZE]);

#endif
