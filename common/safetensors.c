#include "common/safetensors.h"

#include "common/direct.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PREFIX_BYTES = 8 }; // little-endian length of the header

// What the format knows. Types that nothing here computes with still have their size checked; a
// name that is not listed has an unknown size.
static const struct {
    const char *name;
    enum dtype dtype;
    unsigned size;
} DTYPES[] = {
    {"F32", DTYPE_F32, 4},         {"BF16", DTYPE_BF16, 2},     {"F16", DTYPE_F16, 2},
    {"F8_E4M3", DTYPE_F8_E4M3, 1}, {"F8_E5M2", DTYPE_OTHER, 1}, {"F8_E8M0", DTYPE_OTHER, 1},
    {"F64", DTYPE_OTHER, 8},       {"I64", DTYPE_OTHER, 8},     {"U64", DTYPE_OTHER, 8},
    {"I32", DTYPE_OTHER, 4},       {"U32", DTYPE_OTHER, 4},     {"I16", DTYPE_OTHER, 2},
    {"U16", DTYPE_OTHER, 2},       {"I8", DTYPE_OTHER, 1},      {"U8", DTYPE_OTHER, 1},
    {"BOOL", DTYPE_OTHER, 1},      {"C64", DTYPE_OTHER, 8},
};

enum { N_DTYPES = sizeof DTYPES / sizeof DTYPES[0] };

size_t dtype_size(enum dtype dtype)
{
    for (int i = 0; i < N_DTYPES; i++) {
        if (DTYPES[i].dtype == dtype && dtype != DTYPE_OTHER) return DTYPES[i].size;
    }
    return 0;
}

const char *dtype_name(enum dtype dtype)
{
    for (int i = 0; i < N_DTYPES; i++) {
        if (DTYPES[i].dtype == dtype && dtype != DTYPE_OTHER) return DTYPES[i].name;
    }
    return "another type";
}

__attribute__((format(printf, 2, 3))) static enum status bad(struct error *e, const char *format,
                                                             ...)
{
    struct error text;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text.text, sizeof text.text, format, arguments);
    va_end(arguments);
    return error_set(e, ERR_INPUT, "bad_checkpoint", "%s", text.text);
}

// A shape of up to four dimensions; *n_values is their product.
static enum status read_shape(struct tensor *t, const json_t *shape, uint64_t *n_values,
                              struct error *e)
{
    enum { MOST = sizeof t->shape / sizeof t->shape[0] };
    if (!json_is_array(shape)) return bad(e, "tensor %s: shape is no array", t->name);
    if (json_array_size(shape) > MOST) {
        return bad(e, "tensor %s has %zu dimensions; at most %d are supported", t->name,
                   json_array_size(shape), MOST);
    }
    t->n_dims = (int) json_array_size(shape);
    *n_values = 1;
    for (int i = 0; i < t->n_dims; i++) {
        const json_t *n = json_array_get(shape, (size_t) i);
        t->shape[i] = json_integer_value(n);
        if (!json_is_integer(n) || t->shape[i] < 0) {
            return bad(e, "tensor %s: dimension %d is no whole number", t->name, i);
        }
        if (__builtin_mul_overflow(*n_values, (uint64_t) t->shape[i], n_values)) {
            return bad(e, "tensor %s: its shape overflows", t->name);
        }
    }
    return OK;
}

// `data` is where the data begins in the file, `size` how many bytes it has.
static enum status read_offsets(struct tensor *t, const json_t *offsets, uint64_t data,
                                uint64_t size, struct error *e)
{
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end)) {
        return bad(e, "tensor %s: data_offsets are not two whole numbers", t->name);
    }
    json_int_t from = json_integer_value(begin), to = json_integer_value(end);
    if (from < 0 || to < from || (uint64_t) to > size) {
        return bad(e, "tensor %s: data_offsets [%lld, %lld] do not lie in the data of %llu bytes",
                   t->name, (long long) from, (long long) to, (unsigned long long) size);
    }
    t->offset = data + (uint64_t) from;
    t->bytes = (uint64_t) (to - from);
    return OK;
}

