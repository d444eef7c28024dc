#include "common/checkpoint_index.h"

#include "common/limits.h"

#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// A file of the checkpoint lies in its directory: a name that leaves it is refused.
static bool file_name_ok(const char *name)
{
    return name != NULL && name[0] != '\0' && strchr(name, '/') == NULL && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0 && strlen(name) <= NAME_MAX;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *) a, *(const char *const *) b);
}

static json_t *map_of(const struct checkpoint_index *x)
{
    return json_object_get(x->root, "weight_map");
}

// The distinct file names of the weight map, ascending.
static enum status list_files(struct checkpoint_index *x, struct error *e)
{
    json_t *map = map_of(x), *value;
    size_t most = json_object_size(map), count = 0;
    if (most > CHECKPOINT_TENSORS_MAX) {
        return error_set(e, ERR_LIMIT, "bad_checkpoint", "the index lists more than %d tensors",
                         CHECKPOINT_TENSORS_MAX);
    }
    const char **list = x->files = calloc(most + 1, sizeof *list), *name;
    if (list == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for the list of files");
    json_object_foreach(map, name, value) {
        const char *file = json_string_value(value);
        if (!file_name_ok(file)) {
            return error_set(e, ERR_INPUT, "bad_checkpoint",
                             "the index gives tensor %.80s no valid file name", name);
        }
        list[count++] = file;
    }
    qsort(list, count, sizeof *list, by_text);
    int n = 0;
    for (size_t i = 0; i < count; i++) {
        if (i == 0 || strcmp(list[i], list[n - 1]) != 0) list[n++] = list[i];
    }
    x->n_files = n;
    if (n > 0 && n <= CHECKPOINT_FILES_MAX) return OK;
    return n == 0 ? error_set(e, ERR_INPUT, "bad_checkpoint", "the index lists no tensor")
                  : error_set(e, ERR_LIMIT, "bad_checkpoint", "more than %d files",
                              CHECKPOINT_FILES_MAX);
}

static enum status one_file(struct checkpoint_index *x, struct error *e)
{
    x->files = calloc(1, sizeof *x->files);
    if (x->files == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for the list of files");
    x->files[0] = CHECKPOINT_SINGLE;
    x->n_files = 1;
    return OK;
}

static enum status read_into(struct checkpoint_index *x, const char *dir, struct error *e)
{
    char path[PATH_MAX];
    struct stat s;
    if (snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir) >= (int) sizeof path) {
        return error_set(e, ERR_IO, NULL, "the path %.80s... is too long", dir);
    }
    if (stat(path, &s) != 0) {
        return errno == ENOENT ? one_file(x, e)
                               : error_set(e, ERR_IO, NULL, "cannot open %s: %m", path);
    }
    if (!S_ISREG(s.st_mode) || s.st_size > SAFETENSORS_INDEX_MAX) {
        return error_set(e, ERR_LIMIT, "bad_checkpoint", "%s is no file of up to %lld bytes", path,
                         SAFETENSORS_INDEX_MAX);
    }
    json_error_t why;
    x->root = json_load_file(path, JSON_REJECT_DUPLICATES, &why);
    if (json_is_object(map_of(x))) return list_files(x, e);
    return error_set(e, ERR_INPUT, "bad_checkpoint", "%s has no weight_map: %s", path,
                     x->root == NULL ? why.text : "the key is missing or no object");
}

enum status checkpoint_index_read(struct checkpoint_index *x, const char *dir, struct error *e)
{
    *x = (struct checkpoint_index){0};
    enum status status = read_into(x, dir, e);
    if (status != OK) checkpoint_index_deinit(x);
    return status;
}

void checkpoint_index_deinit(struct checkpoint_index *x)
{
    json_decref(x->root);
    free(x->files);
    *x = (struct checkpoint_index){0};
}

bool checkpoint_index_is_single(const struct checkpoint_index *x) { return x->root == NULL; }

int checkpoint_index_find(const struct checkpoint_index *x, const char *tensor)
{
    if (x->root == NULL) return 0;
    const char *file = json_string_value(json_object_get(map_of(x), tensor));
    if (file == NULL) return -1;
    const char **at = bsearch(&file, x->files, (size_t) x->n_files, sizeof *x->files, by_text);
    return at == NULL ? -1 : (int) (at - x->files);
}

enum status checkpoint_index_walk(const struct checkpoint_index *x, checkpoint_index_visit *visit,
                                  void *arg, struct error *e)
{
    const char *name;
    json_t *value;
    json_object_foreach(map_of(x), name, value) {
        try(visit(arg, name, json_string_value(value), e));
    }
    return OK;
}
