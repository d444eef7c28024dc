#define SCAN_TABLE scan_portable
#include "kernels/cpu/scan_body.h"
