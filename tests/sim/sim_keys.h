// The keys of the simulated Redis: strings, hashes, sorted sets, lists and streams with expiry, and
// the commands that the function library uses on them. Pure but for the heap; its caller brings the
// time.
#ifndef PENSTOCK_TESTS_SIM_SIM_KEYS_H
#define PENSTOCK_TESTS_SIM_SIM_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bytes {
    const char *at;
    size_t n;
};

enum answer_kind {
    ANSWER_NIL, ANSWER_STATUS, ANSWER_NUMBER, ANSWER_BYTES, ANSWER_LIST, ANSWER_ERROR,
};

// Of a command. Bytes last until the next command; what a list begins is in its parts.
struct answer {
    enum answer_kind kind;
    int64_t number;
    struct bytes bytes; // also the error's text
    size_t n;           // parts of a list
    struct answer *parts;
};

struct keys;

struct keys *keys_create(void);
void keys_destroy(struct keys **keys);

// Runs one command; argv[0] is its name. It is executed at this time.
struct answer keys_run(struct keys *k, int64_t now_ms, const struct bytes *argv, int argc);

#endif
