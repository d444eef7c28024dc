#include "kernels/sampler.h"

#include "kernels/sampler_mass.h"
#include "tests/support/logits.h"
#include "tests/support/sampler_ops.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_CONTEXT = 600, MAX_ROWS = 40, RANKS_MAX = 8 };

// --- ranks as threads whose all_gather is a barrier, so that this test stands alone

struct gatherer {
    pthread_barrier_t barrier;
    char *slots[TP_MAX];
    size_t room;
};

struct rank_comm {
    struct comm base;
    struct gatherer *g;
};

static enum status barrier_gather(struct comm *c, const void *in, void *out, size_t n)
{
    struct gatherer *g = ((struct rank_comm *) c)->g;
    check(n <= g->room);
    memcpy(g->slots[c->rank], in, n);
    pthread_barrier_wait(&g->barrier);
    for (int r = 0; r < c->tp; r++) memcpy((char *) out + (size_t) r * n, g->slots[r], n);
    pthread_barrier_wait(&g->barrier);
    return OK;
}

static const struct comm_ops BARRIER_OPS = {.name = "barrier", .all_gather = barrier_gather};

// --- one call of sampler_run on `tp` ranks

struct call {
    int vocab, tp, n_rows;
    const float *logits; // (n_rows, vocab)
    const struct sampling *sampling; // (n_rows)
    const int32_t *ids; // (n_rows, MAX_CONTEXT)
    const int *n_ids, *n_prompt;
};

struct rank_run {
    const struct call *call;
    struct rank_comm comm;
    int begin, n;
    enum status status;
    struct error error;
    struct sampler_counts counts;
    struct sampled out[MAX_ROWS];
};

// Slices as uneven as tp allows: rank r has a share of r + 1.
static int slice_begin(int vocab, int tp, int r)
{
    return (int) ((int64_t) vocab * r * (r + 1) / ((int64_t) tp * (tp + 1)));
}

// In pieces as steps bring them: a prompt, a piece of it again, then one by one.
static void write_history(struct sampler *s, int slot, const int32_t *ids, int n)
{
    int half = n / 2, again = half / 2;
    sampler_history(s, slot, 0, ids, half);
    sampler_history(s, slot, again, ids + again, half - again);
    for (int i = half; i < n; i++) sampler_history(s, slot, i, ids + i, 1);
}

// The same as if the logits lay on a device: the same tokens.
static void run_on_device(struct rank_run *run, struct sampler_shape shape, float *logits,
                          const int32_t *slot, const int32_t *pos)
{
    const struct call *c = run->call;
    static _Thread_local struct sampled out[MAX_ROWS];
    struct error e = {0};
    shape.on_device = true;
    void *memory = NULL, *there = malloc(sampler_device_bytes(&shape));
    check(there != NULL && posix_memalign(&memory, 64, sampler_bytes(&shape)) == 0);
    memset(memory, 0xa5, sampler_bytes(&shape));
    struct comm *comm = c->tp > 1 ? &run->comm.base : NULL;
    struct sampler *s = sampler_init(memory, &shape, sampler_ops_backend(), NULL, there, comm);
    for (int i = 0; i < c->n_rows; i++) {
        sampler_open(s, slot[i], &c->sampling[i], c->n_prompt[i]);
        write_history(s, slot[i], c->ids + (size_t) i * MAX_CONTEXT, pos[i]);
    }
    check(sampler_run(s, logits, c->n_rows, slot, pos, out, &e) == run->status);
    if (run->status == OK) {
        check(memcmp(out, run->out, (size_t) c->n_rows * sizeof *out) == 0);
        check(sampler_counts(s).rows == (uint64_t) c->n_rows);
    }
    free(memory);
    free(there);
}

