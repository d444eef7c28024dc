#define GEMM_INNER gemm_portable
#include "kernels/cpu/gemm_body.h"
