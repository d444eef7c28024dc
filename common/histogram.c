#include "common/histogram.h"

enum { LAST = HISTOGRAM_BUCKETS - 1 };

uint64_t histogram_bound_us(int bucket) { return (uint64_t) HISTOGRAM_FIRST_US << bucket; }

void histogram_add(struct histogram *h, uint64_t us)
{
    int i = 0;
    while (i < LAST && us > histogram_bound_us(i)) i++;
    h->counts[i]++;
    h->sum_us += us;
    if (h->n <= i) h->n = i + 1;
}

void histogram_merge(struct histogram *to, const struct histogram *h)
{
    for (int i = 0; i < h->n; i++) to->counts[i] += h->counts[i];
    to->sum_us += h->sum_us;
    if (to->n < h->n) to->n = h->n;
}

uint64_t histogram_count(const struct histogram *h, int last)
{
    uint64_t n = 0;
    for (int i = 0; i <= last && i < h->n; i++) n += h->counts[i];
    return n;
}

uint64_t histogram_quantile_us(const struct histogram *h, double share)
{
    double wanted = share * (double) histogram_count(h, LAST), before = 0;
    for (int i = 0; i < h->n; i++) {
        double here = (double) h->counts[i];
        if (here <= 0 || before + here < wanted) {
            before += here;
            continue;
        }
        double low = i > 0 ? (double) histogram_bound_us(i - 1) : 0;
        double high = (double) histogram_bound_us(i < LAST ? i : LAST - 1);
        return (uint64_t) (low + (high - low) * (wanted - before) / here);
    }
    return 0;
}
