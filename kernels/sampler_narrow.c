#include "kernels/sampler_narrow.h"

#include "common/status.h"

struct narrow narrow_of(bool by_mass, uint64_t want)
{
    return (struct narrow){.by_mass = by_mass, .want = want};
}

void narrow_fill(const struct narrow *n, const struct scan *scan, const float *l, int vocab_n,
                 struct softmax s, struct histogram *h)
{
    uint32_t key[SCAN_CHUNK];
    uint64_t mass[SCAN_CHUNK];
    int rest = 32 - (n->round + 1) * NARROW_BITS; // bits below this round's
    memset(h, 0, sizeof *h);
    for (int begin = 0; begin < vocab_n; begin += SCAN_CHUNK) {
        int width = vocab_n - begin < SCAN_CHUNK ? vocab_n - begin : SCAN_CHUNK;
        scan->list(l + begin, width, s, key, mass);
        for (int i = 0; i < width; i++) {
            uint32_t bits = key[i] >> rest;
            if (bits >> NARROW_BITS != n->prefix) continue;
            h->mass[bits % NARROW_BINS] += mass[i];
            h->count[bits % NARROW_BINS]++;
        }
    }
}

void narrow_step(struct narrow *n, const void *histograms, size_t stride, int n_ranks, int rank)
{
    for (int bin = NARROW_BINS - 1; bin >= 0; bin--) {
        uint64_t mass = 0, count = 0, before = 0, here = 0;
        for (int r = 0; r < n_ranks; r++) {
            const struct histogram *h =
                (const void *) ((const char *) histograms + (size_t) r * stride);
            mass += h->mass[bin];
            count += h->count[bin];
            if (r < rank) before += h->count[bin];
            if (r == rank) here = h->count[bin];
        }
        uint64_t reach = n->by_mass ? mass : count;
        if (reach < n->want) {
            n->want -= reach;
            n->above += mass;
            continue;
        }
        n->prefix = n->prefix << NARROW_BITS | (uint32_t) bin;
        n->round++;
        n->ties_before = before;
        n->ties_here = here;
        return;
    }
    check(false, "the whole vocabulary doesn't reach the cut-off");
}
