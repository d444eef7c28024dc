// The whole pipeline against the reference implementation's outputs: every cut into ranks and
// stages, every chunking, alone and beside others, in both precisions.
#include "common/handover.h"
#include "common/kv_block.h"
#include "common/log.h"
#include "common/result.h"
#include "tests/support/golden.h"
#include "tools/engine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *model, *golden;
    double bf16, fp8_kv; // bars of the median row error, in bf16 and with KV in FP8
} MODELS[] = {
    // e4m3 is off by 2.6%, and random weights have routers that one such step sends elsewhere.
    {FIXTURES "/tiny-fp8", FIXTURES "/tiny-fp8", 0.10, 0.40},
    {FIXTURES "/tiny-bf16", FIXTURES "/tiny-bf16", 0.05, 0.10},
    {SOURCE_DIR "/tools/model", FIXTURES "/shipped", 0.05, 0.05},
};

// ThreadSanitizer makes all this sixty times slower, and looks for other things: one model and cut.
#ifdef PENSTOCK_TSAN
enum { N_MODELS = 1, N_CUTS = 1, FIRST_TP = 2, FIRST_PP = 2, LAST_PP = 2, N_CHUNKS = 1 };
#else
enum { N_MODELS = 3, N_CUTS = 3, FIRST_TP = 1, FIRST_PP = 1, LAST_PP = 3, N_CHUNKS = 3 };
#endif
enum { N_GREEDY = 64 };

// What came back of each prompt.
struct outputs {
    const struct golden *golden;
    float *logits[GOLDEN_PROMPTS]; // (n_ids, vocab)
    int n_scored[GOLDEN_PROMPTS];
    int32_t tokens[GOLDEN_PROMPTS][N_GREEDY];
    int n_tokens[GOLDEN_PROMPTS];
};

static void on_logits(void *arg, const struct wire_logits *l)
{
    struct outputs *out = arg;
    int i = atoi(l->key.id);
    assert_int_equal(l->pos, out->n_scored[i]);
    memcpy(out->logits[i] + (size_t) l->pos * (size_t) l->vocab, l->rows.at, l->rows.n);
    out->n_scored[i] += l->n;
}

static void on_result(void *arg, const struct job_key *key, struct wire_bytes bytes)
{
    struct outputs *out = arg;
    struct result r;
    struct error e;
    int i = atoi(key->id);
    assert_int_equal(result_decode(&r, bytes.at, bytes.n, &e), OK);
    assert_int_equal(r.status, RESULT_OK);
    assert_true(r.n_tokens <= N_GREEDY);
    memcpy(out->tokens[i], r.tokens, (size_t) r.n_tokens * 4);
    out->n_tokens[i] = r.n_tokens;
    result_deinit(&r);
}

static void outputs_init(struct outputs *out, const struct golden *g)
{
    *out = (struct outputs){.golden = g};
    for (int i = 0; i < g->n_prompts; i++) {
        out->logits[i] = calloc((size_t) g->prompts[i].n_ids * (size_t) g->vocab, 4);
    }
}

static void outputs_free(struct outputs *out)
{
    for (int i = 0; i < out->golden->n_prompts; i++) free(out->logits[i]);
}

static struct wire_job job_of(const struct golden *g, int i, bool score)
{
    const struct golden_prompt *p = &g->prompts[i];
    struct wire_job job = {.key = {"local", "", 1}, .sampling = sampling_default(), .attempts = 1,
                           .score = score, .max_tokens = score ? 0 : p->n_greedy,
                           .ignore_eos = true,
                           .ids = {p->ids, (size_t) p->n_ids * 4}};
    snprintf(job.key.id, sizeof job.key.id, "%d", i);
    return job;
}

static struct engine *open_engine(const char *model, int tp, int pp, int chunk, int slots,
                                  enum precision precision, bool fp8_kv, bool score)
{
    struct engine *engine;
    struct error e = {0};
    struct engine_options o = {.model = model, .tp = tp, .pp = pp, .chunk = chunk, .slots = slots,
                               .precision = precision, .fp8_kv = fp8_kv, .score = score,
                               .max_context = 400,
                               .n_threads = 1, .backend = backend_cpu()};
    if (engine_open(&engine, &o, &e) != OK) fail_msg("%s: %s", model, e.text);
    return engine;
}

