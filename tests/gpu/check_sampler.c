// The sampler on logits of the device against the one on the host: the same tokens, bit by bit.
#include "tests/gpu/check.h"

#include "kernels/cuda/probe.h"
#include "kernels/sampler.h"
#include "tests/gpu/side.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    ROWS_MAX = 256, CONTEXT = 600, RANKS_MAX = 4,
    DEEPSEEK_VOCAB = 129280,
};

static const uint64_t ARENA = 300ull << 20, HOST = 24ull << 20;

// One call on `tp` ranks that share the GPU; logits (n_rows, vocab).
struct call {
    int vocab, tp, n_rows;
    float *logits;
    struct sampling sampling[ROWS_MAX];
    int32_t ids[ROWS_MAX][CONTEXT], pos[ROWS_MAX], slot[ROWS_MAX];
};

struct rank {
    const struct call *call;
    int rank;
    struct comm *comm;
    struct side side;
    char *pinned;
    void *memory; // of `host`
    float *logits, *there; // this rank's (n_rows, n)
    int n;
    struct sampler *host, *device;
    enum status status[2]; // of the host's and the device's
    struct sampled out[2][ROWS_MAX];
    int off; // calls whose outcome is not the host's
    struct sampler_counts counts;
};

// A seeded generator of the test's own.
static uint64_t state = 88172645463325252ull;

static uint32_t bits(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t) (state >> 32);
}

static float uniform(void) { return (float) (bits() >> 8) * 0x1p-24f; }
static float normal(void) { return (uniform() + uniform() + uniform() + uniform() - 2) * 1.73f; }

static void open_rank(struct rank *r)
{
    struct error e = {0};
    void *base;
    side_open(&r->side, backend_cuda(), PRECISION_BF16, ARENA);
    check(r->side.b->host_memory(r->side.d, HOST, &base, &e) == OK, "%s", e.text);
    r->pinned = base;
}

static void begin_rank(struct rank *r)
{
    const struct call *c = r->call;
    int begin = (int) ((int64_t) c->vocab * r->rank / c->tp);
    int n = (int) ((int64_t) c->vocab * (r->rank + 1) / c->tp) - begin;
    struct sampler_shape shape = {.slots = c->n_rows, .max_context = CONTEXT,
                                  .max_out = c->n_rows, .vocab_begin = begin, .vocab_n = n,
                                  .vocab_size = c->vocab, .tp = c->tp};
    struct comm *comm = c->tp > 1 ? r->comm : NULL;
    r->n = n;
    r->memory = malloc(sampler_bytes(&shape));
    check(r->memory != NULL);
    r->host = sampler_init(r->memory, &shape, NULL, NULL, NULL, comm);
    shape.on_device = true;
    check(sampler_bytes(&shape) <= HOST);
    r->side.arena.used = 0;
    r->device = sampler_init(r->pinned, &shape, r->side.b, r->side.d,
                             side_take(&r->side, sampler_device_bytes(&shape)), comm);
    r->logits = malloc((size_t) c->n_rows * (size_t) n * sizeof *r->logits + 1);
    for (int i = 0; i < c->n_rows; i++) {
        memcpy(r->logits + (size_t) i * (size_t) n,
               c->logits + (size_t) i * (size_t) c->vocab + begin, (size_t) n * sizeof(float));
        for (int k = 0; k < 2; k++) {
            struct sampler *s = k == 0 ? r->host : r->device;
            sampler_open(s, c->slot[i], &c->sampling[i], CONTEXT / 4);
            sampler_history(s, c->slot[i], 0, c->ids[i], c->pos[i]);
        }
    }
    r->there = side_put(&r->side, r->logits, (size_t) c->n_rows * (size_t) n * sizeof(float));
    side_sync(&r->side);
}

static void end_rank(struct rank *r)
{
    free(r->memory);
    free(r->logits);
}

