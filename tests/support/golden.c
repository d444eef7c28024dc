#include "tests/support/golden.h"

#include "common/safetensors.h"

#include <stdio.h>
#include <stdlib.h>

// The tensor's bytes with its integers narrowed to 32 bits; NULL if there is none.
static void *read_tensor(const struct safetensors *s, const char *name, int *n)
{
    struct error e = {0};
    const struct tensor *t = safetensors_find(s, name);
    if (t == NULL) return NULL;
    int64_t elements = 1;
    for (int i = 0; i < t->n_dims; i++) elements *= t->shape[i];
    char *bytes = malloc(t->bytes);
    check(bytes != NULL && safetensors_read(s, t->offset, bytes, t->bytes, &e) == OK, "%s", e.text);
    int64_t *wide = (int64_t *) (void *) bytes;
    int32_t *narrow = (int32_t *) (void *) bytes;
    for (int64_t i = 0; t->bytes == 8 * (uint64_t) elements && i < elements; i++) {
        narrow[i] = (int32_t) wide[i];
    }
    *n = (int) elements;
    return bytes;
}

static void *read_part(const struct safetensors *s, int prompt, const char *part, int *n)
{
    char name[64];
    snprintf(name, sizeof name, "p%d.%s", prompt, part);
    return read_tensor(s, name, n);
}

void golden_load(struct golden *g, const char *dir)
{
    struct safetensors s;
    struct error e = {0};
    char path[512];
    snprintf(path, sizeof path, "%s/golden.safetensors", dir);
    check(safetensors_open(&s, path, &e) == OK, "%s", e.text);
    *g = (struct golden){0};
    for (int i = 0; i < GOLDEN_PROMPTS; i++) {
        struct golden_prompt *p = &g->prompts[i];
        int n_last = 0, n_all = 0, n_margin = 0;
        p->ids = read_part(&s, i, "ids", &p->n_ids);
        if (p->ids == NULL) break;
        g->n_prompts++;
        float *last = read_part(&s, i, "logits_last", &n_last);
        p->logits = read_part(&s, i, "logits_all", &n_all);
        p->n_rows = p->logits != NULL ? p->n_ids : 1;
        g->vocab = n_last;
        if (p->logits == NULL) p->logits = last;
        else free(last);
        p->greedy = read_part(&s, i, "greedy", &p->n_greedy);
        p->margin = read_part(&s, i, "margin", &n_margin);
        check(p->logits != NULL && p->greedy != NULL && n_margin == p->n_greedy,
              "%s: prompt %d is incomplete", path, i);
    }
    check(g->n_prompts > 0, "%s holds no prompts", path);
    safetensors_close(&s);
}

void golden_free(struct golden *g)
{
    for (int i = 0; i < g->n_prompts; i++) {
        free(g->prompts[i].ids);
        free(g->prompts[i].logits);
        free(g->prompts[i].greedy);
        free(g->prompts[i].margin);
    }
}
