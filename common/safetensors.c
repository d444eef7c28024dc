#include "common/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static enum status bad(struct error *e, const char *path, const char *tensor, const char *what)
{
    return error_set(e, ERR_INPUT, "bad_checkpoint", "%s%s%s: %s", path, tensor[0] != 0 ? ": " : "",
                     tensor, what);
}

static const struct {
    const char *name;
    enum dtype dtype;
    unsigned size;
} DTYPES[] = {
    {"F32", DTYPE_F32, 4},    {"BF16", DTYPE_BF16, 2},  {"F16", DTYPE_F16, 2},
    {"F8_E4M3", DTYPE_F8_E4M3, 1}, {"F8_E5M2", DTYPE_OTHER, 1}, {"F64", DTYPE_OTHER, 8},
    {"I64", DTYPE_OTHER, 8},  {"U64", DTYPE_OTHER, 8},  {"I32", DTYPE_OTHER, 4},
    {"U32", DTYPE_OTHER, 4},  {"I16", DTYPE_OTHER, 2},  {"U16", DTYPE_OTHER, 2},
    {"I8", DTYPE_OTHER, 1},   {"U8", DTYPE_OTHER, 1},   {"BOOL", DTYPE_OTHER, 1},
};

size_t dtype_size(enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_F32: return 4;
    case DTYPE_BF16:
    case DTYPE_F16: return 2;
    case DTYPE_F8_E4M3: return 1;
    case DTYPE_OTHER: return 0;
    }
    return 0;
}

const char *dtype_name(enum dtype dtype)
{
    for (size_t i = 0; i < sizeof DTYPES / sizeof *DTYPES; i++) {
        if (DTYPES[i].dtype == dtype && dtype != DTYPE_OTHER) return DTYPES[i].name;
    }
    return "other";
}

// Elements x size, or false if it overflows.
static bool product(const struct tensor *t, uint64_t size, uint64_t *bytes)
{
    *bytes = size;
    for (int i = 0; i < t->n_dims; i++) {
        if (__builtin_mul_overflow(*bytes, (uint64_t) t->shape[i], bytes)) return false;
    }
    return true;
}

static enum status read_shape(struct tensor *t, const json_t *shape, const char *path,
                              struct error *e)
{
    if (!json_is_array(shape)) return bad(e, path, t->name, "its shape is no array");
    if (json_array_size(shape) > 4) return bad(e, path, t->name, "it has more than 4 dimensions");
    for (size_t i = 0; i < json_array_size(shape); i++) {
        const json_t *d = json_array_get(shape, i);
        if (!json_is_integer(d) || json_integer_value(d) < 0) {
            return bad(e, path, t->name, "its shape is no array of counts");
        }
        t->shape[t->n_dims++] = json_integer_value(d);
    }
    return OK;
}

static enum status read_tensor(struct tensor *t, const json_t *entry, uint64_t data_start,
                               uint64_t data_bytes, const char *path, struct error *e)
{
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (dtype == NULL) return bad(e, path, t->name, "it has no dtype");
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end)) {
        return bad(e, path, t->name, "its data_offsets are not two integers");
    }
    try(read_shape(t, json_object_get(entry, "shape"), path, e));
    json_int_t b = json_integer_value(begin), n = json_integer_value(end);
    if (b < 0 || n < b || (uint64_t) n > data_bytes) {
        return bad(e, path, t->name, "its data_offsets lie outside the file; is it cut short?");
    }
    t->offset = data_start + (uint64_t) b;
    t->bytes = (uint64_t) (n - b);
    t->dtype = DTYPE_OTHER;
    for (size_t i = 0; i < sizeof DTYPES / sizeof *DTYPES; i++) {
        uint64_t bytes;
        if (strcmp(DTYPES[i].name, dtype) != 0) continue;
        t->dtype = DTYPES[i].dtype;
        if (!product(t, DTYPES[i].size, &bytes) || bytes != t->bytes) {
            return bad(e, path, t->name, "its shape and dtype do not make its number of bytes");
        }
    }
    return OK;
}

