#include "kernels/sampler_select.h"

#include "common/status.h"
#include "kernels/sampler_scan.h"

enum { INSERTION_MAX = 16, SLACK = SAMPLER_SLACK, FEW = 16 };

static void insertion_sort(uint64_t *a, int n)
{
    for (int i = 1; i < n; i++) {
        uint64_t x = a[i];
        int j = i;
        for (; j > 0 && a[j - 1] > x; j--) a[j] = a[j - 1];
        a[j] = x;
    }
}

static uint64_t median(uint64_t a, uint64_t b, uint64_t c)
{
    if (a > b) {
        uint64_t t = a;
        a = b;
        b = t;
    }
    return c < a ? a : c > b ? b : c;
}

// Hoare's partition: returns m with a[0, m) <= a[m, n), 0 < m < n. n > 2.
static int partition(uint64_t *a, int n)
{
    uint64_t pivot = median(a[0], a[n / 2], a[n - 1]);
    int i = -1, j = n;
    for (;;) {
        do i++;
        while (a[i] < pivot);
        do j--;
        while (a[j] > pivot);
        if (i >= j) break;
        uint64_t t = a[i];
        a[i] = a[j];
        a[j] = t;
    }
    return j + 1 < n ? j + 1 : j;
}

void select_first(uint64_t *a, int n, int k)
{
    while (n > INSERTION_MAX) {
        int m = partition(a, n);
        if (k == m) return;
        if (k < m) {
            n = m;
        } else {
            a += m;
            n -= m;
            k -= m;
        }
    }
    insertion_sort(a, n);
}

void select_sort(uint64_t *a, int n)
{
    while (n > INSERTION_MAX) {
        int m = partition(a, n);
        if (m < n - m) {
            select_sort(a, m);
            a += m;
            n -= m;
        } else {
            select_sort(a + m, n - m);
            n = m;
        }
    }
    insertion_sort(a, n);
}

int32_t select_draw(uint64_t *a, int n, uint64_t draw)
{
    while (n > INSERTION_MAX) {
        int m = partition(a, n);
        uint64_t mass = 0;
        for (int i = 0; i < m; i++) mass += draw_word_mass(a[i]);
        if (draw < mass) {
            n = m;
        } else {
            draw -= mass;
            a += m;
            n -= m;
        }
    }
    insertion_sort(a, n);
    for (int i = 0; i < n; i++) {
        if (draw < draw_word_mass(a[i])) return (int32_t) (a[i] >> 32);
        draw -= draw_word_mass(a[i]);
    }
    check(false, "the draw lies beyond the kept mass");
}

static int block_count(int n) { return (n + SCAN_BLOCK - 1) / SCAN_BLOCK; }

enum { LANES = 16 };

// What max (n) lies between; in lanes, since one comparison would wait for the other.
static struct sampler_bounds bounds_of(const float *max, int n)
{
    float least[LANES], most[LANES];
    for (int j = 0; j < LANES; j++) least[j] = most[j] = max[j < n ? j : 0];
    for (int i = 0; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            least[j] = max[i + j] < least[j] ? max[i + j] : least[j];
            most[j] = max[i + j] > most[j] ? max[i + j] : most[j];
        }
    }
    struct sampler_bounds b = {max[0], max[0]};
    for (int i = 0; i < LANES + n % LANES; i++) {
        float low = i < LANES ? least[i] : max[n - 1 - i + LANES];
        float high = i < LANES ? most[i] : low;
        b.least = low < b.least ? low : b.least;
        b.most = high > b.most ? high : b.most;
    }
    return b;
}

static void first_largest(const float *l, int n, int32_t first_id, const float *max, uint64_t *list)
{
    float most = bounds_of(max, block_count(n)).most;
    int best = 0;
    while (max[best] != most) best++;
    int i = best * SCAN_BLOCK;
    while (l[i] != most) i++;
    list[0] = entry_of(l[i], first_id + i);
}

static int count_reaching(const float *max, int n, float floor)
{
    int count = 0;
    for (int i = 0; i < n; i++) count += max[i] >= floor;
    return count;
}

// A logit that at least `want` tokens reach, and not many more if they are spread over the blocks:
// one that from `want` to half as many again block maxima reach, or as near as equal maxima allow.
static float floor_of(const float *max, int n_blocks, int want)
{
    if (n_blocks <= want) return -INFINITY;
    struct sampler_bounds b = bounds_of(max, n_blocks);
    uint32_t low = key_of(b.least), high = key_of(b.most) + 1; // reached by enough, by too few
    for (int reached = n_blocks; high - low > 1 && reached > want + want / 2;) {
        uint32_t middle = low + (high - low) / 2;
        int count = count_reaching(max, n_blocks, key_logit(middle));
        if (count >= want) {
            low = middle;
            reached = count;
        } else {
            high = middle;
        }
    }
    return key_logit(low);
}

