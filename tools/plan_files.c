#include "tools/plan_files.h"

#include "common/layout.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct search {
    const struct checkpoint_index *index;
    bool *reads; // (n_files) of this stage
    struct error *e;
};

static enum status on_slice(const struct slice *s, void *arg)
{
    struct search *search = arg;
    char scales[TENSOR_NAME_MAX + 16];
    int file = checkpoint_index_find(search->index, s->name);
    if (file < 0) {
        return error_set(search->e, ERR_INPUT, "bad_checkpoint",
                         "the index does not list tensor %s, which config.json implies", s->name);
    }
    search->reads[file] = true;
    snprintf(scales, sizeof scales, "%s_scale_inv", s->name);
    file = s->quantized ? checkpoint_index_find(search->index, scales) : -1;
    if (file >= 0) search->reads[file] = true; // an FP8 checkpoint may hold it unquantised
    return OK;
}

static enum status check_folder(const char *model, struct error *e)
{
    struct stat s;
    if (stat(model, &s) == 0 && S_ISDIR(s.st_mode)) return OK;
    return error_set(e, ERR_INPUT, "bad_usage",
                     "--files wants the checkpoint's directory with its index, not %s", model);
}

static enum status check_single(const char *model, const struct checkpoint_index *x,
                                struct error *e)
{
    char path[PATH_MAX];
    if (!checkpoint_index_is_single(x)) return OK;
    int n = snprintf(path, sizeof path, "%s/" CHECKPOINT_SINGLE, model);
    if (n < (int) sizeof path && access(path, F_OK) == 0) return OK;
    return error_set(e, ERR_IO, "no_checkpoint",
                     "%s holds neither model.safetensors.index.json nor " CHECKPOINT_SINGLE, model);
}

static enum status find_all(struct plan_files *f, const struct model_config *c,
                            const struct plan *p, struct error *e)
{
    f->n_stages = p->pp;
    f->reads = calloc((size_t) p->pp * (size_t) f->index.n_files, sizeof *f->reads);
    if (f->reads == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for the list of files");
    for (int i = 0; i < p->pp; i++) {
        struct placement place = {.first = p->first[i],
                                  .last = p->first[i] + p->layers[i],
                                  .head = i == 0,
                                  .tail = i + 1 == p->pp,
                                  .tp = 1};
        struct search search = {&f->index, f->reads + (size_t) i * (size_t) f->index.n_files, e};
        try(layout_walk(c, &place, on_slice, &search));
    }
    return OK;
}

enum status plan_files_find(struct plan_files *f, const char *model, const struct model_config *c,
                            const struct plan *p, struct error *e)
{
    *f = (struct plan_files){0};
    try(check_folder(model, e));
    try(checkpoint_index_read(&f->index, model, e));
    enum status status = check_single(model, &f->index, e);
    if (status == OK) status = find_all(f, c, p, e);
    if (status != OK) plan_files_deinit(f);
    return status;
}

void plan_files_deinit(struct plan_files *f)
{
    checkpoint_index_deinit(&f->index);
    free(f->reads);
    *f = (struct plan_files){0};
}

const char *plan_files_name(const struct plan_files *f, int stage, int i)
{
    bool reads = f->reads[(size_t) stage * (size_t) f->index.n_files + (size_t) i];
    return reads ? f->index.files[i] : NULL;
}
