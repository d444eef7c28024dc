// Row buckets: the row counts for which a device records its steps and replays them. A step is
// padded to the smallest that holds it; less than half of it is padding then, beyond 16 rows less
// than a third. The last is the most rows there can be: nothing outgrows its buffers. Pure; any
// thread.
#ifndef PENSTOCK_COMMON_ROW_BUCKETS_H
#define PENSTOCK_COMMON_ROW_BUCKETS_H

#include "common/limits.h"

// 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, ... below `most`, then `most`: ascending. Returns how many;
// none for most == 0.
int row_buckets(int most, int buckets[ROW_BUCKETS_MAX]);

// The smallest that holds n_rows, 1 <= n_rows <= most.
int row_bucket(int n_rows, int most);

#endif
