#define SCAN_TABLE scan_avx2
#define SCAN_LANES 8
#include "kernels/cpu/scan_body.h"
