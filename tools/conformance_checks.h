// The checks of `penstock conformance producer`, in their order. They share one queue, and one
// program until it fails; each has ids of its own and can run alone.
#ifndef PENSTOCK_TOOLS_CONFORMANCE_CHECKS_H
#define PENSTOCK_TOOLS_CONFORMANCE_CHECKS_H

#include "tools/conformance.h"

// OK; ERR_UNSUPPORTED: the program doesn't know the wish; else what is wrong, in *e.
typedef enum status conformance_run(struct conformance *c, struct error *e);

struct conformance_check {
    const char *name; // for programs
    const char *what; // for people
    conformance_run *run;
};

extern const struct conformance_check CONFORMANCE_CHECKS[];
extern const int CONFORMANCE_N_CHECKS;

// conformance_lost.c
conformance_run conformance_push_cut_off, conformance_push_arrived, conformance_push_full,
    conformance_wait_cut_off, conformance_bulk, conformance_bulk_cut_off;

// conformance_stream.c
conformance_run conformance_stream_comes, conformance_stream_overlap, conformance_stream_gap,
    conformance_stream_rest, conformance_stream_offset, conformance_stream_long_ago,
    conformance_stream_differs, conformance_stream_cut_off, conformance_stream_cancel;

#endif