// Prompts together (as many at once as the engine has slots).
static void run(struct engine *engine, const struct golden *g, bool score, struct outputs *out)
{
    struct wire_job jobs[GOLDEN_PROMPTS];
    struct engine_events events = {out, NULL, on_logits, on_result};
    struct error e = {0};
    for (int i = 0; i < g->n_prompts; i++) jobs[i] = job_of(g, i, score);
    if (engine_run(engine, jobs, g->n_prompts, &events, &e) != OK) fail_msg("%s", e.text);
    for (int i = 0; score && i < g->n_prompts; i++) {
        assert_int_equal(out->n_scored[i], g->prompts[i].n_ids);
    }
}

static void score(const char *model, const struct golden *g, int tp, int pp, int chunk, int slots,
                  enum precision precision, bool fp8_kv, struct outputs *out)
{
    struct engine *engine = open_engine(model, tp, pp, chunk, slots, precision, fp8_kv, true);
    outputs_init(out, g);
    run(engine, g, true, out);
    engine_close(&engine);
}

static const float *golden_rows(const struct outputs *out, int i)
{
    const struct golden_prompt *p = &out->golden->prompts[i];
    return out->logits[i] + (size_t) (p->n_ids - p->n_rows) * (size_t) out->golden->vocab;
}

static double largest_error(const struct outputs *out)
{
    double worst = 0;
    for (int i = 0; i < out->golden->n_prompts; i++) {
        const struct golden_prompt *p = &out->golden->prompts[i];
        const float *rows = golden_rows(out, i);
        for (size_t k = 0; k < (size_t) p->n_rows * (size_t) out->golden->vocab; k++) {
            double error = fabs((double) rows[k] - (double) p->logits[k]);
            if (!(error <= worst)) worst = error; // NaN too
        }
    }
    return worst;
}

static void assert_same_bits(const struct outputs *a, const struct outputs *b, const char *what)
{
    for (int i = 0; i < a->golden->n_prompts; i++) {
        size_t n = (size_t) a->golden->prompts[i].n_ids * (size_t) a->golden->vocab * 4;
        if (memcmp(a->logits[i], b->logits[i], n) != 0) fail_msg("prompt %d differs: %s", i, what);
    }
}

static void test_logits_at_every_cut(void **state)
{
    (void) state;
    for (int m = 0; m < N_MODELS; m++) {
        struct golden g;
        golden_load(&g, MODELS[m].golden);
        for (int cut = 0, tp = FIRST_TP; cut < N_CUTS; cut++, tp *= 2) {
            for (int pp = FIRST_PP; pp <= LAST_PP; pp++) {
                struct outputs out;
                score(MODELS[m].model, &g, tp, pp, 0, 6, PRECISION_F32, false, &out);
                double worst = largest_error(&out);
                print_message("# %s tp=%d pp=%d: largest logit error %.2e\n", MODELS[m].golden, tp,
                              pp, worst);
                assert_true(worst <= 2e-3);
                outputs_free(&out);
            }
        }
        golden_free(&g);
    }
}

static void test_same_bits_at_every_chunk(void **state)
{
    (void) state;
    static const int chunks[] = {7, 16, 1};
    for (int i = 0; i < 2 * N_MODELS; i++) {
        struct golden g;
        struct outputs whole, other;
        int m = i / 2;
        bool fp8_kv = i % 2;
        golden_load(&g, MODELS[m].golden);
        score(MODELS[m].model, &g, 2, 2, 400, 1, PRECISION_F32, fp8_kv, &whole);
        for (int c = 0; c < N_CHUNKS; c++) {
            char what[64];
            snprintf(what, sizeof what, "chunks of %d, one after another", chunks[c]);
            score(MODELS[m].model, &g, 2, 2, chunks[c], 1, PRECISION_F32, fp8_kv, &other);
            assert_same_bits(&whole, &other, what);
            outputs_free(&other);
        }
        score(MODELS[m].model, &g, 2, 2, 16, 6, PRECISION_F32, fp8_kv, &other);
        assert_same_bits(&whole, &other, "beside other sequences");
        outputs_free(&other);
        outputs_free(&whole);
        golden_free(&g);
    }
}

static void test_greedy(void **state)
{
    (void) state;
    for (int m = 0; m < N_MODELS; m++) {
        struct golden g;
        struct outputs out;
        golden_load(&g, MODELS[m].golden);
        for (int pp = 1; pp <= 2; pp++) {
            struct engine *engine =
                open_engine(MODELS[m].model, pp, pp, 16, 4, PRECISION_F32, false, false);
            outputs_init(&out, &g);
            run(engine, &g, false, &out);
            for (int i = 0; i < g.n_prompts; i++) {
                const struct golden_prompt *p = &g.prompts[i];
                assert_int_equal(out.n_tokens[i], p->n_greedy);
                for (int k = 0; k < p->n_greedy; k++) {
                    if (out.tokens[i][k] == p->greedy[k]) continue;
                    // Where two logits are nearer than the error either choice is right, and the
                    // texts part.
                    assert_true(p->margin[k] <= 4e-3f);
                    break;
                }
            }
            engine_close(&engine);
            outputs_free(&out);
        }
        golden_free(&g);
    }
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *) a, y = *(const double *) b;
    return (x > y) - (x < y);
}

