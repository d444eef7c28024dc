// How long things took: how many within each of a row of bounds that double, and the time of all.
// One form for steps of a stage and for jobs, so that it can be sent and added up. Plain memory of
// its owner; any thread.
#ifndef PENSTOCK_COMMON_HISTOGRAM_H
#define PENSTOCK_COMMON_HISTOGRAM_H

#include <stdint.h>

// Bounds are 128 us, 256 us, ... up to 38 hours; what took longer is in the last bucket.
enum { HISTOGRAM_BUCKETS = 32, HISTOGRAM_FIRST_US = 128 };

struct histogram {
    uint64_t sum_us;
    uint64_t counts[HISTOGRAM_BUCKETS]; // each without those before it
    int n; // buckets up to the last one that is not 0
};

void histogram_add(struct histogram *h, uint64_t us);

// Adds what another one has.
void histogram_merge(struct histogram *to, const struct histogram *h);

// How many are counted in buckets up to `last` (inclusive).
uint64_t histogram_count(const struct histogram *h, int last);

// Bound of a bucket in microseconds, which it includes. The last one has none.
uint64_t histogram_bound_us(int bucket);

// The time in microseconds below which this share (0 to 1) lies, linear within its bucket; 0 if
// nothing is counted.
uint64_t histogram_quantile_us(const struct histogram *h, double share);

#endif
