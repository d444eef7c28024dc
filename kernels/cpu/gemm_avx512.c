#define GEMM_INNER gemm_avx512
#include "kernels/cpu/gemm_body.h"
