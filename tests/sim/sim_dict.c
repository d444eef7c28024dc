#include "tests/sim/sim_dict.h"

#include "common/status.h"

#include <stdlib.h>
#include <string.h>

enum { BUCKETS_FIRST = 8 };

// FNV-1a.
static uint64_t hash_of(struct bytes key)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < key.n; i++) h = (h ^ (unsigned char) key.at[i]) * 0x100000001b3u;
    return h ^ (h >> 29);
}

static struct dict_entry **place_of(const struct dict *d, struct bytes key)
{
    struct dict_entry **at = &d->buckets[hash_of(key) & (d->n_buckets - 1)];
    while (*at != NULL && ((*at)->n != key.n || memcmp((*at)->key, key.at, key.n) != 0)) {
        at = &(*at)->next;
    }
    return at;
}

struct dict_entry *dict_find(const struct dict *d, struct bytes key)
{
    return d->buckets != NULL ? *place_of(d, key) : NULL;
}

static void grow(struct dict *d)
{
    struct dict old = *d;
    d->n_buckets = old.n_buckets > 0 ? 2 * old.n_buckets : BUCKETS_FIRST;
    d->buckets = calloc(d->n_buckets, sizeof *d->buckets);
    check(d->buckets != NULL, "no memory for a table");
    for (size_t i = 0; i < old.n_buckets; i++) {
        for (struct dict_entry *e = old.buckets[i], *next; e != NULL; e = next) {
            next = e->next;
            struct dict_entry **at = place_of(d, (struct bytes){e->key, e->n});
            e->next = NULL;
            *at = e;
        }
    }
    free(old.buckets);
}

struct dict_entry *dict_add(struct dict *d, struct bytes key)
{
    if (d->n >= d->n_buckets) grow(d);
    struct dict_entry *e = malloc(sizeof *e + key.n + 1);
    check(e != NULL, "no memory for an entry");
    *e = (struct dict_entry){.n = key.n};
    memcpy(e->key, key.at, key.n);
    e->key[key.n] = '\0';
    struct dict_entry **at = place_of(d, key);
    *at = e;
    d->n++;
    return e;
}

void *dict_remove(struct dict *d, struct bytes key)
{
    if (d->buckets == NULL) return NULL;
    struct dict_entry **at = place_of(d, key), *e = *at;
    if (e == NULL) return NULL;
    void *value = e->value;
    *at = e->next;
    free(e);
    d->n--;
    return value;
}

void dict_free(struct dict *d, void (*free_value)(void *value))
{
    for (size_t i = 0; i < d->n_buckets; i++) {
        for (struct dict_entry *e = d->buckets[i], *next; e != NULL; e = next) {
            next = e->next;
            free_value(e->value);
            free(e);
        }
    }
    free(d->buckets);
    *d = (struct dict){0};
}
