#define GEMM_INNER gemm_avx2
#include "kernels/cpu/gemm_body.h"
