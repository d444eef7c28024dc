#define PROBE probe_avx512bf16
#ifdef __AVX512BF16__
#define PROBE_PAIRS
#endif
#include "kernels/cpu/probe_body.h"