// Keeps the first `want` of a (n) and returns the last of these.
static uint64_t keep_first(uint64_t *a, int n, int want)
{
    select_first(a, n, want);
    uint64_t last = a[0];
    for (int i = 1; i < want; i++) last = a[i] > last ? a[i] : last;
    return last;
}

// The entries chosen so far: of those with logits that reach `floor` and before `bound`.
struct choice {
    const struct scan *scan;
    const float *l, *max;
    int n, want, count;
    int32_t first_id;
    uint64_t *entries; // (SLACK * want)
    uint64_t bound;
    int bound_at; // its token's index
    float floor, behind;
};

// What logits from index `at` on have to reach: behind the bound's token, equal ones come too late.
static float floor_at(const struct choice *c, int at)
{
    return at > c->bound_at ? c->behind : c->floor;
}

// False if the entries fill their room and `sole`; else the best `want` of them stay.
static bool choose_in_block(struct choice *c, int at, bool sole)
{
    int32_t index[SCAN_BLOCK];
    int width = c->n - at < SCAN_BLOCK ? c->n - at : SCAN_BLOCK;
    int found = c->scan->reach(c->l + at, width, floor_at(c, at), index);
    for (int i = 0; i < found; i++) {
        int32_t id = c->first_id + at + index[i];
        uint64_t entry = entry_of(c->l[at + index[i]], id);
        if (entry >= c->bound) continue;
        c->entries[c->count++] = entry;
        if (c->count < SLACK * c->want) continue;
        if (sole) return false;
        c->bound = keep_first(c->entries, c->count, c->want);
        c->bound_at = entry_id(c->bound) - c->first_id;
        c->floor = entry_logit(c->bound);
        c->behind = nextafterf(c->floor, INFINITY);
        c->count = c->want;
    }
    return true;
}

// Takes the blocks whose maxima reach `high`, or those that don't.
static void choose_in_blocks(struct choice *c, float high, bool reach)
{
    for (int b = 0, at = 0; at < c->n; b++, at += SCAN_BLOCK) {
        if ((c->max[b] >= high) == reach && c->max[b] >= floor_at(c, at)) {
            choose_in_block(c, at, false);
        }
    }
}

// Whether all that reach the floor fit.
static bool choose_all(struct choice *c)
{
    for (int b = 0, at = 0; at < c->n; b++, at += SCAN_BLOCK) {
        if (c->max[b] >= c->floor && !choose_in_block(c, at, true)) return false;
    }
    return true;
}

void select_top(const struct scan *scan, const float *l, int n, int32_t first_id, const float *max,
                int want, uint64_t *scratch, uint64_t *list)
{
    for (int i = 0; i < want; i++) list[i] = ENTRY_NONE;
    if (n == 0 || want == 0) return;
    if (want == 1) {
        first_largest(l, n, first_id, max, list);
        return;
    }
    struct choice c = {.scan = scan, .l = l, .max = max, .n = n, .want = want, .first_id = first_id,
                       .entries = scratch, .bound = ENTRY_NONE, .bound_at = n,
                       .floor = floor_of(max, block_count(n), want)};
    if (!choose_all(&c)) {
        // The largest lie side by side. Few blocks, if the best, give a bound that leaves little of
        // the others.
        c.count = 0;
        float high = floor_of(max, block_count(n), (want + FEW - 1) / FEW);
        choose_in_blocks(&c, high, true);
        choose_in_blocks(&c, high, false);
    }
    if (c.count > want) {
        keep_first(c.entries, c.count, want);
        c.count = want;
    }
    select_sort(c.entries, c.count);
    memcpy(list, c.entries, (size_t) c.count * sizeof *list);
}

struct merge merge_of(const uint64_t *lists, int stride, int n_ranks, int n_list, int vocab_size)
{
    return (struct merge){.lists = lists,
                          .stride = stride,
                          .n_ranks = n_ranks,
                          .n_list = n_list,
                          .vocab_size = vocab_size};
}

enum merge_result merge_next(struct merge *m, uint64_t *entry)
{
    if (m->taken == m->vocab_size) return MERGE_END;
    uint64_t best = ENTRY_NONE;
    int from = 0;
    for (int r = 0; r < m->n_ranks; r++) {
        if (m->at[r] == m->n_list) return MERGE_UNKNOWN;
        uint64_t head = m->lists[r * m->stride + m->at[r]];
        if (head < best) {
            best = head;
            from = r;
        }
    }
    m->at[from]++;
    m->taken++;
    *entry = best;
    return MERGE_ENTRY;
}