static void *run_rank(void *arg)
{
    struct rank *r = arg;
    const struct call *c = r->call;
    struct error e = {0};
    begin_rank(r);
    r->status[0] = sampler_run(r->host, r->logits, c->n_rows, c->slot, c->pos, r->out[0], &e);
    r->off = 0;
    for (int k = 0; k < 3; k++) { // what a call leaves behind is no matter for the next
        size_t n = (size_t) r->n * (size_t) c->n_rows;
        r->side.b->upload(r->side.d, r->there, r->logits, n * sizeof *r->logits); // no penalties
        r->status[1] = sampler_run(r->device, r->there, c->n_rows, c->slot, c->pos, r->out[1], &e);
        if (k == 0) r->counts = sampler_counts(r->device);
        r->off += r->status[1] != r->status[0];
        bool same = memcmp(r->out[0], r->out[1], (size_t) c->n_rows * sizeof *r->out[0]) == 0;
        r->off += r->status[0] == OK && !same;
    }
    end_rank(r);
    return NULL;
}

// Rows that differ, of all ranks.
static int run_call(struct rank *ranks, const struct call *c)
{
    struct error e = {0};
    struct comm *comms[RANKS_MAX];
    pthread_t threads[RANKS_MAX];
    struct sampler_shape shape = {.max_context = CONTEXT, .max_out = c->n_rows,
                                  .vocab_size = c->vocab, .tp = c->tp};
    size_t most = sampler_gather_max(&shape), more;
    shape.on_device = true;
    more = sampler_gather_max(&shape);
    check(comm_local_create(comms, c->tp, 1, more > most ? more : most, 20000, NULL, &e) == OK);
    for (int i = 0; i < c->tp; i++) {
        ranks[i].call = c;
        ranks[i].rank = i;
        ranks[i].comm = comms[i];
        check(pthread_create(&threads[i], NULL, run_rank, &ranks[i]) == 0);
    }
    int off = 0;
    for (int i = 0; i < c->tp; i++) {
        pthread_join(threads[i], NULL);
        off += ranks[i].off;
        for (int row = 0; row < c->n_rows && ranks[i].status[0] == OK; row++) {
            const struct sampled *a = &ranks[i].out[0][row], *b = &ranks[i].out[1][row];
            bool same = memcmp(a, b, sizeof *a) == 0;
            if (!same && off++ < 4) {
                const struct sampling *s = &c->sampling[row];
                printf("       row %d: %d %g against %d %g; temperature %g top_k %d top_p %g "
                       "min_p %g logprobs %d\n", row, a->id, (double) a->logprob, b->id,
                       (double) b->logprob, (double) s->temperature, s->top_k, (double) s->top_p,
                       (double) s->min_p, s->n_logprobs);
            }
        }
    }
    for (int i = 0; i < c->tp; i++) comms[i]->ops->destroy(&comms[i]);
    return off;
}

enum kind { SPREAD, PEAKED, TIES, HOLES, INFINITE, EQUAL, SIDE_BY_SIDE, TINY_STEPS, N_KINDS };

static void fill_row(float *l, int n, enum kind kind)
{
    float scale = 0.2f + 4 * uniform();
    for (int i = 0; i < n; i++) l[i] = scale * normal();
    if (kind == PEAKED) {
        for (int i = 0; i < 12; i++) l[bits() % (uint32_t) n] += 25 * uniform();
    } else if (kind == TIES) {
        for (int i = 0; i < n; i++) l[i] = rintf(l[i] * 2) / 2 * (bits() % 2 == 0 ? 1 : -1);
    } else if (kind == HOLES) {
        for (int i = 0; i < n; i++) l[i] = bits() % 4 != 0 ? -INFINITY : l[i];
        l[bits() % (uint32_t) n] = 1;
    } else if (kind == INFINITE) {
        for (int i = 0; i < 3; i++) l[bits() % (uint32_t) n] = INFINITY;
    } else if (kind == EQUAL) {
        for (int i = 0; i < n; i++) l[i] = scale;
    } else if (kind == SIDE_BY_SIDE) {
        int begin = (int) (bits() % (uint32_t) n);
        for (int i = begin; i < n && i < begin + 700; i++) l[i] += 12;
    } else if (kind == TINY_STEPS) {
        for (int i = 0; i < n; i++) l[i] = 3e38f * (uniform() - 0.5f);
    }
}

