#define PROBE probe_portable
#include "kernels/cpu/probe_body.h"
