#include "tests/support/sampler_ops.h"

#include "kernels/sampler_ops.h"

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
        if (h->scale[i] == 0) continue;
        const float *l = v->logits + (size_t) i * (size_t) v->vocab_n;
        float most = -INFINITY;
        for (int k = 0; k < v->vocab_n; k++) most = l[k] > most ? l[k] : most;
        struct softmax softmax = softmax_scaled(most, h->scale[i]);
        uint64_t sum = 0;
        for (int k = 0; k < v->vocab_n; k++) sum += mass_of(softmax, l[k]);
        words[h->sum_to[i]] = sum;
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
    static const struct sampler_ops ops = {.heads = heads, .masses = masses, .walks = walks};
    static const struct backend backend = {.name = "loops", .sync = done, .download = download,
                                           .sampler = &ops};
    return &backend;
}