static struct sampling some_sampling(void)
{
    static const float temperatures[] = {0, 0.3f, 1, 1, 1.7f};
    static const float top_ps[] = {1, 0.95f, 0.5f, 0.999f, 0.02f};
    static const float min_ps[] = {0, 0, 0, 0.05f};
    static const int top_ks[] = {0, 0, 0, 1, 20, 50, 128, 200};
    static const int logprobs[] = {-1, -1, 0, 5, LOGPROBS_MAX};
    struct sampling s = {.temperature = temperatures[bits() % 5], .top_p = top_ps[bits() % 5],
                         .min_p = min_ps[bits() % 4], .top_k = top_ks[bits() % 8],
                         .n_logprobs = logprobs[bits() % 5], .seed = bits(),
                         .repetition_penalty = 1};
    if (bits() % 6 == 0) {
        s.repetition_penalty = 1.2f;
        s.presence_penalty = 0.5f;
        s.frequency_penalty = 0.3f;
    }
    return s;
}

static void fill_call(struct call *c)
{
    for (int i = 0; i < c->n_rows; i++) {
        fill_row(c->logits + (size_t) i * (size_t) c->vocab, c->vocab,
                 (enum kind) ((i + (int) (bits() % 2)) % N_KINDS));
        c->sampling[i] = some_sampling();
        c->slot[i] = c->n_rows - 1 - i;
        c->pos[i] = (int32_t) (bits() % CONTEXT);
        for (int k = 0; k < CONTEXT; k++) c->ids[i][k] = (int32_t) (bits() % (uint32_t) c->vocab);
    }
}

static void check_case(struct result *r, struct rank *ranks, struct call *c, int vocab, int tp,
                       int n_rows, int calls)
{
    int off = 0;
    uint64_t hosted = 0, tests = 0, searched = 0;
    c->vocab = vocab;
    c->tp = tp;
    c->n_rows = n_rows;
    for (int i = 0; i < calls; i++) {
        fill_call(c);
        off += run_call(ranks, c);
        hosted += ranks[0].counts.hosted;
        tests += ranks[0].counts.tests;
        searched += ranks[0].counts.fallbacks;
    }
    char name[140];
    snprintf(name, sizeof name, "vocabulary %d, %d ranks, %d rows, %llu tests, %llu searched, %llu "
             "by the host", vocab, tp, n_rows * calls, (unsigned long long) tests,
             (unsigned long long) searched, (unsigned long long) hosted);
    result_error(r, name, off, 0);
}

static void check_bad(struct result *r, struct rank *ranks, struct call *c, int tp)
{
    int off = 0;
    c->vocab = 4001;
    c->tp = tp;
    c->n_rows = 5;
    for (int sign = 0; sign < 3; sign++) {
        fill_call(c);
        float *row = c->logits + (size_t) 3 * (size_t) c->vocab;
        if (sign < 2) row[2777] = sign == 0 ? NAN : -NAN;
        for (int i = 0; sign == 2 && i < c->vocab; i++) row[i] = -INFINITY;
        run_call(ranks, c);
        for (int i = 0; i < tp; i++) off += ranks[i].status[1] != ERR_STATE;
    }
    result_error(r, "a NaN of either sign, nothing but -inf: refused", off, 0);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double) t.tv_sec + (double) t.tv_nsec * 1e-9;
}

// The median time of one call, microseconds.
static double time_calls(struct rank *r, const struct call *c)
{
    enum { TIMES = 41 };
    double seconds[TIMES];
    struct error e = {0};
    for (int i = 0; i < TIMES; i++) {
        double begun = now();
        enum status status = sampler_run(r->device, r->there, c->n_rows, c->slot, c->pos, r->out[1],
                                         &e);
        seconds[i] = now() - begun;
        check(status == OK, "%s", e.text);
    }
    return median(seconds, TIMES) * 1e6;
}

struct parameters {
    const char *name;
    struct sampling sampling;
    enum kind kind;
    double most; // of 128 rows, microseconds; 0: no bar
};