static double row_error(const float *row, const float *want, int n)
{
    double difference = 0, norm = 0;
    for (int k = 0; k < n; k++) {
        double d = (double) row[k] - (double) want[k];
        difference += d * d;
        norm += (double) want[k] * (double) want[k];
    }
    return sqrt(difference / norm);
}

static void expect_near(enum precision precision, bool fp8_kv)
{
    for (int m = 0; m < N_MODELS; m++) {
        struct golden g;
        struct outputs out;
        double errors[4096];
        int n = 0;
        golden_load(&g, MODELS[m].golden);
        score(MODELS[m].model, &g, 2, 2, 0, 6, precision, fp8_kv, &out);
        for (int i = 0; i < g.n_prompts; i++) {
            const float *rows = golden_rows(&out, i);
            for (int r = 0; r < g.prompts[i].n_rows && n < 4096; r++) {
                size_t at = (size_t) r * (size_t) g.vocab;
                errors[n++] = row_error(rows + at, g.prompts[i].logits + at, g.vocab);
            }
        }
        double first = errors[0];
        qsort(errors, (size_t) n, sizeof *errors, ascending);
        print_message("# %s %s, KV %s: median row error %.4f over %d rows, p0 %.4f\n",
                      MODELS[m].golden, precision_name(precision),
                      kv_name(precision == PRECISION_F32, fp8_kv), errors[n / 2], n, first);
        assert_true(errors[n / 2] <= (fp8_kv ? MODELS[m].fp8_kv : MODELS[m].bf16));
        assert_true(first <= (fp8_kv ? MODELS[m].fp8_kv : 0.02));
        outputs_free(&out);
        golden_free(&g);
    }
}

static void test_bf16(void **state)
{
    (void) state;
    expect_near(PRECISION_BF16, false);
}

static void test_kv_in_fp8(void **state)
{
    (void) state;
    expect_near(PRECISION_F32, true);
    expect_near(PRECISION_BF16, true);
}

// Jobs one after the other: a step for each prompt, which gives a token, and for each further one.
static void test_what_is_counted(void **state)
{
    struct golden g;
    struct engine_counts before, after;
    struct error e = {0};
    (void) state;
    golden_load(&g, MODELS[0].golden);
    struct engine *engine = open_engine(MODELS[0].model, 1, 3, 0, 1, PRECISION_F32, false, false);
    struct outputs out = {.golden = &g};
    uint64_t decodes = 0, prompts = 0, rows = 0, known = 0;
    assert_int_equal(engine_count(engine, &before, &e), OK);
    assert_int_equal(before.decodes + before.prompts, 0);
    run(engine, &g, false, &out);
    assert_int_equal(engine_count(engine, &after, &e), OK);
    for (int i = 0; i < g.n_prompts; i++) {
        bool one = g.prompts[i].n_ids == 1; // its step is as one that decodes
        decodes += (uint64_t) (out.n_tokens[i] - 1 + one);
        prompts += !one;
        known += (uint64_t) g.prompts[i].n_ids;
        rows += (uint64_t) (g.prompts[i].n_ids + out.n_tokens[i] - 1);
    }
    assert_int_equal(after.decodes, decodes);
    assert_int_equal(after.prompts, prompts);
    assert_int_equal(after.prompt_rows, known);
    assert_int_equal(after.rows, rows);
    for (int i = 0; i < 3; i++) {
        assert_true(after.stages[i].decode_us > 0 && after.stages[i].prompt_us > 0);
        assert_true(after.stages[i].leader_ns > before.stages[i].leader_ns);
        assert_true(after.stages[i].leader_wait_ns >= before.stages[i].leader_wait_ns);
        assert_true(after.stages[i].rank_ns >= before.stages[i].rank_ns); // where Linux tells
        assert_true(after.stages[i].rank_wait_ns >= before.stages[i].rank_wait_ns);
    }
    engine_close(&engine);
    golden_free(&g);
}

int main(void)
{
    log_init("test", LOG_WARN, false);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits_at_every_cut),
        cmocka_unit_test(test_same_bits_at_every_chunk),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_kv_in_fp8),
        cmocka_unit_test(test_what_is_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
