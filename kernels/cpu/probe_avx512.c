#define PROBE probe_avx512
#include "kernels/cpu/probe_body.h"