static void check_times(struct result *r, struct rank *ranks, struct call *c)
{
    static const struct parameters all[] = {
        {"greedy", {.temperature = 0, .top_p = 1}, SPREAD, 150},
        {"temperature 1", {.temperature = 1, .top_p = 1}, SPREAD, 150},
        {"top_k 50", {.temperature = 1, .top_p = 1, .top_k = 50}, SPREAD, 0},
        {"top_p 0.95, few tokens", {.temperature = 1, .top_p = 0.95f}, PEAKED, 150},
        {"top_p 0.95, many tokens", {.temperature = 1, .top_p = 0.95f}, SPREAD, 0},
        {"top_p 0.95, few, 5 logprobs", {.temperature = 1, .top_p = 0.95f, .n_logprobs = 5},
         PEAKED, 0},
    };
    static const int counts[] = {1, 32, 128, 256};
    double rate = cuda_probe_copy(ranks[0].side.d, ARENA / 2);
    result_figure(r, "device copy, read and written", rate * 1e-9, "GB/s", 0);
    c->vocab = DEEPSEEK_VOCAB;
    c->tp = 1;
    ranks[0].call = c;
    ranks[0].rank = 0;
    for (size_t p = 0; p < sizeof all / sizeof *all; p++) {
        c->n_rows = 256;
        fill_call(c);
        for (int i = 0; i < c->n_rows; i++) {
            c->sampling[i] = all[p].sampling;
            c->sampling[i].repetition_penalty = 1;
            if (all[p].sampling.n_logprobs == 0) c->sampling[i].n_logprobs = -1;
            c->sampling[i].seed = (uint64_t) i;
            c->slot[i] = i;
            float *l = c->logits + (size_t) i * DEEPSEEK_VOCAB;
            for (int k = 0; k < DEEPSEEK_VOCAB; k++) l[k] = 2 * normal();
            for (int k = 0; k < 12 && all[p].kind == PEAKED; k++) {
                l[bits() % DEEPSEEK_VOCAB] = 12 + 8 * uniform();
            }
        }
        for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
            c->n_rows = counts[k];
            begin_rank(&ranks[0]);
            double us = time_calls(&ranks[0], c);
            struct sampler_counts n = sampler_counts(ranks[0].device);
            double pass = (double) counts[k] * DEEPSEEK_VOCAB * 4 / rate * 1e6;
            char name[140];
            snprintf(name, sizeof name, "%s, %d rows: %.2f passes, %llu tests, %llu by the host",
                     all[p].name, counts[k], us / pass, (unsigned long long) (n.tests / 41),
                     (unsigned long long) (n.hosted / 41));
            result_most(r, name, us, "us", counts[k] == 128 ? all[p].most : 0);
            end_rank(&ranks[0]);
        }
    }
}

void check_sampler(struct result *r)
{
    static struct rank ranks[RANKS_MAX];
    static struct call call;
    printf("--- the sampler\n");
    call.logits = malloc((size_t) ROWS_MAX * DEEPSEEK_VOCAB * sizeof(float));
    check(call.logits != NULL);
    for (int i = 0; i < RANKS_MAX; i++) open_rank(&ranks[i]);
    static const int vocabs[] = {7, 129, 1000, 5003, 32768};
    for (int tp = 1; tp <= RANKS_MAX; tp *= 2) {
        for (size_t v = 0; v < sizeof vocabs / sizeof *vocabs; v++) {
            check_case(r, ranks, &call, vocabs[v], tp, 64, 4);
        }
        check_case(r, ranks, &call, DEEPSEEK_VOCAB, tp, 24, 1);
        check_case(r, ranks, &call, 40000, tp, 150, 1);
        check_case(r, ranks, &call, DEEPSEEK_VOCAB, tp, 3, 4);
        check_case(r, ranks, &call, 2000, tp, 200, 1);
        check_bad(r, ranks, &call, tp);
    }
    check_times(r, ranks, &call);
    free(call.logits);
    for (int i = 0; i < RANKS_MAX; i++) side_close(&ranks[i].side);
}
