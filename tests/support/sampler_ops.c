#include "tests/support/sampler_ops.h"

#include "common/sampling.h"
#include "kernels/sampler_ops.h"
#include "kernels/sampler_record.h"

#include <stdlib.h>
#include <string.h>

static int compare_entries(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;
    return x < y ? -1 : x > y;
}

// Rows of equal logits are left to the host, as a device may do.
static void row_head(const float *l, int n, int first_id, int want, uint64_t *words)
{
    uint64_t *all = malloc(((size_t) n + 1) * sizeof *all);
    bool equal = n > want;
    check(all != NULL);
    words[0] = HEAD_GOOD;
    for (int i = 0; i < n; i++) {
        if (l[i] != l[i]) words[0] = HEAD_NAN;
        equal = equal && l[i] == l[0];
        all[i] = entry_of(l[i], first_id + i);
    }
    if (equal && words[0] == HEAD_GOOD) words[0] = HEAD_HOST;
    qsort(all, (size_t) n, sizeof *all, compare_entries);
    for (int i = 0; i < want; i++) words[1 + i] = i < n ? all[i] : ENTRY_NONE;
    free(all);
}

static void heads(struct device *d, const struct sampler_view *v, const struct sampler_heads *h,
                  uint64_t *words)
{
    (void) d;
    for (int i = 0; i < h->n; i++) {
        if (h->want[i] == 0) continue;
        row_head(v->logits + (size_t) i * (size_t) v->vocab_n, v->vocab_n, v->vocab_begin,
                 h->want[i], words + h->to[i]);
    }
}

static void masses(struct device *d, const struct sampler_view *v, const struct sampler_jobs *j,
                   bool kept, uint64_t *words)
{
    (void) d;
    (void) kept; // walks add anew
    for (int k = 0; k < j->n; k++) {
        const struct sampler_job *job = &j->job[k];
        const float *l = v->logits + (size_t) job->row * (size_t) v->vocab_n;
        uint64_t sum = 0;
        for (int i = 0; i < v->vocab_n; i++) {
            bool in = l[i] > job->above || (l[i] == job->above && i < job->at);
            sum += in || job->above == -INFINITY ? mass_of(job->softmax, l[i]) : 0;
        }
        words[job->to] = sum;
    }
}

static void walks(struct device *d, const struct sampler_view *v, const struct sampler_jobs *j,
                  uint64_t *words)
{
    (void) d;
    for (int k = 0; k < j->n; k++) {
        const struct sampler_job *job = &j->job[k];
        const float *l = v->logits + (size_t) job->row * (size_t) v->vocab_n;
        uint64_t left = job->draw;
        int i = 0;
        for (;; i++) {
            uint64_t mass = l[i] > job->above ? mass_of(job->softmax, l[i]) : 0;
            if (left < mass) break;
            left -= mass;
        }
        uint32_t bits;
        memcpy(&bits, &l[i], sizeof bits);
        words[job->to] = (uint64_t) (v->vocab_begin + i + 1) << 32 | bits;
    }
}

// --- rows that choose by themselves: the definition (sampler.h), on a sorted row

static uint64_t total_of(const float *l, int n, struct softmax s)
{
    uint64_t sum = 0;
    for (int i = 0; i < n; i++) sum += mass_of(s, l[i]);
    return sum;
}

// The token in which the draw falls among the first `n_kept` of `sorted`, by ascending id.
static uint64_t draw_kept(const uint64_t *sorted, int n_kept, struct softmax s, uint64_t random)
{
    uint64_t sum = 0;
    for (int i = 0; i < n_kept; i++) sum += mass_of(s, entry_logit(sorted[i]));
    uint64_t left = mass_draw(random, sum), last = 0;
    for (;;) {
        uint64_t next = ENTRY_NONE;
        for (int i = 0; i < n_kept; i++) {
            bool lower = next == ENTRY_NONE || entry_id(sorted[i]) < entry_id(next);
            if ((uint64_t) entry_id(sorted[i]) >= last && lower) next = sorted[i];
        }
        check(next != ENTRY_NONE);
        uint64_t mass = mass_of(s, entry_logit(next));
        if (left < mass) return next;
        left -= mass;
        last = (uint64_t) entry_id(next) + 1;
    }
}

