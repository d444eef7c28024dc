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

static bool is_name(const char *name)
{
    size_t n = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
    return n > 0 && name[n] == '\0';
}

enum status model_spec(const char *spec, char name[JOB_MODEL_MAX + 1], const char **dir,
                       struct error *e)
{
    char *full = NULL;
    const char *at = spec;
    *dir = directory_of(spec);
    size_t n = *dir != spec ? (size_t) (*dir - spec) - 1 : 0;
    if (*dir == spec) {
        full = realpath(*dir, NULL);
        const char *slash = full != NULL ? strrchr(full, '/') : NULL;
        at = slash != NULL ? slash + 1 : *dir;
        n = strlen(at);
    }
    bool good = n >= 1 && n <= JOB_MODEL_MAX;
    snprintf(name, JOB_MODEL_MAX + 1, "%.*s", good ? (int) n : 0, at);
    bool missing = *dir == spec && full == NULL; // the files' error says it better
    free(full);
    if (good && (missing || is_name(name))) return OK;
    return error_set(e, ERR_INPUT, "bad_usage", "a model's name is 1 to %d of A-Z a-z 0-9 . _ -, "
                     "not \"%.64s\": write --model NAME=DIR", JOB_MODEL_MAX, name);
}

static enum status load_manifest(struct model *m, const char *dir, struct error *e)
{
    struct checkpoint *checkpoint;
    try(checkpoint_open(&checkpoint, dir, e));
    enum status status = layout_check_checkpoint(&m->config, checkpoint, e);
    if (status == OK) {
        checkpoint_manifest_hash(checkpoint, m->hash);
        layout_types_read(&m->types, &m->config, checkpoint);
    }
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

static enum status load(struct model *m, const char *spec, struct error *e)
{
    const char *dir;
    try(model_spec(spec, m->name, &dir, e));
    try(model_config_load(&m->config, dir, e));
    try(load_manifest(m, dir, e));
    return load_tokenizer(m, dir, e);
}

static void model_deinit(struct model *m)
{
    if (m->chat != NULL) chat_destroy(&m->chat);
    if (m->tokenizer != NULL) tokenizer_destroy(&m->tokenizer);
    *m = (struct model){0};
}

// --- several

// A group says which checkpoint it has by the manifest's hash alone.
static enum status check_twins(const struct models *m, struct error *e)
{
    const struct model *last = &m->at[m->n - 1];
    for (int i = 0; i < m->n - 1; i++) {
        const struct model *one = &m->at[i];
        if (strcmp(one->name, last->name) == 0) {
            return error_set(e, ERR_INPUT, "bad_usage", "two models have the name \"%.64s\": write "
                             "--model NAME=DIR", one->name);
        }
        if (strcmp(one->hash, last->hash) != 0) continue;
        return error_set(e, ERR_INPUT, "bad_usage",
                         "the models \"%.64s\" and \"%.64s\" have the same tensors, so that their "
                         "groups cannot be told apart: serve them from two brokers and queues",
                         one->name, last->name);
    }
    return OK;
}

// What is written NAME=VALUE must be of a model that is there.
static enum status check_names(const struct models *m, const char *flag,
                               const struct option_list *values, struct error *e)
{
    for (int i = 0; i < values->n; i++) {
        char name[JOB_MODEL_MAX + 1];
        size_t n = options_name(values->at[i]);
        snprintf(name, sizeof name, "%.*s", (int) n, values->at[i]);
        if (n == 0 || models_find(m, name) >= 0) continue;
        return error_set(e, ERR_INPUT, "bad_usage", "--%s %s: there is no model \"%.64s\"", flag,
                         values->at[i], name);
    }
    return OK;
}

static enum status load_all(struct models *m, const struct option_list *specs,
                            const struct option_list *pp, const struct option_list *layers,
                            struct error *e)
{
    if (specs->n > MODELS_MAX) {
        return error_set(e, ERR_INPUT, "bad_usage", "more than %d models", MODELS_MAX);
    }
    for (int i = 0; i < specs->n; i++) {
        struct model *model = &m->at[m->n++];
        try(load(model, specs->at[i], e));
        try(check_twins(m, e));
        try(options_stages(pp, layers, model->name, model->layers, &model->pp, e));
    }
    try(check_names(m, "pp", pp, e));
    return check_names(m, "layers", layers, e);
}

enum status models_load(struct models *m, const struct option_list *specs,
                        const struct option_list *pp, const struct option_list *layers,
                        struct error *e)
{
    memset(m, 0, sizeof *m);
    enum status status = load_all(m, specs, pp, layers, e);
    if (status != OK) models_deinit(m);
    return status;
}

void models_deinit(struct models *m)
{
    for (int i = 0; i < m->n; i++) model_deinit(&m->at[i]);
    m->n = 0;
}

int models_find(const struct models *m, const char *name)
{
    for (int i = 0; i < m->n; i++) {
        if (name[0] == '\0' || strcmp(m->at[i].name, name) == 0) return i;
    }
    return -1;
}

void models_list(const struct models *m, bool hashes, char *to, size_t room)
{
    size_t n = 0;
    to[0] = '\0';
    for (int i = 0; i < m->n && n < room; i++) {
        const struct model *one = &m->at[i];
        const char *comma = i > 0 ? ", " : "";
        n += (size_t) (hashes ? snprintf(to + n, room - n, "%s%s %s", comma, one->name, one->hash)
                              : snprintf(to + n, room - n, "%s\"%s\"", comma, one->name));
    }
}
