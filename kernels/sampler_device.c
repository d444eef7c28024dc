#include "kernels/sampler_device.h"

static struct sampler_view view_of(const struct sampler_device *d, float *logits)
{
    return (struct sampler_view){logits, d->vocab_begin, d->vocab_n, d->parts};
}

static enum status finish(const struct sampler_device *d, struct error *e)
{
    return d->backend->sync(d->device, e);
}

static void add_job(struct sampler_jobs *j, const struct sampler_job *job)
{
    j->job[j->n++] = *job;
}

enum status sampler_device_choose(struct sampler_device *d, float *logits,
                                  const struct sampler_wish *wishes, int n,
                                  struct sampler_choice *choices, struct error *e)
{
    if (n == 0) return OK;
    struct sampler_view view = view_of(d, logits);
    d->backend->sampler->choose(d->device, &view, wishes, n, d->turn++, choices);
    return finish(d, e);
}

enum status sampler_device_heads(const struct sampler_device *d, struct row *rows, int n,
                                 uint64_t *words, struct error *e)
{
    struct sampler_view view = view_of(d, rows->logits);
    struct sampler_heads heads = {.n = n};
    int at = 0;
    for (int i = 0; i < n; i++) {
        const struct row *row = &rows[i];
        words[at] = HEAD_HOST;
        heads.want[i] = row->rule->penalties ? 0 : row->rule->n_list;
        heads.to[i] = at;
        at += row_head_words(row);
    }
    d->backend->sampler->heads(d->device, &view, &heads, words);
    return finish(d, e);
}

enum status sampler_device_totals(const struct sampler_device *d, const struct row *rows, int n,
                                  uint64_t *words, struct error *e)
{
    struct sampler_view view = view_of(d, rows->logits);
    struct sampler_jobs jobs, raw;
    int at = 0;
    jobs.n = raw.n = 0;
    for (int i = 0; i < n; i++) {
        const struct row *row = &rows[i];
        if (!row_needs_mass(row)) continue;
        bool drawn = row->stage == ROW_KEPT || row->stage == ROW_TOTAL;
        struct sampler_job job = {.row = i,
                                  .to = at,
                                  .softmax = drawn ? row->softmax : row->raw_softmax,
                                  .above = row->kept.above};
        words[at] = words[at + 1] = 0;
        add_job(&jobs, &job);
        if (row->rule->raw_total && !row_raw_is_same(row)) {
            job.to = at + 1;
            job.softmax = row->raw_softmax;
            job.above = -INFINITY;
            add_job(&raw, &job);
        }
        at += 2;
    }
    if (jobs.n > 0) d->backend->sampler->masses(d->device, &view, &jobs, true, words);
    if (raw.n > 0) d->backend->sampler->masses(d->device, &view, &raw, false, words);
    if (jobs.n > 0 || raw.n > 0) try(finish(d, e));
    at = 0;
    for (int i = 0; i < n; i++) {
        const struct row *row = &rows[i];
        if (!row_needs_mass(row)) continue;
        if (row->rule->raw_total && row_raw_is_same(row)) words[at + 1] = words[at];
        at += 2;
    }
    return OK;
}

enum status sampler_device_walks(const struct sampler_device *d, const struct row *rows, int n,
                                 enum row_stage stage, uint64_t *words, struct error *e)
{
    struct sampler_view view = view_of(d, rows->logits);
    struct sampler_jobs jobs;
    int at = 0;
    jobs.n = 0;
    for (int i = 0; i < n; i++) {
        const struct row *row = &rows[i];
        if (row->stage != stage) continue;
        bool trial = stage == ROW_TRIAL;
        struct draw draw = trial ? row->trials[row->trial] : row->draw;
        words[at] = 0;
        if (draw.owner == d->rank) {
            struct sampler_job job = {.row = i,
                                      .to = at,
                                      .softmax = row->softmax,
                                      .above = trial ? -INFINITY : row->kept.above,
                                      .draw = draw.left};
            add_job(&jobs, &job);
        }
        at++;
    }
    if (jobs.n == 0) return OK;
    d->backend->sampler->walks(d->device, &view, &jobs, words);
    return finish(d, e);
}

enum status sampler_device_tests(const struct sampler_device *d, const struct row *rows, int n,
                                 uint64_t *words, struct error *e)
{
    struct sampler_view view = view_of(d, rows->logits);
    struct sampler_jobs jobs;
    int at = 0;
    jobs.n = 0;
    for (int i = 0; i < n; i++) {
        const struct row *row = &rows[i];
        if (row->stage != ROW_TEST) continue;
        struct sampler_job job = {.row = i,
                                  .to = at,
                                  .softmax = row->softmax,
                                  .above = row->logit,
                                  .at = row->id - d->vocab_begin};
        words[at++] = 0;
        add_job(&jobs, &job);
    }
    if (jobs.n == 0) return OK;
    d->backend->sampler->masses(d->device, &view, &jobs, false, words);
    return finish(d, e);
}
