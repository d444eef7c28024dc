#define GEMM_INNER gemm_avx512bf16
#ifdef __AVX512BF16__
#define GEMM_PAIRS
#endif
#include "kernels/cpu/gemm_body.h"
