// The checks of `penstock conformance producer`, in their order. They share one program and one
// queue; each has ids of its own.
#ifndef PENSTOCK_TOOLS_CONFORMANCE_CHECKS_H
#define PENSTOCK_TOOLS_CONFORMANCE_CHECKS_H

#include "tools/conformance_broker.h"
#include "tools/conformance_program.h"

struct conformance {
    struct conformance_broker broker;
    struct conformance_program program;
};

struct conformance_check {
    const char *name;  // for programs
    const char *what;  // for people
    // OK; ERR_UNSUPPORTED: the program doesn't know the wish; else what is wrong, in *e.
    enum status (*run)(struct conformance *c, struct error *e);
};

extern const struct conformance_check CONFORMANCE_CHECKS[];
extern const int CONFORMANCE_N_CHECKS;

#endif
