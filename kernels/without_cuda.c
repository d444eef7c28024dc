// In place of kernels/cuda where there is no CUDA compiler.
#include "kernels/backend.h"

const struct backend *backend_cuda(void) { return NULL; }
