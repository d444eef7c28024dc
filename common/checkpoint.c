#include "common/checkpoint.h"

#include "common/checkpoint_index.h"
#include "common/safetensors.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

struct checkpoint {
    struct safetensors *files; // (n_files)
    int n_files;
    struct tensor **by_name; // (n_tensors) ascending
    int n_tensors;
    uint64_t bytes;
};

static enum status no_memory(struct error *e)
{
    return error_set(e, ERR_NOMEM, NULL, "no memory for the list of tensors");
}

// --- open

static enum status open_files(struct checkpoint *c, const char *dir, const char *const *names,
                              int n, struct error *e)
{
    c->files = calloc((size_t) n, sizeof *c->files);
    if (c->files == NULL) return no_memory(e);
    for (int i = 0; i < n; i++) {
        struct safetensors *f = &c->files[i];
        char path[PATH_MAX];
        if (snprintf(path, sizeof path, "%s/%s", dir, names[i]) >= (int) sizeof path) {
            return error_set(e, ERR_IO, NULL, "the path of %s is too long", names[i]);
        }
        try(safetensors_open(f, path, e));
        c->n_files++;
        for (int j = 0; j < f->n; j++) {
            f->tensors[j].file = i;
            c->bytes += f->tensors[j].bytes;
        }
        if (f->n > CHECKPOINT_TENSORS_MAX - c->n_tensors) {
            return error_set(e, ERR_LIMIT, "bad_checkpoint", "%s: more than %d tensors", path,
                             CHECKPOINT_TENSORS_MAX);
        }
        c->n_tensors += f->n;
    }
    return OK;
}

static const char *file_name(const struct checkpoint *c, const struct tensor *t)
{
    return strrchr(c->files[t->file].path, '/') + 1;
}

static int by_name(const void *a, const void *b)
{
    const struct tensor *x = *(const struct tensor *const *) a;
    const struct tensor *y = *(const struct tensor *const *) b;
    return strcmp(x->name, y->name);
}

// Builds the list of all tensors by name; a name may appear once.
static enum status sort_tensors(struct checkpoint *c, struct error *e)
{
    c->by_name = calloc((size_t) c->n_tensors + 1, sizeof *c->by_name);
    if (c->by_name == NULL) return no_memory(e);
    int n = 0;
    for (int i = 0; i < c->n_files; i++) {
        for (int j = 0; j < c->files[i].n; j++) c->by_name[n++] = &c->files[i].tensors[j];
    }
    qsort(c->by_name, (size_t) n, sizeof *c->by_name, by_name);
    for (int i = 0; i < n; i++) c->by_name[i]->index = i;
    for (int i = 1; i < n; i++) {
        const struct tensor *a = c->by_name[i - 1], *b = c->by_name[i];
        if (strcmp(a->name, b->name) != 0) continue;
        return error_set(e, ERR_INPUT, "bad_checkpoint", "tensor %s is in %s and in %s", a->name,
                         file_name(c, a), file_name(c, b));
    }
    return OK;
}

// The index and the headers must say the same.
static enum status in_its_file(void *arg, const char *tensor, const char *file, struct error *e)
{
    const struct checkpoint *c = arg;
    const struct tensor *t = checkpoint_find(c, tensor);
    if (t != NULL && strcmp(file_name(c, t), file) == 0) return OK;
    return error_set(e, ERR_INPUT, "bad_checkpoint",
                     "the index has tensor %.200s in %s, but that file does not hold it", tensor,
                     file);
}

static enum status check_index(struct checkpoint *c, const struct checkpoint_index *x,
                               struct error *e)
{
    try(checkpoint_index_walk(x, in_its_file, c, e));
    for (int i = 0; i < c->n_tensors; i++) {
        const struct tensor *t = c->by_name[i];
        if (checkpoint_index_find(x, t->name) >= 0) continue;
        return error_set(e, ERR_INPUT, "bad_checkpoint",
                         "tensor %s is in %s, but the index does not list it", t->name,
                         file_name(c, t));
    }
    return OK;
}

static enum status check_single(const char *dir, struct error *e)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/" CHECKPOINT_SINGLE, dir) >= (int) sizeof path ||
        access(path, F_OK) == 0) {
        return OK;
    }
    return error_set(e, ERR_IO, "no_checkpoint",
                     "%s holds neither model.safetensors.index.json nor " CHECKPOINT_SINGLE, dir);
}

