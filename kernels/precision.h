// The precision that a user names. Any thread.
#ifndef PENSTOCK_KERNELS_PRECISION_H
#define PENSTOCK_KERNELS_PRECISION_H

#include "common/status.h"
#include "kernels/backend.h"

// "f32", "bf16" or "auto": precision_auto on CPUs, bf16 on GPUs. ERR_INPUT bad_usage.
enum status precision_parse(const char *text, const struct backend *b, enum precision *p,
                            struct error *e);

#endif
