#include "broker/refusals.h"

#include <stdio.h>
#include <string.h>

static struct refusal *find(struct refusals *r, const char *key, const char *name)
{
    for (int i = 0; i < r->n; i++) {
        struct refusal *at = &r->at[i];
        if (strcmp(at->key, key) == 0 && strcmp(at->name, name) == 0) return at;
    }
    return NULL;
}

bool refusals_new(struct refusals *r, const char *key, const char *name, const struct error *why)
{
    struct refusal *at = find(r, key, name);
    if (at != NULL && strcmp(at->why.code, why->code) == 0 &&
        strcmp(at->why.text, why->text) == 0) {
        return false;
    }
    if (at == NULL) {
        at = &r->at[r->next];
        r->next = (r->next + 1) % REFUSALS_KEPT;
        if (r->n < REFUSALS_KEPT) r->n++;
        snprintf(at->key, sizeof at->key, "%s", key);
        snprintf(at->name, sizeof at->name, "%s", name);
    }
    at->why = *why;
    return true;
}

void refusals_forget(struct refusals *r, const char *key, const char *name)
{
    struct refusal *at = find(r, key, name);
    if (at != NULL) at->why = (struct error){0};
}
