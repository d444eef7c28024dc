#define SCAN_TABLE scan_portable
#define SCAN_LANES 4
#include "kernels/cpu/scan_body.h"
