#define INNER inner_portable
#include "kernels/cpu/inner_body.h"
