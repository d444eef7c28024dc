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
            r.n_list = NUCLEUS_LIST;
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

bool rule_wish(const struct rule *r, struct sampler_wish *w)
{
    if (r->penalties && r->raw_total) return false; // log-probabilities are of logits without
    *w = (struct sampler_wish){.seed = r->sampling.seed,
                               .n_list = r->n_list,
                               .top_k = r->top_k,
                               .n_top = r->sampling.n_logprobs > 0 ? r->sampling.n_logprobs : 0,
                               .scale = r->greedy ? 0 : softmax_scale(r->sampling.temperature),
                               .raw_scale = r->raw_total ? softmax_scale(1) : 0,
                               .least = r->least};
    if (r->top_p) w->top_p = top_p_parts(r->sampling.top_p, &w->top_p_shift);
    return true;
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
    const struct row_lists *l = &row->lists;
    int32_t id = select_draw(kept, n, mass_draw(row->random, mass));
    for (int r = 0; r < l->n_ranks; r++) {
        const uint64_t *list = l->lists + (size_t) r * (size_t) l->stride;
        for (int i = 0; i < row->rule->n_list; i++) {
            if (entry_id(list[i]) == id && list[i] != ENTRY_NONE) {
                choose(row, list[i]);
                return;
            }
        }
    }
    check(false, "a drawn token is on no list");
}

static struct merge merge_row(const struct row *row)
{
    const struct row_lists *l = &row->lists;
    return merge_of(l->lists, l->stride, l->n_ranks, row->rule->n_list, l->vocab_size);
}

// Draws from the merged lists if the kept set surely lies inside them.
static bool draw_from_lists(struct row *row, uint64_t *kept)
{
    const struct rule *r = row->rule;
    struct merge m = merge_row(row);
    uint64_t sum = 0, need = r->total ? row->need : UINT64_MAX;
    int n = 0, n_least = 0; // those that reach min_p's cut-off come first
    while (r->top_k > 0 ? n < r->top_k : sum < need) {
        uint64_t entry;
        enum merge_result got = merge_next(&m, &entry);
        if (got == MERGE_UNKNOWN) return false;
        bool reaches = got == MERGE_ENTRY && reaches_least(row, entry);
        if (got == MERGE_END || (r->top_k == 0 && !reaches)) break;
        uint64_t mass = entry_mass(row, entry);
        kept[n++] = draw_word(entry_id(entry), mass);
        n_least += reaches;
        sum += mass;
    }
    if (r->top_p && r->top_k > 0) {
        need = top_p_mass(r->sampling.top_p, sum);
        int all = n;
        for (n = 0, sum = 0; n < all && sum < need; n++) sum += draw_word_mass(kept[n]);
    }
    while (n > n_least) sum -= draw_word_mass(kept[--n]);
    draw_from(row, kept, n, sum);
    return true;
}

// The largest float below all whose exponent reaches `least`.
static float float_below(struct softmax s, float least)
{
    uint32_t out = KEY_MINUS_INFINITY, in = key_of(s.max);
    if (!(softmax_exponent(s, -INFINITY) < least)) return -INFINITY;
    while (in - out > 1) {
        uint32_t middle = out + (in - out) / 2;
        if (softmax_exponent(s, key_logit(middle)) >= least) {
            in = middle;
        } else {
            out = middle;
        }
    }
    return key_logit(out);
}

static void keep_all(struct row *row)
{
    row->stage = ROW_KEPT;
    row->kept = (struct kept){.above = float_below(row->softmax, row->rule->least)};
}

bool row_decide_lists(struct row *row, uint64_t *kept)
{
    const struct row_lists *lists = &row->lists;
    const struct rule *r = row->rule;
    struct merge peek = merge_row(row), top = peek;
    if (r->n_raw_list > 0) {
        top = merge_of(lists->raw_lists, lists->stride, lists->n_ranks, r->n_raw_list,
                       lists->vocab_size);
    }
    uint64_t first, raw_first = ENTRY_NONE;
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
    } else if (!draw_from_lists(row, kept)) {
        keep_all(row); // only min_p, which needs no search
    }
    return true;
}

int row_head_words(const struct row *row) { return 1 + row->rule->n_list + row->rule->n_raw_list; }

