// One safetensors file's header: checked against the file's size, nothing trusted. Any thread. Knows
// nothing of models.
#ifndef PENSTOCK_COMMON_SAFETENSORS_H
#define PENSTOCK_COMMON_SAFETENSORS_H

#include "common/checkpoint.h"

#include <stddef.h>

struct safetensors {
    int fd;
    char *path;
    struct tensor *tensors; // (n) in the order of their bytes; names owned; `file` is 0
    size_t n;
};

// Opens and checks `path`. ERR_IO; ERR_INPUT bad_checkpoint names file and tensor; ERR_NOMEM.
enum status safetensors_open(struct safetensors *s, const char *path, struct error *e);
void safetensors_close(struct safetensors *s);

// Reads n bytes at `offset` of the file. ERR_IO.
enum status safetensors_read(const struct safetensors *s, uint64_t offset, void *to, size_t n,
                             struct error *e);

// NULL if there is none.
const struct tensor *safetensors_find(const struct safetensors *s, const char *name);

#endif