static enum status read_tensor(struct tensor *t, const json_t *entry, uint64_t data, uint64_t size,
                               struct error *e)
{
    const char *type = json_string_value(json_object_get(entry, "dtype"));
    if (type == NULL) return bad(e, "tensor %s has no dtype", t->name);
    uint64_t n_values = 0, bytes;
    try(read_shape(t, json_object_get(entry, "shape"), &n_values, e));
    try(read_offsets(t, json_object_get(entry, "data_offsets"), data, size, e));
    t->dtype = DTYPE_OTHER;
    for (int i = 0; i < N_DTYPES; i++) {
        if (strcmp(type, DTYPES[i].name) != 0) continue;
        t->dtype = DTYPES[i].dtype;
        if (__builtin_mul_overflow(n_values, (uint64_t) DTYPES[i].size, &bytes) ||
            bytes != t->bytes) {
            return bad(e, "tensor %s: %llu values of %s do not make %llu bytes", t->name,
                       (unsigned long long) n_values, type, (unsigned long long) t->bytes);
        }
    }
    return OK;
}

static int by_offset(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); // empty ones first
}

// Sorts by offset; the tensors must follow one another from the first byte of the data to the last.
static enum status check_cover(struct safetensors *s, uint64_t data, uint64_t size, struct error *e)
{
    qsort(s->tensors, (size_t) s->n, sizeof *s->tensors, by_offset);
    uint64_t at = data;
    const char *before = "the header";
    for (int i = 0; i < s->n; i++) {
        const struct tensor *t = &s->tensors[i];
        if (t->offset < at) return bad(e, "tensor %s overlaps %s", t->name, before);
        if (t->offset > at) {
            return bad(e, "there is a hole of %llu bytes before tensor %s",
                       (unsigned long long) (t->offset - at), t->name);
        }
        at += t->bytes;
        before = t->name;
    }
    if (at != data + size) {
        return bad(e, "the tensors end %llu bytes before the file does",
                   (unsigned long long) (data + size - at));
    }
    return OK;
}

// Bytes of all names with their terminators; refuses those that are too long or too many.
static enum status measure_names(json_t *root, size_t *bytes, int *n_tensors, struct error *e)
{
    const char *name;
    json_t *entry;
    *bytes = 1;
    *n_tensors = 0;
    json_object_foreach(root, name, entry) {
        size_t n = strlen(name);
        if (n == 0 || n >= TENSOR_NAME_MAX) {
            return error_set(e, ERR_LIMIT, "bad_checkpoint",
                             "a tensor's name has %zu bytes, not 1 to %d: %.40s...", n,
                             TENSOR_NAME_MAX - 1, name);
        }
        if (++*n_tensors > CHECKPOINT_TENSORS_MAX) {
            return error_set(e, ERR_LIMIT, "bad_checkpoint", "more than %d tensors",
                             CHECKPOINT_TENSORS_MAX);
        }
        *bytes += n + 1;
    }
    return OK;
}

static enum status read_tensors(struct safetensors *s, json_t *root, uint64_t data, uint64_t size,
                                struct error *e)
{
    const char *name;
    json_t *entry;
    size_t names_bytes = 0;
    int most = 0;
    try(measure_names(root, &names_bytes, &most, e));
    s->tensors = calloc((size_t) most + 1, sizeof *s->tensors);
    s->names = malloc(names_bytes);
    if (s->tensors == NULL || s->names == NULL) {
        return error_set(e, ERR_NOMEM, NULL, "no memory for the names of %d tensors", most);
    }
    char *to = s->names;
    json_object_foreach(root, name, entry) {
        if (!json_is_object(entry)) return bad(e, "the entry of %s is no object", name);
        if (strcmp(name, "__metadata__") == 0) continue;
        struct tensor *t = &s->tensors[s->n++];
        size_t n = strlen(name) + 1;
        t->name = memcpy(to, name, n);
        to += n;
        try(read_tensor(t, entry, data, size, e));
    }
    return check_cover(s, data, size, e);
}

