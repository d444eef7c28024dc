#define SCAN_TABLE scan_avx512
#define SCAN_LANES 16
#include "kernels/cpu/scan_body.h"
