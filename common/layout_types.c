#include "common/layout_types.h"

#include <string.h>

static uint8_t *type_at(struct layout_types *t, const struct slice *s)
{
    return s->layer < 0 ? &t->outside[s->role] : &t->layers[s->layer][s->role];
}

enum dtype layout_type(const struct layout_types *t, const struct slice *s)
{
    return (enum dtype) (s->layer < 0 ? t->outside[s->role] : t->layers[s->layer][s->role]);
}

struct filling {
    struct layout_types *types;
    const struct model_config *config;
    const struct checkpoint *checkpoint; // NULL: imply
};

static enum status fill(const struct slice *s, void *arg)
{
    const struct filling *f = arg;
    if (s->expert > 0) return OK;
    const struct tensor *t = f->checkpoint == NULL ? NULL : checkpoint_find(f->checkpoint, s->name);
    enum dtype type = t != NULL ? t->dtype : layout_implied_type(f->config, s);
    *type_at(f->types, s) = (uint8_t) type;
    return OK;
}

static enum status walk_all(const struct model_config *c, layout_visit *visit, void *arg)
{
    struct placement whole = layout_whole(c);
    try(layout_walk(c, &whole, visit, arg));
    for (int i = 0; i < c->n_mtp_layers; i++) {
        try(layout_walk_mtp(c, &whole, c->n_layers + i, true, visit, arg));
    }
    return OK;
}

void layout_types_read(struct layout_types *t, const struct model_config *c,
                       const struct checkpoint *checkpoint)
{
    struct filling f = {t, c, checkpoint};
    memset(t, 0, sizeof *t);
    check(walk_all(c, fill, &f) == OK);
}

// Layers with the same kind of FFN are alike: one of each is walked.
void layout_types_imply(struct layout_types *t, const struct model_config *c)
{
    struct filling f = {t, c, NULL};
    struct placement place = {.head = true, .tail = true, .tp = 1};
    int dense = c->n_dense_layers, last = c->n_layers;
    memset(t, 0, sizeof *t);
    check(layout_walk(c, &place, fill, &f) == OK);
    for (int i = 0; i < last; i++) {
        place = (struct placement){.first = i, .last = i + 1, .tp = 1};
        if (i == 0 || i == dense) check(layout_walk(c, &place, fill, &f) == OK);
        else memcpy(t->layers[i], t->layers[i - 1], sizeof *t->layers);
    }
    for (int i = 0; i < c->n_mtp_layers; i++) {
        check(layout_walk_mtp(c, &place, last + i, true, fill, &f) == OK);
    }
}

struct counting {
    const struct model_config *config;
    const struct layout_types *types;
    struct model_size size;
};

static enum status count(const struct slice *s, void *arg)
{
    struct counting *n = arg;
    enum dtype type = layout_type(n->types, s);
    uint64_t bytes = layout_slice_bytes_as(n->config, s, type);
    n->size.tensors++;
    n->size.elements += s->rows * s->cols;
    n->size.bytes += bytes;
    if (type == DTYPE_F8_E4M3) {
        n->size.tensors++;
        n->size.elements +=
            (int64_t) (bytes - (uint64_t) (s->rows * s->cols)) / (int64_t) sizeof(float);
    }
    return OK;
}

static struct model_size difference(struct model_size a, struct model_size b)
{
    return (struct model_size){a.tensors - b.tensors, a.elements - b.elements, a.bytes - b.bytes};
}

static void add(struct model_size *to, struct model_size n)
{
    to->tensors += n.tensors;
    to->elements += n.elements;
    to->bytes += n.bytes;
}

struct model_size layout_model_size(const struct model_config *c, const struct layout_types *t)
{
    struct counting n = {c, t, {0}};
    struct placement place = {.head = true, .tail = true, .tp = 1};
    struct model_size layer = {0};
    check(layout_walk(c, &place, count, &n) == OK);
    for (int i = 0; i < c->n_layers; i++) {
        bool like = i > 0 && i != c->n_dense_layers &&
                    memcmp(t->layers[i], t->layers[i - 1], sizeof *t->layers) == 0;
        struct model_size before = n.size;
        place = (struct placement){.first = i, .last = i + 1, .tp = 1};
        if (like) add(&n.size, layer);
        else check(layout_walk(c, &place, count, &n) == OK);
        layer = difference(n.size, before);
    }
    for (int i = 0; i < c->n_mtp_layers; i++) {
        check(layout_walk_mtp(c, &place, c->n_layers + i, true, count, &n) == OK);
    }
    return n.size;
}