static enum status read_bytes(int fd, uint64_t offset, void *to, size_t n, struct error *e)
{
    char *at = to;
    while (n > 0) {
        ssize_t got = pread(fd, at, n, (off_t) offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return error_set(e, ERR_IO, NULL, "cannot read: %m");
        if (got == 0) return error_set(e, ERR_IO, NULL, "the file ends early");
        at += got;
        n -= (size_t) got;
        offset += (uint64_t) got;
    }
    return OK;
}

// The header's JSON text, `*n` bytes.
static enum status read_header(const struct safetensors *s, uint64_t file_size, char **text,
                               uint64_t *n, struct error *e)
{
    unsigned char prefix[PREFIX_BYTES];
    if (file_size < PREFIX_BYTES) {
        return bad(e, "%llu bytes are no safetensors file", (unsigned long long) file_size);
    }
    try(read_bytes(s->fd, 0, prefix, sizeof prefix, e));
    *n = 0;
    for (int i = PREFIX_BYTES - 1; i >= 0; i--) *n = *n << 8 | prefix[i];
    if (*n > file_size - PREFIX_BYTES) {
        return bad(e, "the header claims %llu bytes, but the file has %llu",
                   (unsigned long long) *n, (unsigned long long) file_size);
    }
    if (*n > SAFETENSORS_HEADER_MAX) {
        return error_set(e, ERR_LIMIT, "bad_checkpoint",
                         "the header has %llu bytes; the limit is %lld", (unsigned long long) *n,
                         SAFETENSORS_HEADER_MAX);
    }
    *text = malloc((size_t) *n + 1);
    if (*text == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for the header");
    return read_bytes(s->fd, PREFIX_BYTES, *text, (size_t) *n, e);
}

static enum status read_file(struct safetensors *s, struct error *e)
{
    struct stat file;
    if (fstat(s->fd, &file) != 0) return error_set(e, ERR_IO, NULL, "cannot stat: %m");
    if (!S_ISREG(file.st_mode)) return bad(e, "it is no regular file");
    char *text = NULL;
    uint64_t n = 0, size = (uint64_t) file.st_size;
    enum status status = read_header(s, size, &text, &n, e);
    json_t *root = NULL;
    if (status == OK) {
        json_error_t where;
        root = json_loadb(text, (size_t) n, JSON_REJECT_DUPLICATES, &where);
        if (!json_is_object(root)) {
            status = bad(e, "the header is no JSON object: %s",
                         root == NULL ? where.text : "it is another value");
        }
    }
    free(text);
    uint64_t data = PREFIX_BYTES + n;
    if (status == OK) status = read_tensors(s, root, data, size - data, e);
    json_decref(root);
    return status;
}

enum status safetensors_open(struct safetensors *s, const char *path, struct error *e)
{
    // Never waits for the other end of a pipe that lies in a file's place.
    *s = (struct safetensors){.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    enum status status;
    if (s->fd < 0) {
        status = error_set(e, ERR_IO, NULL, "cannot open: %m");
    } else if ((s->path = strdup(path)) == NULL) {
        status = error_set(e, ERR_NOMEM, NULL, "no memory for the path");
    } else {
        status = read_file(s, e);
    }
    if (status == OK) return OK;
    error_prefix(e, "%s", path);
    safetensors_close(s);
    return status;
}

void safetensors_close(struct safetensors *s)
{
    if (s->fd >= 0) close(s->fd);
    free(s->path);
    free(s->tensors);
    free(s->names);
    *s = (struct safetensors){.fd = -1};
}

const struct tensor *safetensors_find(const struct safetensors *s, const char *name)
{
    for (int i = 0; i < s->n; i++) {
        if (strcmp(s->tensors[i].name, name) == 0) return &s->tensors[i];
    }
    return NULL;
}

enum status safetensors_read(const struct safetensors *s, uint64_t offset, void *to, size_t n,
                             struct error *e)
{
    enum status status = read_bytes(s->fd, offset, to, n, e);
    if (status != OK) error_prefix(e, "%s", s->path);
    return status;
}

int safetensors_open_direct(const struct safetensors *s) { return direct_open(s->path, s->fd); }

enum status safetensors_read_direct(const struct safetensors *s, int direct, uint64_t offset,
                                    void *to, size_t n, struct error *e)
{
    size_t done = direct_read(direct, offset, to, n);
    return done == n ? OK : safetensors_read(s, offset + done, (char *) to + done, n - done, e);
}

void safetensors_will_read(const struct safetensors *s, uint64_t offset, size_t n)
{
    posix_fadvise(s->fd, (off_t) offset, (off_t) n, POSIX_FADV_WILLNEED);
}