static int kept_of(const uint64_t *sorted, int n, const struct sampler_wish *w, struct softmax s)
{
    uint64_t left = 0, sum = 0;
    if (w->top_k > 0 && w->top_k < n) n = w->top_k;
    for (int i = 0; i < n; i++) left += mass_of(s, entry_logit(sorted[i]));
    if (w->top_p != 0) {
        unsigned __int128 product = (unsigned __int128) w->top_p * left;
        uint64_t need = 1;
        if (w->top_p_shift <= TOP_P_SHIFT_MAX) {
            product += ((unsigned __int128) 1 << w->top_p_shift) - 1;
            need = (uint64_t) (product >> w->top_p_shift);
        }
        int kept = 0;
        while (kept < n && sum < (need > 0 ? need : 1)) {
            sum += mass_of(s, entry_logit(sorted[kept++]));
        }
        n = kept;
    }
    while (n > 1 && softmax_exponent(s, entry_logit(sorted[n - 1])) < w->least) n--;
    return n;
}

static uint64_t choice_of(const uint64_t *sorted, const float *l, int n,
                          const struct sampler_wish *w, struct softmax s)
{
    uint64_t random = sampling_random(w->seed, w->pos), total = total_of(l, n, s);
    if (w->scale == 0) return sorted[0];
    int n_kept = kept_of(sorted, n, w, s);
    for (int k = 0; k < SAMPLER_TRIALS && w->top_p != 0 && w->top_k == 0; k++) {
        uint64_t left = mass_draw(sampling_random(random, (uint64_t) k), total);
        int i = 0;
        for (; left >= mass_of(s, l[i]); i++) left -= mass_of(s, l[i]);
        uint64_t entry = entry_of(l[i], i);
        if (entry <= sorted[n_kept - 1]) return entry;
    }
    return draw_kept(sorted, n_kept, s, random);
}

// A row of equal logits is left to the host here, too.
static void choose_row(const float *l, int n, const struct sampler_wish *w,
                       struct sampler_choice *c)
{
    uint64_t *words = malloc(((size_t) n + 1) * sizeof *words), *sorted = words + 1;
    check(words != NULL);
    row_head(l, n, 0, n, words);
    c->head = (int32_t) words[0];
    if (c->head == HEAD_GOOD && entry_logit(sorted[0]) == -INFINITY) c->head = HEAD_NONE;
    if (c->head == HEAD_GOOD && n > w->n_list && entry_key(sorted[0]) == entry_key(sorted[n - 1])) {
        c->head = HEAD_HOST;
    }
    if (c->head == HEAD_GOOD) {
        c->most = entry_logit(sorted[0]);
        uint64_t chosen = choice_of(sorted, l, n, w, softmax_scaled(c->most, w->scale));
        c->id = entry_id(chosen);
        c->logit = entry_logit(chosen);
        c->n_tests = c->searched = 0;
        if (w->raw_scale != 0) {
            c->raw_total = total_of(l, n, softmax_scaled(c->most, w->raw_scale));
        }
        for (int i = 0; i < w->n_top; i++) c->top[i] = i < n ? sorted[i] : ENTRY_NONE;
    }
    free(words);
}

static void penalise(float *l, int n, const struct sampler_wish *w)
{
    for (int i = 0; i < w->n_ids; i++) {
        int32_t id = w->ids[i]; // negative: it occurs again
        int count = 0;
        if (id < 0 || id >= n) continue;
        for (int k = w->n_prompt; k < w->n_ids; k++) count += record_id(w->ids[k]) == id;
        float repeated = l[id] > 0 ? l[id] / w->repetition : l[id] * w->repetition;
        float less = w->frequency * (float) count + w->presence;
        l[id] = count > 0 ? repeated - less : repeated;
    }
}

static void choose(struct device *d, const struct sampler_view *v,
                   const struct sampler_wish *wishes, int n, unsigned turn,
                   struct sampler_choice *choices)
{
    (void) d;
    (void) turn;
    for (int i = 0; i < n; i++) {
        float *l = v->logits + (size_t) wishes[i].row * (size_t) v->vocab_n;
        penalise(l, v->vocab_n, &wishes[i]);
        choose_row(l, v->vocab_n, &wishes[i], &choices[i]);
    }
}

static enum status done(struct device *d, struct error *e)
{
    (void) d;
    (void) e;
    return OK;
}

static void download(struct device *d, void *to, const void *from, size_t n)
{
    (void) d;
    memcpy(to, from, n);
}

const struct backend *sampler_ops_backend(void)
{
    static const struct sampler_ops ops = {.heads = heads, .masses = masses, .walks = walks,
                                           .choose = choose};
    static const struct backend backend = {.name = "loops", .sync = done, .download = download,
                                           .sampler = &ops};
    return &backend;
}
