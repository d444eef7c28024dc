#define PROBE probe_avx2
#include "kernels/cpu/probe_body.h"
