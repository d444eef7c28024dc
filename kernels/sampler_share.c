#include "kernels/sampler_share.h"

static struct sampler_patch *patches_of(const struct sampler *s, int i)
{
    return s->parts.patches + (size_t) i * (size_t) s->parts.n_patches;
}

static union sampler_chunk *chunks_of(const struct sampler *s, int i)
{
    return s->parts.chunks + (size_t) i * (size_t) s->parts.n_chunks;
}

static struct slice slice_of(const struct sampler *s, int i, struct softmax softmax)
{
    return (struct slice){.scan = s->scan,
                          .l = s->rows[i].logits,
                          .n = s->shape.vocab_n,
                          .softmax = softmax,
                          .chunks = chunks_of(s, i),
                          .bounded = !s->rows[i].summed,
                          .least = s->rows[i].least};
}

void share_mark(struct sampler *s, int slot, int n)
{
    struct record_slice slice = record_slice_of(s);
    record_mark(history_of(s, slot), n, &slice);
    s->sequences[slot].n_marked = n;
}

// Block maxima and the chunks' bounds of row i; false if there is a NaN.
static bool scan_row(struct sampler *s, int i)
{
    struct row *row = &s->rows[i];
    union sampler_chunk *chunks = chunks_of(s, i);
    if (!s->scan->maxima(row->logits, s->shape.vocab_n, s->parts.maxima, chunks)) return false;
    row->least = INFINITY;
    for (int c = 0; c < s->parts.n_chunks; c++) {
        row->least = chunks[c].bounds.least < row->least ? chunks[c].bounds.least : row->least;
    }
    return true;
}

static void penalise(struct sampler *s, int i)
{
    struct row *row = &s->rows[i];
    const struct sequence *q = &s->sequences[row->slot];
    struct record_slice slice = record_slice_of(s);
    if (q->n_marked != row->n_ids) share_mark(s, row->slot, row->n_ids);
    row->n_patches = penalty_apply(&q->rule.sampling, row->logits, &slice, history_of(s, row->slot),
                                   row->n_ids, q->n_prompt, s->parts.counts, patches_of(s, i));
}

void share_restore(struct sampler *s, int i)
{
    penalty_undo(s->rows[i].logits, patches_of(s, i), s->rows[i].n_patches);
    s->rows[i].n_patches = 0;
}

// Mass of the raw logits of a row that may have penalties.
static uint64_t raw_mass(struct sampler *s, int i)
{
    struct row *row = &s->rows[i];
    struct slice slice = slice_of(s, i, row->raw_softmax);
    slice.chunks = NULL;
    slice.bounded = false;
    slice.least = -INFINITY;
    penalty_swap(row->logits, patches_of(s, i), row->n_patches);
    uint64_t mass = slice_mass(&slice, KEPT_ALL, NULL);
    penalty_swap(row->logits, patches_of(s, i), row->n_patches);
    return mass;
}

// What the raw logits have more mass than the penalised ones in the same softmax; modulo 2^64.
static uint64_t penalty_mass(const struct sampler *s, int i)
{
    const struct row *row = &s->rows[i];
    const struct sampler_patch *patches = patches_of(s, i);
    float before[SCAN_CHUNK], after[SCAN_CHUNK];
    uint64_t more = 0;
    for (int begin = 0; begin < row->n_patches; begin += SCAN_CHUNK) {
        int left = row->n_patches - begin, n = left < SCAN_CHUNK ? left : SCAN_CHUNK;
        for (int k = 0; k < n; k++) {
            before[k] = patches[begin + k].l;
            after[k] = row->logits[patches[begin + k].at];
        }
        more += s->scan->sum(before, n, row->softmax, BOUNDS_NONE, NULL) -
                s->scan->sum(after, n, row->softmax, BOUNDS_NONE, NULL);
    }
    return more;
}

static void select_row(struct sampler *s, int i, int want, uint64_t *list)
{
    select_top(s->scan, s->rows[i].logits, s->shape.vocab_n, s->shape.vocab_begin, s->parts.maxima,
               want, s->parts.select, list);
}

