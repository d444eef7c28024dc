#define INNER inner_avx2
#include "kernels/cpu/inner_body.h"
