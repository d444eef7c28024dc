// One safetensors file: its header, checked, and its bytes. Nothing in the header is trusted. Any
// thread. Knows no other files and no models.
#ifndef PENSTOCK_COMMON_SAFETENSORS_H
#define PENSTOCK_COMMON_SAFETENSORS_H

#include "common/checkpoint.h"

#include <stddef.h>

struct safetensors {
    int fd;
    char *path;
    struct tensor *tensors; // (n) by offset; `file` is 0
    int n;
    char *names; // what the tensors' names point into
};

// Opens `path` and checks its header: the length against the limit and the file's size, the types
// of all values, shape x dtype = bytes, and that the tensors fill the data exactly: no hole, no
// overlap, nothing beyond. ERR_IO; ERR_INPUT and ERR_LIMIT bad_checkpoint name file and tensor;
// ERR_NOMEM. After an error there is nothing to close.
enum status safetensors_open(struct safetensors *s, const char *path, struct error *e);
void safetensors_close(struct safetensors *s);

// NULL if there is none. Walks the list: for files with few tensors (a checkpoint has its own
// order).
const struct tensor *safetensors_find(const struct safetensors *s, const char *name);

// Reads n bytes at `offset` of the file, through interruptions and short reads. ERR_IO names the
// file.
enum status safetensors_read(const struct safetensors *s, uint64_t offset, void *to, size_t n,
                             struct error *e);

// direct_open of the file (direct.h).
int safetensors_open_direct(const struct safetensors *s);

// As safetensors_read, past the page cache by that descriptor; `to` lies as direct_read says.
enum status safetensors_read_direct(const struct safetensors *s, int direct, uint64_t offset,
                                    void *to, size_t n, struct error *e);

// Has the disk begin with n bytes at `offset`, which are read soon: a hint.
void safetensors_will_read(const struct safetensors *s, uint64_t offset, size_t n);

#endif