static int by_offset(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

// The format knows neither overlaps nor holes.
static enum status check_cover(struct safetensors *s, uint64_t start, uint64_t end, struct error *e)
{
    qsort(s->tensors, s->n, sizeof *s->tensors, by_offset);
    uint64_t at = start;
    for (size_t i = 0; i < s->n; i++) {
        const struct tensor *t = &s->tensors[i];
        if (t->offset < at) return bad(e, s->path, t->name, "its bytes overlap another tensor's");
        if (t->offset > at) return bad(e, s->path, t->name, "there is a hole before its bytes");
        at += t->bytes;
    }
    if (at != end) return bad(e, s->path, "", "there are bytes after the last tensor");
    return OK;
}

static enum status read_tensors(struct safetensors *s, json_t *root, uint64_t start, uint64_t end,
                                struct error *e)
{
    const char *name;
    json_t *entry;
    s->tensors = calloc(json_object_size(root) + 1, sizeof *s->tensors);
    if (s->tensors == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for tensors");
    json_object_foreach(root, name, entry) {
        if (strcmp(name, "__metadata__") == 0) continue;
        if (strlen(name) >= TENSOR_NAME_MAX) return bad(e, s->path, "", "a name is too long");
        struct tensor *t = &s->tensors[s->n++];
        t->name = strdup(name);
        if (t->name == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for tensors");
        if (!json_is_object(entry)) return bad(e, s->path, name, "its entry is no object");
        try(read_tensor(t, entry, start, end - start, s->path, e));
    }
    return check_cover(s, start, end, e);
}

static enum status read_header(struct safetensors *s, uint64_t file_bytes, struct error *e)
{
    uint64_t n;
    if (file_bytes < 8) return bad(e, s->path, "", "it is too short for a safetensors file");
    try(safetensors_read(s, 0, &n, 8, e));
    if (n > (uint64_t) SAFETENSORS_HEADER_MAX || n > file_bytes - 8) {
        return bad(e, s->path, "", "its header would be larger than the file or the limit");
    }
    char *text = malloc(n + 1);
    if (text == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a header");
    enum status status = safetensors_read(s, 8, text, n, e);
    json_error_t why;
    json_t *root = status == OK ? json_loadb(text, n, JSON_REJECT_DUPLICATES, &why) : NULL;
    free(text);
    if (status == OK && !json_is_object(root)) {
        status = error_set(e, ERR_INPUT, "bad_checkpoint", "%s: its header is no JSON object: %s",
                           s->path, root == NULL ? why.text : "it is something else");
    }
    if (status == OK) status = read_tensors(s, root, 8 + n, file_bytes, e);
    json_decref(root);
    return status;
}

enum status safetensors_open(struct safetensors *s, const char *path, struct error *e)
{
    struct stat info;
    *s = (struct safetensors){.fd = open(path, O_RDONLY | O_CLOEXEC), .path = strdup(path)};
    enum status status = OK;
    if (s->fd < 0 || fstat(s->fd, &info) != 0) {
        status = error_set(e, ERR_IO, "no_checkpoint", "cannot open %s: %m", path);
    } else if (s->path == NULL) {
        status = error_set(e, ERR_NOMEM, NULL, "no memory for a path");
    } else if (!S_ISREG(info.st_mode)) {
        status = bad(e, path, "", "it is no regular file");
    } else {
        status = read_header(s, (uint64_t) info.st_size, e);
    }
    if (status != OK) safetensors_close(s);
    return status;
}

void safetensors_close(struct safetensors *s)
{
    if (s->fd >= 0) close(s->fd);
    for (size_t i = 0; i < s->n; i++) free((char *) (uintptr_t) s->tensors[i].name);
    free(s->tensors);
    free(s->path);
    *s = (struct safetensors){.fd = -1};
}

enum status safetensors_read(const struct safetensors *s, uint64_t offset, void *to, size_t n,
                             struct error *e)
{
    char *at = to;
    while (n > 0) {
        ssize_t got = pread(s->fd, at, n, (off_t) offset);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            return error_set(e, ERR_IO, NULL, "cannot read %zu bytes at %llu of %s: %s", n,
                             (unsigned long long) offset, s->path,
                             got < 0 ? strerror(errno) : "the file has become shorter");
        }
        at += got;
        offset += (uint64_t) got;
        n -= (size_t) got;
    }
    return OK;
}

const struct tensor *safetensors_find(const struct safetensors *s, const char *name)
{
    for (size_t i = 0; i < s->n; i++) {
        if (strcmp(s->tensors[i].name, name) == 0) return &s->tensors[i];
    }
    return NULL;
}
