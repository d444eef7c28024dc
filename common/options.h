// Command-line options of all programs: one table gives the flags, their PENSTOCK_* environment
// variables, their checks and the --help text. A flag wins over the environment. Main thread at
// start; values point into argv or the environment.
#ifndef PENSTOCK_COMMON_OPTIONS_H
#define PENSTOCK_COMMON_OPTIONS_H

#include "common/limits.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum option_kind {
    OPTION_FLAG,   // bool: given or not; in the environment 1/0/true/false
    OPTION_STRING, // const char *
    OPTION_LIST,   // struct option_list: given more than once; in the environment with ; between
    OPTION_INT,    // int64_t within [least, most]
    OPTION_NUMBER, // double within [least, most]
    OPTION_BYTES,  // int64_t; K/M/G/T and Ki/Mi/Gi/Ti, with or without B
};

struct option_list {
    int n;
    const char *at[OPTION_LIST_MAX];
    bool from_environment;            // flags replace it
    char text[OPTION_LIST_BYTES_MAX]; // of the environment
};

struct option_spec {
    const char *name;     // without "--"
    enum option_kind kind;
    void *value;          // holds the default; its type follows from the kind
    const char *argument; // as --help shows it: "N", "DIR", ...
    const char *help;     // one sentence
    double least, most;   // INT and NUMBER; both 0: any
    bool given;           // set when the user gave it
};

struct options {
    const char *program; // "penstock batch"
    const char *usage;   // "IN.jsonl -o OUT.jsonl [OPTIONS]"
    const char *about;   // sentences for --help
    struct option_spec *specs; // (n_specs)
    int n_specs;
    const char **positional;   // (max_positional) filled in
    int max_positional, n_positional;
    bool environment;    // read PENSTOCK_<NAME> too (dashes become underscores)
    bool help;           // set when --help was printed
};

// Reads argv[1..]; "-o" may stand for "--output" if there is one. --help prints to stdout and sets
// o->help. ERR_INPUT bad_usage names the flag and what it wants.
enum status options_parse(struct options *o, int argc, char **argv, struct error *e);

// The value of an environment variable, or else the first line of the file that NAME_FILE names, as
// secrets of containers come (it is put into the environment of this process). NULL: neither is
// there, or the file can't be read: then e says so.
const char *options_environment(const char *name, struct error *e);

// A count of bytes, e.g. "24G", "1.5GiB", "512".
enum status options_bytes(const char *text, int64_t *bytes, struct error *e);

// The values of --layers and --pp: "3,4,2" gives 3 stages and their layers, no text (NULL) `pp`
// stages (1 if it is 0, not given), whose layers the plan chooses: layers[0] is 0. ERR_INPUT
// bad_usage, also where both are given and disagree.
enum status options_layers(const char *text, int64_t pp, int layers[PP_MAX], int *n_stages,
                           struct error *e);

// The same for one model, of values that are for all models or written NAME=VALUE; its own go
// first. Name it as --model does.
enum status options_stages(const struct option_list *pp, const struct option_list *layers,
                           const char *model, int to[PP_MAX], int *n_stages, struct error *e);

// The name before the '=' of NAME=VALUE: its length; 0: there is none.
size_t options_name(const char *text);

#endif
