// Predicts what a pipeline that was measured decodes at several batches, from the times of its
// single steps and from what one sequence alone takes, and compares with what was measured.
#ifndef PENSTOCK_TESTS_SIM_CALIBRATED_H
#define PENSTOCK_TESTS_SIM_CALIBRATED_H

#include "common/model_config.h"
#include "common/status.h"

#include <stdbool.h>

// `path`: the CSV of `penstock bench pipeline`. *good: every batch of more than one sequence is
// predicted within 10%. ERR_IO, ERR_INPUT bad_csv.
enum status calibrated_show(const struct model_config *c, const char *path, bool trace, bool *good,
                            struct error *e);

#endif
