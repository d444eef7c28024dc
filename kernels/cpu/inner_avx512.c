#define INNER inner_avx512
#include "kernels/cpu/inner_body.h"