static enum status open_all(struct checkpoint *c, const char *dir,
                            const struct checkpoint_index *x, struct error *e)
{
    if (checkpoint_index_is_single(x)) try(check_single(dir, e));
    try(open_files(c, dir, x->files, x->n_files, e));
    try(sort_tensors(c, e));
    return check_index(c, x, e);
}

enum status checkpoint_open(struct checkpoint **checkpoint, const char *dir, struct error *e)
{
    *checkpoint = NULL;
    struct checkpoint *c = calloc(1, sizeof *c);
    if (c == NULL) return no_memory(e);
    struct checkpoint_index index;
    enum status status = checkpoint_index_read(&index, dir, e);
    if (status == OK) {
        status = open_all(c, dir, &index, e);
        checkpoint_index_deinit(&index);
    }
    if (status == OK) *checkpoint = c;
    else checkpoint_close(&c);
    return status;
}

void checkpoint_close(struct checkpoint **checkpoint)
{
    struct checkpoint *c = *checkpoint;
    if (c == NULL) return;
    for (int i = 0; i < c->n_files; i++) safetensors_close(&c->files[i]);
    free(c->files);
    free(c->by_name);
    free(c);
    *checkpoint = NULL;
}

// --- what is there

const struct tensor *checkpoint_find(const struct checkpoint *c, const char *name)
{
    int low = 0, high = c->n_tensors;
    while (low < high) {
        int middle = low + (high - low) / 2;
        int order = strcmp(name, c->by_name[middle]->name);
        if (order == 0) return c->by_name[middle];
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

int checkpoint_n_tensors(const struct checkpoint *c) { return c->n_tensors; }

const struct tensor *checkpoint_tensor(const struct checkpoint *c, int i)
{
    check(i >= 0 && i < c->n_tensors, "tensor %d of %d", i, c->n_tensors);
    return c->by_name[i];
}

int checkpoint_n_files(const struct checkpoint *c) { return c->n_files; }

const char *checkpoint_file(const struct checkpoint *c, int file)
{
    check(file >= 0 && file < c->n_files, "file %d of %d", file, c->n_files);
    return c->files[file].path;
}

uint64_t checkpoint_bytes(const struct checkpoint *c) { return c->bytes; }

void checkpoint_manifest_hash(const struct checkpoint *c, char *hex)
{
    XXH3_state_t *state = XXH3_createState();
    check(state != NULL, "no memory");
    XXH3_128bits_reset(state);
    for (int i = 0; i < c->n_tensors; i++) {
        const struct tensor *t = c->by_name[i];
        const char *type = dtype_name(t->dtype);
        XXH3_128bits_update(state, t->name, strlen(t->name) + 1);
        XXH3_128bits_update(state, type, strlen(type) + 1);
        int64_t shape[5] = {t->n_dims}; // little-endian, as every machine that this runs on
        for (int j = 0; j < t->n_dims; j++) shape[j + 1] = t->shape[j];
        XXH3_128bits_update(state, shape, sizeof shape);
    }
    XXH128_hash_t hash = XXH3_128bits_digest(state);
    XXH3_freeState(state);
    snprintf(hex, 33, "%016llx%016llx", (unsigned long long) hash.high64,
             (unsigned long long) hash.low64);
}

// --- bytes

enum status checkpoint_read_file(const struct checkpoint *c, const struct tensor *t,
                                 uint64_t offset, void *to, size_t n, struct error *e)
{
    enum status status = safetensors_read(&c->files[t->file], offset, to, n, e);
    if (status != OK) error_prefix(e, "tensor %s", t->name);
    return status;
}

enum status checkpoint_read_direct(const struct checkpoint *c, const struct tensor *t, int direct,
                                   uint64_t offset, void *to, size_t n, struct error *e)
{
    enum status status = safetensors_read_direct(&c->files[t->file], direct, offset, to, n, e);
    if (status != OK) error_prefix(e, "tensor %s", t->name);
    return status;
}

int checkpoint_open_direct(const struct checkpoint *c, int file)
{
    check(file >= 0 && file < c->n_files, "file %d of %d", file, c->n_files);
    return safetensors_open_direct(&c->files[file]);
}

void checkpoint_will_read(const struct checkpoint *c, const struct tensor *t, uint64_t offset,
                          size_t n)
{
    safetensors_will_read(&c->files[t->file], offset, n);
}
