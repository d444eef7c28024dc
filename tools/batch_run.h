// A batch on its way: a bounded window of its lines lies in the queue, answers are written as they
// come. Interrupted at any point and run again with the same input and files, it goes on where it
// was: a line's job has the id of batch and line, so that the queue knows it, and a line that is
// answered is not asked again. One thread.
#ifndef PENSTOCK_TOOLS_BATCH_RUN_H
#define PENSTOCK_TOOLS_BATCH_RUN_H

#include "broker/queue_sync.h"
#include "common/status.h"
#include "tools/batch_input.h"

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

enum { BATCH_WINDOW_MAX = 4096 };

struct batch_options {
    const char *in, *out, *errors;
    const char *tenant;
    const char *batch_id; // NULL: follows from the input's path and content
    int window;           // jobs in the queue at once, up to BATCH_WINDOW_MAX
    const volatile sig_atomic_t *stop; // not 0: leave off; jobs in the queue stay there
};

struct batch_counts {
    char batch_id[BATCH_ID_SIZE];
    int64_t total;        // lines that are not blank
    int64_t done, failed; // in the files, earlier runs included
    int64_t tokens;       // generated for this run's answers
};

// ERR_ABORTED: stopped. Redis may go and come back meanwhile. ERR_INPUT other_batch, bad_name;
// ERR_STATE in_use; ERR_IO; what else Redis refuses. *counts is set as far as it got.
enum status batch_run(const struct batch_options *o, struct queue_sync *q,
                      struct batch_counts *counts, struct error *e);

#endif
