// The tables that say which fields each command has. Only wire.c and wire_grammar.c.
#ifndef PENSTOCK_COMMON_WIRE_GRAMMAR_H
#define PENSTOCK_COMMON_WIRE_GRAMMAR_H

#include "common/schema.h"
#include "common/wire.h"

struct wire_grammar {
    const char *name;
    struct schema header; // of struct wire_message, as is the body
    struct schema body;   // no fields: the body is empty or raw
    bool optional;        // the body may be empty: the byte at there_at is not 0 when it is not
    size_t there_at;
    bool raw;             // the body is the struct wire_bytes at raw_at
    size_t raw_at;
};

extern const struct wire_grammar wire_grammars[WIRE_N_COMMANDS];
extern const char *const wire_state_names[];
extern const char *const wire_reason_names[];
extern const char *const wire_outcome_names[];

#endif
