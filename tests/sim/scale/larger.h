// Limits of a larger broker, for sim-scale alone: it is included before all else, so
// that what comes later finds common/limits.h read. The programs keep theirs.
#ifndef PENSTOCK_TESTS_SIM_SCALE_LARGER_H
#define PENSTOCK_TESTS_SIM_SCALE_LARGER_H

#include "common/limits.h"

#undef PIPELINES_MAX
#define PIPELINES_MAX 1024
#undef MODELS_MAX
#define MODELS_MAX 1
#undef SLOTS_MAX
#define SLOTS_MAX 32768 // JOBS_MAX is twice that

#endif
