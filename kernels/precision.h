// The precision that a user names. Any thread.
#ifndef PENSTOCK_KERNELS_PRECISION_H
#define PENSTOCK_KERNELS_PRECISION_H

#include "common/status.h"
#include "kernels/backend.h"

// "auto" (precision_auto), "f32" or "bf16". ERR_INPUT bad_usage.
enum status precision_parse(const char *text, enum precision *p, struct error *e);

#endif
