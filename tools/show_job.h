// What is known of a job that may not have ended, on stdout: for people, or as JSON.
#ifndef PENSTOCK_TOOLS_SHOW_JOB_H
#define PENSTOCK_TOOLS_SHOW_JOB_H

#include "broker/queue_sync.h"

// The exit status: EXIT_FAILED if there is no such job.
int show_job(const char *program, struct queue_sync *q, const char *tenant, const char *id,
             bool json);

#endif
