#define SCAN_TABLE scan_avx2
#include "kernels/cpu/scan_body.h"
