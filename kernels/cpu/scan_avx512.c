#define SCAN_TABLE scan_avx512
#include "kernels/cpu/scan_body.h"
