#include "kernels/sampler_row.h"

#include "kernels/sampler_penalty.h"

struct rule rule_of(const struct sampling *s, int vocab_size)
{
    struct rule r = {.sampling = *s,
                     .penalties = penalty_any(s),
                     .greedy = s->temperature == 0,
                     .top_k = s->top_k < vocab_size ? s->top_k : 0,
                     .top_p = s->top_p < 1,
                     .least = min_p_exponent(s->min_p),
                     .n_list = 1,
                     .raw_total = s->n_logprobs >= 0};
    if (!r.greedy) {
        bool short_k = r.top_k > 0 && r.top_k <= CANDIDATES_MAX;
        if (short_k) {
            r.n_list = r.top_k;
        } else if (r.top_k == 0 && (r.top_p || s->min_p > 0)) {
            r.n_list = CANDIDATES_MAX;
        }
        r.total = r.top_k == 0 && r.top_p;
    }
    int n_top = s->n_logprobs > 0 ? s->n_logprobs : 0;
    if (r.penalties && r.raw_total) {
        r.n_raw_list = n_top > 0 ? n_top : 1;
    } else if (r.n_list < n_top) {
        r.n_list = n_top;
    }
    return r;
}

static void choose(struct row *row, uint64_t entry)
{
    row->stage = ROW_CHOSEN;
    row->id = entry_id(entry);
    row->raw_logit = entry_logit(entry); // replaced later if there are penalties
}

static uint64_t entry_mass(const struct row *row, uint64_t entry)
{
    return mass_of(row->softmax, entry_logit(entry));
}

static bool reaches_least(const struct row *row, uint64_t entry)
{
    return softmax_exponent(row->softmax, entry_logit(entry)) >= row->rule->least;
}

// Draws among kept (n) of the given mass; the walk goes by ascending id, as over the ranks' slices.
static void draw_from(struct row *row, uint64_t *kept, int n, uint64_t mass)
{
    for (int i = 0; i < n; i++) kept[i] = kept[i] << 32 | kept[i] >> 32;
    select_sort(kept, n);
    uint64_t left = mass_draw(row->random, mass);
    for (int i = 0; i < n; i++) {
        uint64_t entry = kept[i] << 32 | kept[i] >> 32, m = entry_mass(row, entry);
        if (left < m) {
            choose(row, entry);
            return;
        }
        left -= m;
    }
    check(false, "the draw lies beyond the kept mass");
}

// Decides from the merged lists if the kept set surely lies inside them. total: mass before top_p,
// used if top_k is off.
static bool decide_from_lists(struct row *row, struct merge m, uint64_t total, uint64_t *kept)
{
    const struct rule *r = row->rule;
    uint64_t sum = 0, need = UINT64_MAX;
    if (r->top_p && r->top_k == 0) need = top_p_mass(r->sampling.top_p, total);
    int n = 0;
    while (r->top_k > 0 ? n < r->top_k : sum < need) {
        uint64_t entry;
        enum merge_result got = merge_next(&m, &entry);
        if (got == MERGE_UNKNOWN) return false;
        if (got == MERGE_END || (r->top_k == 0 && !reaches_least(row, entry))) break;
        kept[n++] = entry;
        sum += entry_mass(row, entry);
    }
    if (r->top_p && r->top_k > 0) {
        need = top_p_mass(r->sampling.top_p, sum);
        int all = n;
        for (n = 0, sum = 0; n < all && sum < need; n++) sum += entry_mass(row, kept[n]);
    }
    while (!reaches_least(row, kept[n - 1])) sum -= entry_mass(row, kept[--n]);
    draw_from(row, kept, n, sum);
    return true;
}

static void keep_all(struct row *row)
{
    row->stage = ROW_KEPT;
    row->above = -INFINITY;
    row->least = row->rule->least;
    row->ties = 0;
}

bool row_decide_lists(struct row *row, const uint64_t *lists, const uint64_t *raw_lists, int stride,
                      int n_ranks, int vocab_size, uint64_t *kept)
{
    const struct rule *r = row->rule;
    struct merge m = merge_of(lists, stride, n_ranks, r->n_list, vocab_size), top = m;
    if (r->n_raw_list > 0) top = merge_of(raw_lists, stride, n_ranks, r->n_raw_list, vocab_size);
    uint64_t first, raw_first = ENTRY_NONE;
    struct merge peek = m;
    check(merge_next(&peek, &first) == MERGE_ENTRY);
    if (entry_logit(first) == -INFINITY) return false;
    if (r->raw_total) {
        peek = top;
        check(merge_next(&peek, &raw_first) == MERGE_ENTRY);
        row->raw_softmax = softmax_of(entry_logit(raw_first), 1.0f);
        while (row->n_top < r->sampling.n_logprobs &&
               merge_next(&top, &row->top[row->n_top]) == MERGE_ENTRY) {
            row->n_top++;
        }
    }
    if (r->greedy) {
        choose(row, first);
        return true;
    }
    row->softmax = softmax_of(entry_logit(first), r->sampling.temperature);
    bool filtered = r->top_k > 0 || r->top_p || r->least > -INFINITY;
    if (r->total) {
        row->stage = ROW_TOTAL;
    } else if (!filtered) {
        keep_all(row);
    } else if (r->top_k > CANDIDATES_MAX) {
        row->stage = ROW_NARROW;
        row->narrow = narrow_of(false, (uint64_t) r->top_k);
    } else if (!decide_from_lists(row, m, 0, kept)) {
        keep_all(row); // only min_p, which needs no search
    }
    return true;
}

void row_decide_total(struct row *row, uint64_t total, const uint64_t *lists, int stride,
                      int n_ranks, int vocab_size, uint64_t *kept)
{
    struct merge m = merge_of(lists, stride, n_ranks, row->rule->n_list, vocab_size);
    if (decide_from_lists(row, m, total, kept)) return;
    row->stage = ROW_NARROW;
    row->narrow = narrow_of(true, top_p_mass(row->rule->sampling.top_p, total));
}

void row_decide_narrow(struct row *row, const void *histograms, size_t stride, int n_ranks,
                       int rank)
{
    struct narrow *n = &row->narrow;
    narrow_step(n, histograms, stride, n_ranks, rank);
    if (n->round < NARROW_ROUNDS) return;
    float last = key_logit(n->prefix);
    uint64_t mass = mass_of(row->softmax, last);
    if (!n->by_mass && row->rule->top_p) {
        uint64_t left = n->above + n->want * mass;
        *n = narrow_of(true, top_p_mass(row->rule->sampling.top_p, left));
        return;
    }
    keep_all(row);
    if (!(softmax_exponent(row->softmax, last) >= row->least)) return; // min_p cuts before
    // All ties have the same mass, so how many are kept follows without looking at them.
    uint64_t ties = n->by_mass ? (n->want + mass - 1) / mass : n->want;
    uint64_t ours = ties > n->ties_before ? ties - n->ties_before : 0;
    row->above = last;
    row->ties = ours < n->ties_here ? ours : n->ties_here;
}

void row_decide_kept(struct row *row, const uint64_t *mass, int stride, int n_ranks)
{
    uint64_t sum = 0;
    for (int r = 0; r < n_ranks; r++) sum += mass[r * stride];
    uint64_t left = mass_draw(row->random, sum);
    int owner = 0;
    while (left >= mass[owner * stride]) left -= mass[owner++ * stride];
    row->stage = ROW_DRAWN;
    row->owner = owner;
    row->draw = left;
}