bool row_needs_mass(const struct row *row)
{
    if (row->stage == ROW_HOSTED) return false;
    return row->stage == ROW_KEPT || row->stage == ROW_TOTAL || row->rule->raw_total;
}

bool row_raw_is_same(const struct row *row)
{
    const struct softmax *a = &row->softmax, *b = &row->raw_softmax;
    if (row->stage != ROW_KEPT && row->stage != ROW_TOTAL) return !row->rule->penalties;
    return row->kept.above == -INFINITY && a->plain && b->plain && a->scale == b->scale &&
           a->offset == b->offset;
}

static struct draw draw_of(uint64_t random, uint64_t sum, const uint64_t *mass, int stride)
{
    struct draw d = {.left = mass_draw(random, sum)};
    while (d.left >= mass[d.owner * stride]) d.left -= mass[d.owner++ * stride];
    return d;
}

static uint64_t sum_of(const uint64_t *mass, int stride, int n_ranks)
{
    uint64_t sum = 0;
    for (int r = 0; r < n_ranks; r++) sum += mass[r * stride];
    return sum;
}

void row_decide_total(struct row *row, const uint64_t *mass, int stride)
{
    row->stage = ROW_TRIAL;
    row->total = sum_of(mass, stride, row->lists.n_ranks);
    row->need = top_p_mass(row->rule->sampling.top_p, row->total);
    for (int k = 0; k < TRIALS_MAX; k++) {
        uint64_t random = sampling_random(row->random, (uint64_t) k);
        row->trials[k] = draw_of(random, row->total, mass, stride);
    }
    struct merge m = merge_row(row);
    uint64_t entry, sum = 0;
    while (!row->closed) {
        enum merge_result got = merge_next(&m, &entry);
        if (got == MERGE_UNKNOWN) break;
        row->closed = got == MERGE_END || !reaches_least(row, entry);
        if (row->closed) break;
        row->sure = entry;
        sum += entry_mass(row, entry);
        row->closed = sum >= row->need;
    }
}

static void next_trial(struct row *row)
{
    row->stage = ROW_TRIAL;
    if (++row->trial < TRIALS_MAX) return;
    row->stage = ROW_NARROW;
    row->narrow = narrow_of(true, row->need);
}

void row_decide_trial(struct row *row, int32_t id, float logit, uint64_t *kept)
{
    uint64_t entry = entry_of(logit, id);
    row->id = id;
    row->logit = logit;
    if (entry <= row->sure) {
        choose(row, entry);
    } else if (row->closed && row->trial + 1 == TRIALS_MAX) {
        check(draw_from_lists(row, kept));
    } else if (row->closed || !reaches_least(row, entry)) {
        next_trial(row);
    } else {
        row->stage = ROW_TEST;
    }
}

void row_decide_test(struct row *row, uint64_t before)
{
    if (before < row->need) {
        choose(row, entry_of(row->logit, row->id));
    } else {
        next_trial(row);
    }
}

void row_decide_narrow(struct row *row, const void *histograms, size_t stride, int rank)
{
    struct narrow *n = &row->narrow;
    narrow_step(n, histograms, stride, row->lists.n_ranks, rank);
    if (n->round < NARROW_ROUNDS) return;
    float last = key_logit(n->prefix);
    uint64_t mass = mass_of(row->softmax, last);
    if (!n->by_mass && row->rule->top_p) {
        uint64_t left = n->above + n->want * mass;
        *n = narrow_of(true, top_p_mass(row->rule->sampling.top_p, left));
        return;
    }
    keep_all(row);
    if (!(softmax_exponent(row->softmax, last) >= row->rule->least)) return; // min_p cuts before
    // All ties have the same mass, so how many are kept follows without looking at them.
    uint64_t ties = n->by_mass ? (n->want + mass - 1) / mass : n->want;
    uint64_t ours = ties > n->ties_before ? ties - n->ties_before : 0;
    row->kept.above = last;
    row->kept.ties = ours < n->ties_here ? ours : n->ties_here;
}

void row_decide_kept(struct row *row, const uint64_t *mass, int stride)
{
    row->stage = ROW_DRAWN;
    row->draw = draw_of(row->random, sum_of(mass, stride, row->lists.n_ranks), mass, stride);
}