static void *rank_main(void *arg)
{
    struct rank_run *run = arg;
    const struct call *c = run->call;
    struct sampler_shape shape = {.slots = c->n_rows,
                                  .max_context = MAX_CONTEXT,
                                  .max_out = c->n_rows,
                                  .vocab_begin = run->begin,
                                  .vocab_n = run->n,
                                  .vocab_size = c->vocab,
                                  .tp = c->tp};
    void *memory = NULL;
    check(posix_memalign(&memory, 64, sampler_bytes(&shape)) == 0);
    memset(memory, 0xa5, sampler_bytes(&shape));
    struct comm *comm = c->tp > 1 ? &run->comm.base : NULL;
    struct sampler *s = sampler_init(memory, &shape, NULL, NULL, NULL, comm);
    // Of the exact size, so that a sanitizer sees a read beyond the slice.
    size_t bytes = (size_t) c->n_rows * (size_t) run->n * sizeof(float);
    float *mine = malloc(bytes > 0 ? bytes : 1), *copy = malloc(bytes > 0 ? bytes : 1);
    int32_t slot[MAX_ROWS], pos[MAX_ROWS];
    for (int i = 0; i < c->n_rows; i++) {
        memcpy(mine + (size_t) i * (size_t) run->n, c->logits + (size_t) i * c->vocab + run->begin,
               (size_t) run->n * sizeof(float));
        slot[i] = c->n_rows - 1 - i;
        pos[i] = c->n_ids[i];
        sampler_open(s, slot[i], &c->sampling[i], c->n_prompt[i]);
        write_history(s, slot[i], c->ids + (size_t) i * MAX_CONTEXT, pos[i]);
    }
    memcpy(copy, mine, bytes);
    run->status = sampler_run(s, mine, c->n_rows, slot, pos, run->out, &run->error);
    check(memcmp(copy, mine, bytes) == 0);
    run->counts = sampler_counts(s);
    run_on_device(run, shape, mine, slot, pos);
    check(c->tp == 1 || memcmp(copy, mine, bytes) == 0); // alone a device leaves penalties there
    free(mine);
    free(copy);
    free(memory);
    return NULL;
}

// Runs the call and checks that all ranks agree; rank 0's result is left in `result`.
static void run_call(const struct call *c, struct rank_run *result)
{
    static struct rank_run runs[RANKS_MAX];
    struct gatherer g = {0};
    pthread_t threads[RANKS_MAX];
    struct sampler_shape shape = {.max_context = MAX_CONTEXT, .max_out = c->n_rows,
                                  .vocab_size = c->vocab, .tp = c->tp};
    g.room = sampler_gather_max(&shape);
    shape.on_device = true;
    if (sampler_gather_max(&shape) > g.room) g.room = sampler_gather_max(&shape);
    pthread_barrier_init(&g.barrier, NULL, (unsigned) c->tp);
    for (int r = 0; r < c->tp; r++) {
        g.slots[r] = malloc(g.room);
        memset(&runs[r], 0, sizeof runs[r]);
        runs[r].call = c;
        runs[r].comm = (struct rank_comm){{&BARRIER_OPS, r, c->tp}, &g};
        runs[r].begin = slice_begin(c->vocab, c->tp, r);
        runs[r].n = slice_begin(c->vocab, c->tp, r + 1) - runs[r].begin;
        if (r > 0) assert_int_equal(pthread_create(&threads[r], NULL, rank_main, &runs[r]), 0);
    }
    rank_main(&runs[0]);
    for (int r = 1; r < c->tp; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < c->tp; r++) {
        assert_int_equal(runs[r].status, runs[0].status);
        assert_memory_equal(&runs[r].error, &runs[0].error, sizeof runs[0].error);
        assert_memory_equal(&runs[r].counts, &runs[0].counts, sizeof runs[0].counts);
        if (runs[0].status == OK) {
            assert_memory_equal(runs[r].out, runs[0].out,
                                (size_t) c->n_rows * sizeof *runs[0].out);
        }
        free(g.slots[r]);
    }
    pthread_barrier_destroy(&g.barrier);
    *result = runs[0];
}

// --- the definition, by sorting the whole vocabulary

struct token {
    float l;
    int32_t id;
};

