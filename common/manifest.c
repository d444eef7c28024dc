#include "common/manifest.h"

#include "common/limits.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

struct manifest {
    char path[PATH_MAX];
    json_t *root, *tensors; // `tensors` lies in `root`
    int n_compared, n_learnt;
};

static enum status no_memory(struct error *e)
{
    return error_set(e, ERR_NOMEM, NULL, "no memory for the manifest");
}

static enum status bad(const struct manifest *m, const char *why, struct error *e)
{
    return error_set(e, ERR_INPUT, "bad_manifest",
                     "%s is no manifest of this checkpoint: %s (to make a new one, remove it)",
                     m->path, why);
}

static enum status unreadable(const struct manifest *m, int why, struct error *e)
{
    return error_set(e, ERR_IO, NULL, "cannot read the manifest %s: %s", m->path, strerror(why));
}

static enum status check_root(struct manifest *m, const char *model, struct error *e)
{
    const char *name;
    json_t *value;
    const char *of = json_string_value(json_object_get(m->root, "model"));
    m->tensors = json_object_get(m->root, "tensors");
    if (of == NULL || !json_is_object(m->tensors)) return bad(m, "\"model\" or \"tensors\"", e);
    if (strcmp(of, model) != 0) return bad(m, "it is of a model with other tensors", e);
    json_object_foreach(m->tensors, name, value) {
        if (json_string_length(value) == TENSOR_HASH_SIZE - 1) continue;
        return bad(m, "a hash is no string of 32 hex digits", e);
    }
    return OK;
}

static enum status read_file(struct manifest *m, FILE *f, const char *model, struct error *e)
{
    struct stat s;
    if (fstat(fileno(f), &s) != 0 || !S_ISREG(s.st_mode)) return bad(m, "it is no file", e);
    if (s.st_size > MANIFEST_MAX) {
        return error_set(e, ERR_LIMIT, "bad_manifest", "%s has %lld bytes, at most %lld", m->path,
                         (long long) s.st_size, MANIFEST_MAX);
    }
    json_error_t where;
    m->root = json_loadf(f, JSON_REJECT_DUPLICATES, &where);
    if (!json_is_object(m->root)) return bad(m, m->root == NULL ? where.text : "no object", e);
    return check_root(m, model, e);
}

static enum status begin(struct manifest *m, const char *model, struct error *e)
{
    m->tensors = json_object();
    m->root = json_pack("{s:s, s:o}", "model", model, "tensors", m->tensors);
    return m->root != NULL ? OK : no_memory(e);
}

enum status manifest_open(struct manifest **manifest, const char *path, const char *model,
                          struct error *e)
{
    struct manifest *m = calloc(1, sizeof *m);
    *manifest = NULL;
    if (m == NULL) return no_memory(e);
    snprintf(m->path, sizeof m->path, "%s", path);
    FILE *f = fopen(path, "re");
    enum status status;
    if (f != NULL) {
        status = read_file(m, f, model, e);
        fclose(f);
    } else if (errno == ENOENT) {
        status = begin(m, model, e);
    } else {
        status = unreadable(m, errno, e);
    }
    if (status == OK) *manifest = m;
    else manifest_close(&m);
    return status;
}

void manifest_close(struct manifest **manifest)
{
    struct manifest *m = *manifest;
    if (m == NULL) return;
    json_decref(m->root);
    free(m);
    *manifest = NULL;
}

enum status manifest_check(struct manifest *m, const char *tensor, const char *file,
                           const char *hash, struct error *e)
{
    const char *known = json_string_value(json_object_get(m->tensors, tensor));
    if (known == NULL) {
        m->n_learnt++;
        if (json_object_set_new(m->tensors, tensor, json_string(hash)) == 0) return OK;
        return no_memory(e);
    }
    m->n_compared++;
    if (strcmp(known, hash) == 0) return OK;
    return error_set(e, ERR_INPUT, "damaged",
                     "tensor %s in %s is not what it was: its bytes hash to %s, the manifest %s "
                     "has %s; copy the file again, or remove the manifest if it was replaced",
                     tensor, file, hash, m->path, known);
}

int manifest_n_compared(const struct manifest *m) { return m->n_compared; }
int manifest_n_learnt(const struct manifest *m) { return m->n_learnt; }

static enum status unwritable(const struct manifest *m, int why, struct error *e)
{
    return error_set(e, ERR_IO, NULL, "cannot write the manifest %s: %s", m->path, strerror(why));
}

static enum status write_file(const struct manifest *m, struct error *e)
{
    char path[PATH_MAX + 24];
    snprintf(path, sizeof path, "%s.%d", m->path, (int) getpid());
    FILE *f = fopen(path, "we");
    bool ok = f != NULL && json_dumpf(m->root, f, JSON_INDENT(1) | JSON_SORT_KEYS) == 0 &&
              fflush(f) == 0 && fsync(fileno(f)) == 0;
    int why = errno;
    if (f != NULL && fclose(f) != 0) ok = false;
    if (ok && rename(path, m->path) == 0) return OK;
    if (ok) why = errno;
    unlink(path);
    return unwritable(m, why, e);
}

// What others learnt meanwhile is kept. What is there now may have become anything.
static enum status merge(struct manifest *m, struct error *e)
{
    FILE *f = fopen(m->path, "re");
    struct manifest now = {.n_learnt = 0};
    if (f == NULL && errno == ENOENT) return OK;
    if (f == NULL) return unreadable(m, errno, e);
    memcpy(now.path, m->path, sizeof now.path);
    enum status status =
        read_file(&now, f, json_string_value(json_object_get(m->root, "model")), e);
    if (status == OK && json_object_update_missing(m->tensors, now.tensors) != 0) {
        status = no_memory(e);
    }
    json_decref(now.root);
    fclose(f);
    return status;
}

enum status manifest_save(struct manifest *m, struct error *e)
{
    char lock[PATH_MAX + 8];
    if (m->n_learnt == 0) return OK;
    snprintf(lock, sizeof lock, "%s.lock", m->path);
    int fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || flock(fd, LOCK_EX) != 0) {
        int why = errno;
        if (fd >= 0) close(fd);
        return unwritable(m, why, e);
    }
    enum status status = merge(m, e);
    if (status == OK) status = write_file(m, e);
    close(fd);
    return status;
}
