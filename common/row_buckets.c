#include "common/row_buckets.h"

#include "common/status.h"

enum { DOUBLING = 16 }; // up to here there is one bucket an octave, then there are two

static int next(int bucket)
{
    if (bucket < DOUBLING) return bucket * 2;
    bool power = (bucket & (bucket - 1)) == 0;
    return power ? bucket / 2 * 3 : bucket / 3 * 4;
}

int row_buckets(int most, int buckets[ROW_BUCKETS_MAX])
{
    int n = 0;
    check(most >= 0 && most <= STEP_ROWS_MAX, "%d rows", most);
    for (int bucket = 1; bucket < most; bucket = next(bucket)) buckets[n++] = bucket;
    if (most > 0) buckets[n++] = most;
    return n;
}

int row_bucket(int n_rows, int most)
{
    check(n_rows >= 1 && n_rows <= most, "%d of %d rows", n_rows, most);
    int bucket = 1;
    while (bucket < n_rows) bucket = next(bucket);
    return bucket < most ? bucket : most;
}