static int by_order(const void *a, const void *b)
{
    const struct token *x = a, *y = b;
    if (x->l != y->l) return x->l > y->l ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int by_id(const void *a, const void *b)
{
    return ((const struct token *) a)->id - ((const struct token *) b)->id;
}

static void define_penalties(const struct sampling *s, float *l, int vocab, const int32_t *ids,
                             int n, int n_prompt)
{
    int *in_all = calloc((size_t) vocab, sizeof(int));
    int *in_output = calloc((size_t) vocab, sizeof(int));
    for (int i = 0; i < n; i++) {
        in_all[ids[i]]++;
        if (i >= n_prompt) in_output[ids[i]]++;
    }
    for (int i = 0; i < vocab; i++) {
        float r = s->repetition_penalty;
        if (in_all[i] > 0) l[i] = l[i] > 0 ? l[i] / r : l[i] * r;
        l[i] -= s->frequency_penalty * (float) in_output[i] +
                s->presence_penalty * (float) (in_output[i] > 0);
    }
    free(in_all);
    free(in_output);
}

static void define_logprobs(const struct sampling *s, const float *raw, int vocab,
                            struct sampled *out)
{
    struct token *t = malloc((size_t) vocab * sizeof *t);
    for (int i = 0; i < vocab; i++) t[i] = (struct token){raw[i], i};
    qsort(t, (size_t) vocab, sizeof *t, by_order);
    double max = (double) t[0].l, sum = 0;
    for (int i = 0; i < vocab; i++) {
        sum += (double) t[i].l == max ? 1.0 : exp((double) t[i].l - max);
    }
#define LOGPROB(l) ((float) (((double) (l) == max ? 0 : (double) (l) - max) - log(sum)))
    out->logprob = LOGPROB(raw[out->id]);
    out->n_top = s->n_logprobs < vocab ? s->n_logprobs : vocab;
    for (int i = 0; i < out->n_top; i++) {
        out->top_id[i] = t[i].id;
        out->top_logprob[i] = LOGPROB(t[i].l);
    }
    free(t);
}

// Walks t (n) from its first.
static struct token define_draw(struct softmax soft, const struct token *t, int n, uint64_t random)
{
    uint64_t mass = 0;
    for (int i = 0; i < n; i++) mass += mass_of(soft, t[i].l);
    uint64_t left = mass_draw(random, mass);
    for (int i = 0; i < n; i++) {
        uint64_t m = mass_of(soft, t[i].l);
        if (left < m) return t[i];
        left -= m;
    }
    return (struct token){0, -1};
}

// Which token the sorted, penalised vocabulary t (vocab) gives.
static int32_t define_choice(const struct sampling *s, struct token *t, int vocab, uint64_t random)
{
    if (s->temperature == 0) return t[0].id;
    struct softmax soft = softmax_of(t[0].l, s->temperature);
    int n = s->top_k > 0 && s->top_k < vocab ? s->top_k : vocab;
    uint64_t left = 0, mass = 0;
    for (int i = 0; i < n; i++) left += mass_of(soft, t[i].l);
    if (s->top_p < 1) {
        uint64_t need = top_p_mass(s->top_p, left);
        int k = 0;
        while (mass < need) mass += mass_of(soft, t[k++].l);
        n = k;
    }
    if (s->min_p > 0) {
        int k = 0;
        while (k < n && softmax_exponent(soft, t[k].l) >= min_p_exponent(s->min_p)) k++;
        n = k;
    }
    struct token last = t[n - 1];
    if (s->top_p < 1 && (s->top_k == 0 || s->top_k >= vocab)) {
        qsort(t, (size_t) vocab, sizeof *t, by_id);
        for (uint64_t k = 0; k < 4; k++) {
            struct token drawn = define_draw(soft, t, vocab, sampling_random(random, k));
            if (by_order(&drawn, &last) <= 0) return drawn.id;
        }
        qsort(t, (size_t) vocab, sizeof *t, by_order);
    }
    qsort(t, (size_t) n, sizeof *t, by_id);
    return define_draw(soft, t, n, random).id;
}

static struct sampled define(const struct call *c, int row)
{
    const struct sampling *s = &c->sampling[row];
    const float *raw = c->logits + (size_t) row * c->vocab;
    size_t n = (size_t) c->vocab;
    float *l = malloc(n * sizeof *l);
    memcpy(l, raw, n * sizeof *l);
    define_penalties(s, l, c->vocab, c->ids + (size_t) row * MAX_CONTEXT, c->n_ids[row],
                     c->n_prompt[row]);
    struct token *t = malloc(n * sizeof *t);
    for (int i = 0; i < c->vocab; i++) t[i] = (struct token){l[i], i};
    qsort(t, n, sizeof *t, by_order);
    uint64_t random = sampling_random(s->seed, (uint64_t) c->n_ids[row]);
    struct sampled out = {.id = define_choice(s, t, c->vocab, random)};
    if (s->n_logprobs >= 0) define_logprobs(s, raw, c->vocab, &out);
    free(l);
    free(t);
    return out;
}

static void compare_logprob(float a, float b)
{
    if (isinf(b)) {
        assert_true(a == b);
    } else {
        // Logits beyond 2^7 have no more than 1e-5 of resolution themselves.
        assert_true(fabs((double) a - (double) b) <= 1e-5 * (1 + fabs((double) b) / 16));
    }
}

static void compare(const struct sampled *got, const struct sampled *want)
{
    assert_int_equal(got->id, want->id);
    assert_int_equal(got->n_top, want->n_top);
    compare_logprob(got->logprob, want->logprob);
    for (int i = 0; i < want->n_top; i++) {
        assert_int_equal(got->top_id[i], want->top_id[i]);
        compare_logprob(got->top_logprob[i], want->top_logprob[i]);
    }
}

// Runs the rows at each tp and compares with the definition; returns the fallbacks at tp 1.
static uint64_t compare_all(struct call *c)
{
    static const int tps[] = {1, 2, 3, 4, 8};
    static struct rank_run run;
    struct sampled want[MAX_ROWS];
    uint64_t fallbacks = 0;
    for (int i = 0; i < c->n_rows; i++) want[i] = define(c, i);
    for (size_t t = 0; t < sizeof tps / sizeof *tps; t++) {
        c->tp = tps[t];
        run_call(c, &run);
        assert_int_equal(run.status, OK);
        assert_int_equal(run.counts.rows, c->n_rows);
        for (int i = 0; i < c->n_rows; i++) compare(&run.out[i], &want[i]);
        if (c->tp == 1) fallbacks = run.counts.fallbacks;
    }
    return fallbacks;
}

// --- inputs

static const float TEMPERATURES[] = {0, 1, 0.7f, 1.9f, 1e-3f, 100, 1e-12f};
static const float TOP_PS[] = {1, 0.9f, 0.5f, 0.999f, 1e-30f};
static const float MIN_PS[] = {0, 0.05f, 1, 1e-7f};
static const int32_t TOP_KS[] = {0, 1, 40, 128, 129, 1000, TOP_K_MAX};

#define PICK(a) (a)[next_random() % (sizeof(a) / sizeof *(a))]

// Row i's parameters: random, but over many rows every pair of values occurs.
static struct sampling random_sampling(void)
{
    struct sampling s = sampling_default();
    s.temperature = PICK(TEMPERATURES);
    s.top_p = PICK(TOP_PS);
    s.min_p = PICK(MIN_PS);
    s.top_k = PICK(TOP_KS);
    if (next_random() % 2 == 0) s.repetition_penalty = 0.5f + (float) uniform() * 2;
    if (next_random() % 2 == 0) s.presence_penalty = 4 * (float) uniform() - 2;
    if (next_random() % 2 == 0) s.frequency_penalty = 4 * (float) uniform() - 2;
    s.n_logprobs = (int32_t) (next_random() % 3) * 10 - 1;
    if (s.n_logprobs == 9) s.n_logprobs = (int32_t) (next_random() % (LOGPROBS_MAX + 1));
    s.seed = next_random();
    return s;
}

struct rows {
    float *logits;
    struct sampling sampling[MAX_ROWS];
    int32_t ids[MAX_ROWS * MAX_CONTEXT];
    int n_ids[MAX_ROWS], n_prompt[MAX_ROWS];
};

static struct call make_rows(struct rows *r, int vocab, int n_rows)
{
    r->logits = malloc((size_t) n_rows * (size_t) vocab * sizeof *r->logits);
    for (int i = 0; i < n_rows; i++) {
        r->sampling[i] = random_sampling();
        r->n_ids[i] = 1 + (int) (next_random() % MAX_CONTEXT);
        r->n_prompt[i] = 1 + (int) (next_random() % (uint64_t) r->n_ids[i]);
        for (int j = 0; j < r->n_ids[i]; j++) {
            // Half from few ids, so that counts grow.
            uint64_t of = next_random() % 2 == 0 && vocab > 20 ? 20 : (uint64_t) vocab;
            r->ids[i * MAX_CONTEXT + j] = (int32_t) (next_random() % of);
        }
    }
    return (struct call){.vocab = vocab,
                         .tp = 1,
                         .n_rows = n_rows,
                         .logits = r->logits,
                         .sampling = r->sampling,
                         .ids = r->ids,
                         .n_ids = r->n_ids,
                         .n_prompt = r->n_prompt};
}

static struct rows rows; // of the test that runs

static void fill(const struct call *c, int row, enum shape_of_logits shape)
{
    float *l = rows.logits + (size_t) row * (size_t) c->vocab;
    for (int i = 0; i < c->vocab; i++) l[i] = logit_of(shape, i, c->vocab);
}

// --- tests

static void test_usage(void **state)
{
    (void) state;
    enum { VOCAB = 5 };
    struct sampler_shape shape = {.slots = 2, .max_context = 16, .max_out = 2,
                                  .vocab_n = VOCAB, .vocab_size = VOCAB, .tp = 1};
    void *memory = malloc(sampler_bytes(&shape));
    struct sampler *s = sampler_init(memory, &shape, NULL, NULL, NULL, NULL);

    struct sampling greedy = sampling_default(), drawn = sampling_default();
    greedy.n_logprobs = 2;
    drawn.temperature = 0.8f;
    drawn.top_k = 2;
    drawn.frequency_penalty = 2;
    drawn.seed = 7;
    const int32_t prompt[] = {3, 4}, token = 1;
    sampler_open(s, 0, &greedy, 2);
    sampler_history(s, 0, 0, prompt, 2);
    sampler_open(s, 1, &drawn, 2);
    sampler_history(s, 1, 0, prompt, 2);
    sampler_history(s, 1, 2, &token, 1);

    float logits[2 * VOCAB] = {0, 2, 1, 2, -INFINITY, //
                                     0, 2, 1, 0.5f, -INFINITY};
    const int32_t slot[] = {0, 1}, pos[] = {2, 3};
    struct sampled out[2];
    struct error e = {0};
    assert_int_equal(sampler_run(s, logits, 2, slot, pos, out, &e), OK);
    assert_int_equal(out[0].id, 1);
    assert_int_equal(out[0].n_top, 2);
    assert_int_equal(out[0].top_id[0], 1);
    assert_int_equal(out[0].top_id[1], 3);
    double sum = 2 * exp(2) + exp(1) + 1;
    assert_true(fabs((double) out[0].logprob - log(exp(2) / sum)) < 1e-6);
    // Token 1 was generated once, so 2 and 3 remain as the two most likely.
    assert_true(out[1].id == 2 || out[1].id == 3);
    sampler_close(s, 0);
    sampler_close(s, 1);
    free(memory);
}

// Every shape of logits at sizes around the lists', the blocks' and the chunks' bounds.
static void test_equals_the_definition(void **state)
{
    (void) state;
    static const int vocabs[] = {1, 7, 127, 128, 129, 1024, 1500, 5003};
    uint64_t fallbacks = 0;
    for (size_t v = 0; v < sizeof vocabs / sizeof *vocabs; v++) {
        for (int shape = 0; shape < N_SHAPES; shape++) {
            struct call c = make_rows(&rows, vocabs[v], MAX_ROWS);
            for (int i = 0; i < c.n_rows; i++) fill(&c, i, (enum shape_of_logits) shape);
            fallbacks += compare_all(&c);
            free(rows.logits);
        }
    }
    assert_true(fallbacks > 100);
}

// The vocabulary of DeepSeek-V3, every shape once.
static void test_full_vocabulary(void **state)
{
    (void) state;
    struct call c = make_rows(&rows, 129280, N_SHAPES);
    for (int i = 0; i < c.n_rows; i++) fill(&c, i, (enum shape_of_logits) i);
    compare_all(&c);
    free(rows.logits);
}

// All combinations of the filters on one row of each kind that has long kept sets.
static void test_every_combination(void **state)
{
    (void) state;
    static const enum shape_of_logits shapes[] = {NORMAL, PEAKED, ROUNDED, TWO_LEVELS};
    struct call c = make_rows(&rows, 1500, MAX_ROWS);
    int n = 0;
    for (size_t t = 1; t < 4; t++) {
        for (size_t p = 0; p < sizeof TOP_PS / sizeof *TOP_PS; p++) {
            for (size_t m = 0; m < sizeof MIN_PS / sizeof *MIN_PS; m++) {
                for (size_t k = 0; k < sizeof TOP_KS / sizeof *TOP_KS; k++) {
                    struct sampling *s = &rows.sampling[n];
                    *s = sampling_default();
                    s->temperature = TEMPERATURES[t];
                    s->top_p = TOP_PS[p];
                    s->min_p = MIN_PS[m];
                    s->top_k = TOP_KS[k];
                    s->seed = next_random();
                    fill(&c, n, shapes[next_random() % 4]);
                    if (++n == MAX_ROWS) {
                        compare_all(&c);
                        n = 0;
                    }
                }
            }
        }
    }
    free(rows.logits);
}

static void test_bad_logits(void **state)
{
    (void) state;
    static struct rank_run run;
    for (int tp = 1; tp <= 4; tp++) {
        for (int kind = 0; kind < 3; kind++) {
            struct call c = make_rows(&rows, 2000, 3);
            c.tp = tp;
            for (int i = 0; i < c.n_rows; i++) fill(&c, i, NORMAL);
            for (int i = 0; i < c.vocab && kind == 2; i++) rows.logits[c.vocab + i] = -INFINITY;
            if (kind < 2) rows.logits[c.vocab + 1999 * kind] = kind == 0 ? NAN : -NAN;
            run_call(&c, &run);
            assert_int_equal(run.status, ERR_STATE);
            assert_string_equal(run.error.code, "bad_logits");
            assert_non_null(strstr(run.error.text, "row 1"));
            free(rows.logits);
        }
    }
}

// A search looks at the logits that reach a floor guessed from a sample: here the sample, each
// ninth logit, has all the large ones, so that too few reach it; then it has only small ones.
static void test_a_sample_that_misleads(void **state)
{
    (void) state;
    for (int first = 0; first < 2; first++) {
        struct call c = make_rows(&rows, 5003, 8);
        for (int i = 0; i < c.n_rows; i++) {
            float *l = rows.logits + (size_t) i * (size_t) c.vocab;
            for (int id = 0; id < c.vocab; id++) l[id] = normal() + (id % 9 == first ? 9.0f : 0);
            rows.sampling[i].temperature = 1;
            rows.sampling[i].top_k = i % 2 == 0 ? 1000 : 300;
            rows.sampling[i].top_p = i % 4 < 2 ? 1 : 0.9f;
        }
        assert_int_equal(compare_all(&c), c.n_rows);
        free(rows.logits);
    }
}

// The token of a row with a frequency penalty whose output has n_output ids, by a sampler of the
// host or of a device; `hosted`: of the latter's rows.
static int32_t choose_after(int n_output, bool on_device, uint64_t *hosted)
{
    enum { VOCAB = 50, N_PROMPT = 3, CONTEXT = SAMPLER_COUNTED_MAX + 10 };
    struct sampler_shape shape = {.slots = 1, .max_context = CONTEXT, .max_out = 1,
                                  .vocab_n = VOCAB, .vocab_size = VOCAB, .tp = 1,
                                  .on_device = on_device};
    void *memory = malloc(sampler_bytes(&shape)), *there = malloc(sampler_device_bytes(&shape) + 1);
    check(memory != NULL && there != NULL);
    struct sampler *s = sampler_init(memory, &shape, on_device ? sampler_ops_backend() : NULL,
                                     NULL, there, NULL);
    struct sampling sampling = sampling_default();
    sampling.frequency_penalty = 0.001f;
    sampler_open(s, 0, &sampling, N_PROMPT);
    static int32_t ids[CONTEXT];
    int n = N_PROMPT + n_output;
    for (int i = 0; i < n; i++) ids[i] = i % 7 * (i % 5);
    sampler_history(s, 0, 0, ids, n);
    float logits[VOCAB];
    for (int i = 0; i < VOCAB; i++) logits[i] = 0.02f * (float) (VOCAB - i);
    struct sampled out;
    struct error e = {0};
    check(sampler_run(s, logits, 1, (int32_t[]){0}, (int32_t[]){n}, &out, &e) == OK);
    *hosted = sampler_counts(s).hosted;
    free(memory);
    free(there);
    return out.id;
}

static void test_long_outputs_are_counted_by_the_host(void **state)
{
    (void) state;
    for (int more = 0; more < 2; more++) {
        uint64_t hosted, none;
        int n = SAMPLER_COUNTED_MAX + more;
        assert_int_equal(choose_after(n, true, &hosted), choose_after(n, false, &none));
        assert_int_equal(hosted, more);
    }
}

// Ids written again at an index replace what was there, and a slot opened again forgets.
static void test_history_is_replaced(void **state)
{
    (void) state;
    struct sampler_shape shape = {.slots = 1, .max_context = 4, .max_out = 1,
                                  .vocab_n = 3, .vocab_size = 3, .tp = 1};
    void *memory = malloc(sampler_bytes(&shape));
    struct sampler *s = sampler_init(memory, &shape, NULL, NULL, NULL, NULL);
    struct sampling sampling = sampling_default();
    sampling.presence_penalty = 2;
    float logits[] = {1, 0.5f, 0};
    const int32_t slot = 0, pos = 2, first[] = {2, 0}, again = 1;
    struct sampled out;
    sampler_open(s, 0, &sampling, 1);
    sampler_history(s, 0, 0, first, 2);
    assert_int_equal(sampler_run(s, logits, 1, &slot, &pos, &out, NULL), OK);
    assert_int_equal(out.id, 1);
    sampler_history(s, 0, 1, &again, 1);
    assert_int_equal(sampler_run(s, logits, 1, &slot, &pos, &out, NULL), OK);
    assert_int_equal(out.id, 0);
    sampler_close(s, 0);
    sampler_open(s, 0, &sampling, 2);
    sampler_history(s, 0, 0, first, 2);
    assert_int_equal(sampler_run(s, logits, 1, &slot, &pos, &out, NULL), OK);
    assert_int_equal(out.id, 0); // prompt only
    free(memory);
}

// Many rows at tp 4 go through several batches of collectives and equal those taken alone.
static void test_rows_do_not_depend_on_neighbours(void **state)
{
    (void) state;
    static struct rank_run together, alone;
    struct call c = make_rows(&rows, 3000, MAX_ROWS);
    for (int i = 0; i < c.n_rows; i++) fill(&c, i, (enum shape_of_logits) (i % N_SHAPES));
    c.tp = 4;
    run_call(&c, &together);
    assert_int_equal(together.status, OK);
    for (int i = 0; i < c.n_rows; i++) {
        struct call one = c;
        one.n_rows = 1;
        one.logits += (size_t) i * (size_t) c.vocab;
        one.sampling += i;
        one.ids += (size_t) i * MAX_CONTEXT;
        one.n_ids += i;
        one.n_prompt += i;
        one.tp = 1 + i % 3;
        run_call(&one, &alone);
        assert_int_equal(alone.status, OK);
        assert_memory_equal(&alone.out[0], &together.out[i], sizeof alone.out[0]);
    }
    free(rows.logits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_usage),
        cmocka_unit_test(test_equals_the_definition),
        cmocka_unit_test(test_full_vocabulary),
        cmocka_unit_test(test_every_combination),
        cmocka_unit_test(test_bad_logits),
        cmocka_unit_test(test_a_sample_that_misleads),
        cmocka_unit_test(test_long_outputs_are_counted_by_the_host),
        cmocka_unit_test(test_history_is_replaced),
        cmocka_unit_test(test_rows_do_not_depend_on_neighbours),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
