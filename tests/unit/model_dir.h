// Checkpoint directories that tests write: whole ones copied from a fixture to be damaged, and
// single safetensors files with whatever header a case wants.
#ifndef PENSTOCK_TESTS_MODEL_DIR_H
#define PENSTOCK_TESTS_MODEL_DIR_H

#include "tests/support/folder.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct model_dir {
    char path[FOLDER_SIZE];
};

static inline struct model_dir model_dir_create(void)
{
    struct model_dir d;
    folder_make(d.path, "model");
    return d;
}

static inline void model_dir_remove(const struct model_dir *d)
{
    folder_remove(d->path);
}

static inline void model_dir_write(const struct model_dir *d, const char *name, const void *bytes,
                                   size_t n)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", d->path, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

// A safetensors file: `length` as the header's length (-1: the true one), the header, n_data bytes
// that count 0, 1, 2, ...
static inline void model_dir_safetensors(const struct model_dir *d, const char *name,
                                         const char *header, int64_t length, size_t n_data)
{
    size_t n = strlen(header);
    uint64_t says = length < 0 ? n : (uint64_t) length;
    unsigned char *file = malloc(8 + n + n_data);
    assert_non_null(file);
    for (int i = 0; i < 8; i++) file[i] = (unsigned char) (says >> (8 * i));
    memcpy(file + 8, header, n);
    for (size_t i = 0; i < n_data; i++) file[8 + n + i] = (unsigned char) i;
    model_dir_write(d, name, file, 8 + n + n_data);
    free(file);
}

#endif