void share_head(struct sampler *s, int i, uint64_t *words)
{
    const struct row *row = &s->rows[i];
    const struct rule *r = row->rule;
    uint64_t *list = words + 1, *raw_list = list + r->n_list;
    bool good = true;
    memset(words, 0xff, (size_t) row_head_words(row) * sizeof *words); // ENTRY_NONE
    if (r->n_raw_list > 0) {
        good = scan_row(s, i);
        if (good) select_row(s, i, r->n_raw_list, raw_list);
    }
    if (r->penalties && !row->penalised) penalise(s, i); // keeps a NaN
    if (r->n_raw_list == 0 || r->penalties) good = good && scan_row(s, i);
    words[0] = good ? HEAD_GOOD : HEAD_NAN;
    if (good) select_row(s, i, r->n_list, list);
}

void share_total(struct sampler *s, int i, uint64_t *to, const float *ahead)
{
    struct row *row = &s->rows[i];
    bool drawn = row->stage == ROW_KEPT || row->stage == ROW_TOTAL;
    struct slice slice = slice_of(s, i, drawn ? row->softmax : row->raw_softmax);
    to[0] = to[1] = 0;
    if (drawn || !row->rule->penalties) {
        to[0] = slice_mass(&slice, row->kept, ahead);
        row->summed = true;
    }
    if (!row->rule->raw_total) return;
    to[1] = row_raw_is_same(row) ? to[0] + penalty_mass(s, i) : raw_mass(s, i);
}

uint64_t share_kept(struct sampler *s, int i)
{
    struct slice slice = slice_of(s, i, s->rows[i].softmax);
    return slice_mass(&slice, s->rows[i].kept, NULL);
}

int32_t share_walk(const struct sampler *s, int i, struct kept kept, struct draw draw)
{
    struct slice slice = slice_of(s, i, s->rows[i].softmax);
    return s->shape.vocab_begin + slice_walk(&slice, kept, draw.left);
}

uint64_t share_before(const struct sampler *s, int i)
{
    const struct row *row = &s->rows[i];
    struct slice slice = slice_of(s, i, row->softmax);
    bool alone = s->shape.tp == 1; // others need the sum over all
    uint64_t most = alone ? row->need : UINT64_MAX;
    uint64_t rest = alone ? row->total - row->need : UINT64_MAX;
    return slice_before(&slice, row->logit, row->id - s->shape.vocab_begin, most, rest);
}

uint64_t share_token(const struct sampler *s, int i, int32_t id)
{
    int at = id - s->shape.vocab_begin;
    if (at < 0 || at >= s->shape.vocab_n) return 0;
    uint32_t bits;
    memcpy(&bits, &s->rows[i].logits[at], sizeof bits);
    return (uint64_t) (id + 1) << 32 | bits;
}

void share_floor(struct sampler *s, int i)
{
    struct row *row = &s->rows[i];
    int top_k = row->rule->top_k;
    row->floor = top_k > 0 ? narrow_floor(row->logits, s->shape.vocab_n, top_k, s->parts.select)
                           : -INFINITY;
}

// The logits of row i that the search of its cut-off looks at: if there are more than top_k in this
// slice, those above a floor that so many reach. They lie in the memory of the counts, where one
// row has room: alone in its batch it finds them again in the next round.
static const float *narrow_logits(struct sampler *s, int i, int *n)
{
    struct row *row = &s->rows[i];
    float *picked = (float *) (void *) s->parts.counts;
    *n = s->shape.vocab_n;
    if (row->floor == -INFINITY) return row->logits;
    if (row->n_picked == 0 || s->parts.batch > 1) {
        row->n_picked = s->scan->pick(row->logits, *n, row->floor, picked);
        int used = row->n_picked < *n - SCAN_SLACK ? row->n_picked + SCAN_SLACK : *n;
        s->n_counts_used = used > s->n_counts_used ? used : s->n_counts_used;
        if (row->n_picked < row->rule->top_k) {
            row->floor = -INFINITY;
            return row->logits;
        }
    }
    *n = row->n_picked;
    return picked;
}

void share_histogram(struct sampler *s, int i, struct histogram *h)
{
    const struct row *row = &s->rows[i];
    int n_logits;
    const float *l = narrow_logits(s, i, &n_logits);
    narrow_fill(&row->narrow, s->scan, l, n_logits, row->softmax, h);
}

void share_clear(struct sampler *s)
{
    memset(s->parts.counts, 0, (size_t) s->n_counts_used * sizeof *s->parts.counts);
    s->n_counts_used = 0;
}
