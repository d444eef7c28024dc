#include "broker/tenants.h"

#include <string.h>

int tenants_find(const struct tenants *t, const char *name)
{
    for (int i = 0; i < t->n; i++) {
        if (t->at[i].name[0] != '\0' && strcmp(t->at[i].name, name) == 0) return i;
    }
    return -1;
}

static int free_place(struct tenants *t)
{
    for (int i = 0; i < t->n; i++) {
        if (t->at[i].name[0] == '\0') return i;
    }
    return t->n < TENANTS_MAX ? t->n++ : -1;
}

bool tenants_merge(struct tenants *t, const struct tenants *now)
{
    bool all = true;
    t->paused = now->paused;
    for (int i = 0; i < t->n; i++) {
        if (tenants_find(now, t->at[i].name) < 0) t->at[i] = (struct tenant){0};
    }
    for (int i = 0; i < now->n; i++) {
        if (now->at[i].name[0] == '\0') continue;
        int place = tenants_find(t, now->at[i].name);
        if (place < 0) place = free_place(t);
        if (place >= 0) t->at[place] = now->at[i];
        all = all && place >= 0;
    }
    return all;
}
