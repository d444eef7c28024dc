#include "kernels/sampler_narrow.h"

#include "common/status.h"
#include "kernels/sampler_select.h"

struct narrow narrow_of(bool by_mass, uint64_t want)
{
    return (struct narrow){.by_mass = by_mass, .want = want};
}

enum { STRIDE_LEAST = 8 }; // a denser sample would cost as much as it spares

// Four deviations of what a random sample holds of the wanted ones make a lack of them rare.
float narrow_floor(const float *l, int n, int want, uint64_t *scratch)
{
    int stride = n / NARROW_SAMPLE;
    double wanted = (double) want * NARROW_SAMPLE / n, place = wanted + 4 * sqrt(wanted) + 4;
    if (stride < STRIDE_LEAST || place > NARROW_SAMPLE / 2) return -INFINITY;
    for (int i = 0; i < NARROW_SAMPLE; i++) scratch[i] = entry_of(l[i * stride], i);
    select_first(scratch, NARROW_SAMPLE, (int) place);
    uint64_t last = scratch[0];
    for (int i = 1; i < (int) place; i++) last = scratch[i] > last ? scratch[i] : last;
    return entry_logit(last);
}

enum { LANES = 4, GROUP = 32, PIECE = 256 };

// Neighbours often fall into one bin; lanes of their own spare them waiting for each other. One bin
// more for what hasn't the prefix.
struct lane {
    struct {
        uint64_t mass, count;
    } bins[NARROW_BINS + 1];
};

// A group of logits of which all fall into one bin is added at once; of no interest if that's the
// last.
static void add_group(const uint16_t *bin, const uint64_t *mass, int n, struct lane lanes[LANES])
{
    uint16_t least = UINT16_MAX, most = 0;
    for (int i = 0; i < n; i++) {
        least = bin[i] < least ? bin[i] : least;
        most = bin[i] > most ? bin[i] : most;
    }
    if (least == NARROW_BINS) return;
    if (least == most) {
        uint64_t sum = 0;
        for (int i = 0; i < n; i++) sum += mass[i];
        lanes[0].bins[least].mass += sum;
        lanes[0].bins[least].count += (uint64_t) n;
        return;
    }
    for (int i = 0; i < n; i++) {
        struct lane *lane = &lanes[i % LANES];
        lane->bins[bin[i]].mass += mass[i];
        lane->bins[bin[i]].count++;
    }
}

void narrow_fill(const struct narrow *n, const struct scan *scan, const float *l, int n_logits,
                 struct softmax s, struct histogram *h)
{
    struct lane lanes[LANES];
    uint16_t bin[PIECE];
    uint64_t mass[PIECE];
    memset(lanes, 0, sizeof lanes);
    for (int begin = 0; begin < n_logits; begin += PIECE) {
        int width = n_logits - begin < PIECE ? n_logits - begin : PIECE;
        if (!scan->bins(l + begin, width, n->round * NARROW_BITS, n->prefix, bin)) continue;
        scan->list(l + begin, width, s, mass);
        for (int i = 0; i < width; i += GROUP) {
            int count = width - i < GROUP ? width - i : GROUP;
            add_group(bin + i, mass + i, count, lanes);
        }
    }
    for (int i = 0; i < NARROW_BINS; i++) {
        h->mass[i] = 0;
        h->count[i] = 0;
        for (int j = 0; j < LANES; j++) {
            h->mass[i] += lanes[j].bins[i].mass;
            h->count[i] += (uint32_t) lanes[j].bins[i].count;
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
