// A table from bytes to a pointer, in an order that its contents decide. One owner; knows not what
// it holds.
#ifndef PENSTOCK_TESTS_SIM_SIM_DICT_H
#define PENSTOCK_TESTS_SIM_SIM_DICT_H

#include "tests/sim/sim_keys.h"

struct dict_entry {
    struct dict_entry *next; // in its bucket
    void *value;
    size_t n;
    char key[];
};

struct dict {
    struct dict_entry **buckets; // NULL: empty
    size_t n_buckets, n;
};

struct dict_entry *dict_find(const struct dict *d, struct bytes key);
struct dict_entry *dict_add(struct dict *d, struct bytes key); // it is not there
void *dict_remove(struct dict *d, struct bytes key);           // its value; NULL: it was not there
void dict_free(struct dict *d, void (*free_value)(void *value));

#endif
