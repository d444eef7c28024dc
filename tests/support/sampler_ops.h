// The sampler's ops of a device (kernels/sampler_ops.h) by plain loops over host memory, and a
// backend that has them and little else, so that a batch of a device can be tested without one.
#ifndef PENSTOCK_TESTS_SAMPLER_OPS_H
#define PENSTOCK_TESTS_SAMPLER_OPS_H

#include "kernels/backend.h"

// Has sync, download and the sampler; its device may be NULL.
const struct backend *sampler_ops_backend(void);

#endif
