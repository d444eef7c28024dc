#include "broker/model.h"

#include "common/chat.h"
#include "common/checkpoint.h"
#include "common/layout.h"
#include "common/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// A directory may hold '=' itself: only what stands before a '/' can be a name.
static const char *directory_of(const char *spec)
{
    const char *equals = strchr(spec, '='), *slash = strchr(spec, '/');
    return equals != NULL && (slash == NULL || equals < slash) ? equals + 1 : spec;
}

static enum status set_name(struct model *m, const char *spec, const char *dir, struct error *e)
{
    char *full = NULL;
    const char *name = spec;
    size_t n = dir != spec ? (size_t) (dir - spec) - 1 : 0;
    if (dir == spec) {
        full = realpath(dir, NULL);
        const char *slash = full != NULL ? strrchr(full, '/') : NULL;
        name = slash != NULL ? slash + 1 : dir;
        n = strlen(name);
    }
    bool good = n >= 1 && n <= JOB_MODEL_MAX;
    if (good) snprintf(m->name, sizeof m->name, "%.*s", (int) n, name);
    free(full);
    if (good) return OK;
    return error_set(e, ERR_INPUT, "bad_usage", "the model's name is not 1 to %d bytes long: write "
                     "--model NAME=DIR", JOB_MODEL_MAX);
}

static enum status load_manifest(struct model *m, const char *dir, struct error *e)
{
    struct checkpoint *checkpoint;
    try(checkpoint_open(&checkpoint, dir, e));
    enum status status = layout_check_checkpoint(&m->config, checkpoint, e);
    if (status == OK) checkpoint_manifest_hash(checkpoint, m->hash);
    checkpoint_close(&checkpoint);
    return status;
}

static enum status load_tokenizer(struct model *m, const char *dir, struct error *e)
{
    struct error why = {0};
    if (tokenizer_load(&m->tokenizer, dir, &why) != OK) {
        m->tokenizer = NULL;
        if (strcmp(why.code, "no_tokenizer") == 0) return OK;
        return error_set(e, why.status, why.code, "%s", why.text);
    }
    return chat_load(&m->chat, dir, e);
}

enum status model_load(struct model *m, const char *spec, struct error *e)
{
    const char *dir = directory_of(spec);
    *m = (struct model){0};
    enum status status = set_name(m, spec, dir, e);
    if (status == OK) status = model_config_load(&m->config, dir, e);
    if (status == OK) status = load_manifest(m, dir, e);
    if (status == OK) status = load_tokenizer(m, dir, e);
    if (status != OK) model_deinit(m);
    return status;
}

void model_deinit(struct model *m)
{
    if (m->chat != NULL) chat_destroy(&m->chat);
    if (m->tokenizer != NULL) tokenizer_destroy(&m->tokenizer);
    *m = (struct model){0};
}
