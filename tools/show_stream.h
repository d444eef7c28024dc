// A job's text on stdout while it comes.
#ifndef PENSTOCK_TOOLS_SHOW_STREAM_H
#define PENSTOCK_TOOLS_SHOW_STREAM_H

#include "broker/queue_sync.h"

// Prints the text from byte `offset` on, up to the job's end, and then as show_result: a line's
// end, or on stderr why there is no more. from: event id taken before the push, or NULL. The exit
// status: EXIT_FAILED unless the result is ok.
int show_stream(const char *program, struct queue_sync *q, const char *tenant, const char *id,
                const char *from, uint64_t offset, int64_t timeout_ms);

#endif
