#include "kernels/sampler_slice.h"

#include "common/status.h"

static int chunk_width(const struct slice *s, int begin)
{
    return s->n - begin < SCAN_CHUNK ? s->n - begin : SCAN_CHUNK;
}

static struct sampler_bounds bounds_of(const struct slice *s)
{
    return (struct sampler_bounds){s->least, INFINITY};
}

static uint64_t count_equal(const float *l, int n, float x)
{
    uint32_t count = 0;
    for (int i = 0; i < n; i++) count += l[i] == x;
    return count;
}

uint64_t slice_mass(const struct slice *s, struct kept kept, const float *ahead)
{
    uint64_t sum = 0, ties = kept.ties, tie_mass = ties > 0 ? mass_of(s->softmax, kept.above) : 0;
    for (int begin = 0, c = 0; begin < s->n; begin += SCAN_CHUNK, c++) {
        const float *l = s->l + begin, *next = ahead != NULL ? ahead + begin : NULL;
        int n = chunk_width(s, begin);
        struct sampler_bounds bounds = s->bounded ? s->chunks[c].bounds : bounds_of(s);
        uint64_t mass = kept.above == -INFINITY
                            ? s->scan->sum(l, n, s->softmax, bounds, next)
                            : s->scan->sum_above(l, n, s->softmax, bounds, kept.above);
        if (ties > 0) {
            uint64_t equal = count_equal(l, n, kept.above), few = equal < ties ? equal : ties;
            mass += few * tie_mass;
            ties -= few;
        }
        if (s->chunks != NULL) s->chunks[c].mass = mass;
        sum += mass;
    }
    return sum;
}

int slice_walk(const struct slice *s, struct kept kept, uint64_t draw)
{
    int c = 0;
    while (draw >= s->chunks[c].mass) draw -= s->chunks[c++].mass;
    int begin = c * SCAN_CHUNK, n = chunk_width(s, begin);
    const float *l = s->l + begin;
    uint64_t used = kept.ties > 0 ? count_equal(s->l, begin, kept.above) : 0;
    uint64_t ties = used < kept.ties ? kept.ties - used : 0, mass[SCAN_CHUNK];
    s->scan->list(l, n, s->softmax, mass);
    for (int i = 0; i < n; i++) {
        bool tie = ties > 0 && l[i] == kept.above;
        ties -= tie;
        if (!tie && !(l[i] > kept.above)) continue;
        if (draw < mass[i]) return begin + i;
        draw -= mass[i];
    }
    check(false, "the draw lies beyond the kept mass");
}

// From both ends in turns: of equal logits, those before the token lie at one, the others at the
// other.
uint64_t slice_before(const struct slice *s, float l, int at, uint64_t most, uint64_t rest)
{
    float below = nextafterf(l, -INFINITY);
    struct sampler_bounds bounds = bounds_of(s);
    uint64_t before = 0, after = 0;
    int n_chunks = (s->n + SCAN_CHUNK - 1) / SCAN_CHUNK;
    for (int k = 0; k < n_chunks && before < most && after <= rest; k++) {
        int c = k % 2 == 0 ? k / 2 : n_chunks - 1 - k / 2, begin = c * SCAN_CHUNK;
        const float *chunk = s->l + begin;
        int n = chunk_width(s, begin), first = at - begin;
        first = first < 0 ? 0 : first < n ? first : n;
        uint64_t mass = s->scan->sum_above(chunk, first, s->softmax, bounds, below) +
                        s->scan->sum_above(chunk + first, n - first, s->softmax, bounds, l);
        before += mass;
        after += s->chunks[c].mass - mass;
    }
    return before;
}
