#include "common/checkpoint.h"

#include "common/safetensors.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

struct checkpoint {
    struct safetensors *files; // (n_files)
    int n_files;
    struct tensor *tensors; // (n) by name; names belong to the files
    int n;
};

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor *) a)->name, ((const struct tensor *) b)->name);
}

static enum status open_file(struct checkpoint *c, const char *dir, const char *name,
                             struct error *e)
{
    char path[4096];
    if (c->n_files == CHECKPOINT_FILES_MAX) {
        return error_set(e, ERR_LIMIT, "bad_checkpoint", "%s has more than %d files", dir,
                         CHECKPOINT_FILES_MAX);
    }
    snprintf(path, sizeof path, "%s/%s", dir, name);
    struct safetensors *grown = realloc(c->files, ((size_t) c->n_files + 1) * sizeof *c->files);
    if (grown == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for %s", path);
    c->files = grown;
    try(safetensors_open(&c->files[c->n_files], path, e));
    c->n_files++;
    return OK;
}

static enum status gather(struct checkpoint *c, const char *dir, struct error *e)
{
    size_t n = 0;
    for (int i = 0; i < c->n_files; i++) n += c->files[i].n;
    if (n > CHECKPOINT_TENSORS_MAX) {
        return error_set(e, ERR_LIMIT, "bad_checkpoint", "%s has more than %d tensors", dir,
                         CHECKPOINT_TENSORS_MAX);
    }
    c->tensors = malloc((n + 1) * sizeof *c->tensors);
    if (c->tensors == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for %zu tensors", n);
    for (int i = 0; i < c->n_files; i++) {
        for (size_t k = 0; k < c->files[i].n; k++) {
            c->tensors[c->n] = c->files[i].tensors[k];
            c->tensors[c->n++].file = i;
        }
    }
    qsort(c->tensors, (size_t) c->n, sizeof *c->tensors, by_name);
    for (int i = 1; i < c->n; i++) {
        if (strcmp(c->tensors[i - 1].name, c->tensors[i].name) != 0) continue;
        return error_set(e, ERR_INPUT, "bad_checkpoint", "%s: %s is in %s and in %s", dir,
                         c->tensors[i].name, c->files[c->tensors[i - 1].file].path,
                         c->files[c->tensors[i].file].path);
    }
    return OK;
}

// Opens each file that the index names, once.
static enum status open_indexed(struct checkpoint *c, const char *dir, const json_t *map,
                                struct error *e)
{
    const char *tensor;
    json_t *file;
    json_t *seen = json_object();
    enum status status = OK;
    json_object_foreach((json_t *) (uintptr_t) map, tensor, file) {
        const char *name = json_string_value(file);
        if (name == NULL || name[0] == 0 || name[0] == '.' || strchr(name, '/') != NULL) {
            status = error_set(e, ERR_INPUT, "bad_checkpoint",
                               "%s: the index gives no plain file name for %.200s", dir, tensor);
        } else if (json_object_get(seen, name) == NULL) {
            json_object_set_new(seen, name, json_true());
            status = open_file(c, dir, name, e);
        }
        if (status != OK) break;
    }
    json_decref(seen);
    return status;
}

static enum status check_index(const struct checkpoint *c, const char *dir, const json_t *map,
                               struct error *e)
{
    const char *tensor;
    json_t *file;
    json_object_foreach((json_t *) (uintptr_t) map, tensor, file) {
        const struct tensor *t = checkpoint_find(c, tensor);
        const char *path = t != NULL ? strrchr(c->files[t->file].path, '/') + 1 : "";
        if (strcmp(path, json_string_value(file)) == 0) continue;
        return error_set(e, ERR_INPUT, "bad_checkpoint",
                         "%s: the index says that %.150s is in %.100s, but it is not", dir, tensor,
                         json_string_value(file));
    }
    if (json_object_size(map) == (size_t) c->n) return OK;
    for (int i = 0; i < c->n; i++) {
        if (json_object_get(map, c->tensors[i].name) != NULL) continue;
        return error_set(e, ERR_INPUT, "bad_checkpoint", "%s: the index doesn't name %s, which is in "
                         "%s", dir, c->tensors[i].name, c->files[c->tensors[i].file].path);
    }
    return OK;
}

static enum status open_by_index(struct checkpoint *c, const char *dir, const char *path,
                                 struct error *e)
{
    json_error_t why;
    struct stat s;
    if (stat(path, &s) == 0 && s.st_size > SAFETENSORS_INDEX_MAX) {
        return error_set(e, ERR_LIMIT, "bad_checkpoint", "%s is larger than %lld bytes", path,
                         SAFETENSORS_INDEX_MAX);
    }
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &why);
    const json_t *map = json_object_get(root, "weight_map");
    enum status status = OK;
    if (!json_is_object(map)) {
        status = error_set(e, ERR_INPUT, "bad_checkpoint", "%s has no weight_map: %s", path,
                           root == NULL ? why.text : "the key is missing");
    }
    if (status == OK) status = open_indexed(c, dir, map, e);
    if (status == OK) status = gather(c, dir, e);
    if (status == OK) status = check_index(c, dir, map, e);
    json_decref(root);
    return status;
}

enum status checkpoint_open(struct checkpoint **checkpoint, const char *dir, struct error *e)
{
    char path[4096];
    struct stat s;
    struct checkpoint *c = calloc(1, sizeof *c);
    *checkpoint = c;
    if (c == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a checkpoint");
    enum status status;
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
    if (stat(path, &s) == 0) {
        status = open_by_index(c, dir, path, e);
    } else {
        snprintf(path, sizeof path, "%s/model.safetensors", dir);
        if (stat(path, &s) != 0) {
            status = error_set(e, ERR_IO, "no_checkpoint", "%s holds neither "
                               "model.safetensors.index.json nor model.safetensors", dir);
        } else {
            status = open_file(c, dir, "model.safetensors", e);
            if (status == OK) status = gather(c, dir, e);
        }
    }
    if (status != OK) checkpoint_close(checkpoint);
    return status;
}

void checkpoint_close(struct checkpoint **checkpoint)
{
    struct checkpoint *c = *checkpoint;
    if (c == NULL) return;
    *checkpoint = NULL;
    for (int i = 0; i < c->n_files; i++) safetensors_close(&c->files[i]);
    free(c->files);
    free(c->tensors);
    free(c);
}

const struct tensor *checkpoint_find(const struct checkpoint *c, const char *name)
{
    struct tensor key = {.name = name};
    return bsearch(&key, c->tensors, (size_t) c->n, sizeof *c->tensors, by_name);
}

int checkpoint_n_tensors(const struct checkpoint *c) { return c->n; }

const struct tensor *checkpoint_tensor(const struct checkpoint *c, int i)
{
    check(i >= 0 && i < c->n);
    return &c->tensors[i];
}

int checkpoint_n_files(const struct checkpoint *c) { return c->n_files; }

const char *checkpoint_file(const struct checkpoint *c, int file)
{
    check(file >= 0 && file < c->n_files);
    return c->files[file].path;
}

uint64_t checkpoint_bytes(const struct checkpoint *c)
{
    uint64_t bytes = 0;
    for (int i = 0; i < c->n; i++) bytes += c->tensors[i].bytes;
    return bytes;
}

enum status checkpoint_read(const struct checkpoint *c, const struct tensor *t, uint64_t offset,
                            void *to, size_t n, struct error *e)
{
    check(offset <= t->bytes && n <= t->bytes - offset, "%s", t->name);
    enum status status = safetensors_read(&c->files[t->file], t->offset + offset, to, n, e);
    if (status != OK) error_prefix(e, "%s", t->name);
    return status;
}

enum status checkpoint_read_rect(const struct checkpoint *c, const struct tensor *t, int64_t row0,
                                 int64_t n_rows, int64_t col0, int64_t n_cols, void *to,
                                 struct error *e)
{
    size_t size = dtype_size(t->dtype);
    int64_t cols = t->n_dims > 1 ? t->shape[1] : 1;
    check(size > 0 && row0 >= 0 && n_rows >= 0 && col0 >= 0 && n_cols >= 0 && t->n_dims >= 1 &&
          row0 + n_rows <= t->shape[0] && col0 + n_cols <= cols, "%s", t->name);
    if (n_cols == cols) {
        return checkpoint_read(c, t, (uint64_t) (row0 * cols) * size, to,
                               (size_t) (n_rows * cols) * size, e);
    }
    size_t width = (size_t) n_cols * size;
    for (int64_t r = 0; r < n_rows; r++) {
        uint64_t offset = (uint64_t) ((row0 + r) * cols + col0) * size;
        try(checkpoint_read(c, t, offset, (char *) to + (size_t) r * width, width, e));
    }
    return OK;
}

void checkpoint_manifest_hash(const struct checkpoint *c, char *hex)
{
    XXH3_state_t *state = XXH3_createState();
    check(state != NULL);
    XXH3_128bits_reset(state);
    for (int i = 0; i < c->n; i++) {
        const struct tensor *t = &c->tensors[i];
        int32_t numbers[2] = {t->dtype, t->n_dims};
        XXH3_128bits_update(state, t->name, strlen(t->name) + 1);
        XXH3_128bits_update(state, numbers, sizeof numbers);
        XXH3_128bits_update(state, t->shape, (size_t) t->n_dims * sizeof *t->shape);
    }
    XXH128_hash_t h = XXH3_128bits_digest(state);
    XXH3_freeState(state);
    snprintf(hex, 33, "%016llx%016llx", (unsigned long long) h.high64, (unsigned long long) h.low64);
}
