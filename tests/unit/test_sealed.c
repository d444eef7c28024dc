// After READY nothing calls the heap where it may not: 100,000 sequences through whole pipelines,
// with the calls counted and the process' size compared.
#include "common/handover.h"
#include "common/log.h"
#include "common/result.h"
#include "common/seal.h"
#include "tools/engine.h"
#include "tools/made_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "model_dir.h"

// The sanitizers' own allocators aren't watched, and much slower: there it is only the traffic.
#if defined(PENSTOCK_TSAN) || defined(__SANITIZE_ADDRESS__)
enum { SEQUENCES = 3000, SETTLED = 1000 };
#else
enum { SEQUENCES = 100000, SETTLED = 10000 }; // by then every buffer that is kept has its size
#endif

enum {
    SLOTS = 128,
    BATCH = 1000,
    SLACK_KIB = 1024,
};

static struct model_dir dir;

static int setup(void **state)
{
    (void) state;
    static const struct made_shape shape = {.layers = 2, .hidden = 8, .heads = 2, .experts = 2,
                                            .dtype = DTYPE_BF16};
    dir = model_dir_create();
    struct error e = {0};
    if (made_model_write(dir.path, &shape, &e) != OK) fail_msg("%s", e.text);
    return 0;
}

static int teardown(void **state)
{
    (void) state;
    model_dir_remove(&dir);
    return 0;
}

static long rss_kib(void)
{
    char line[128];
    long kib = -1;
    FILE *f = fopen("/proc/self/status", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, "VmRSS:", 6) == 0) kib = strtol(line + 6, NULL, 10);
    }
    fclose(f);
    return kib;
}

static void on_result(void *arg, const struct job_key *key, struct wire_bytes bytes)
{
    struct result r;
    struct error e;
    int *n_tokens = arg;
    (void) key;
    assert_int_equal(result_decode(&r, bytes.at, bytes.n, &e), OK);
    assert_int_equal(r.status, RESULT_OK);
    *n_tokens += r.n_tokens;
    result_deinit(&r);
}

// BATCH sequences of 1 to 3 prompt ids and 1 to 3 tokens.
static void run_batch(struct engine *g, int first)
{
    static struct wire_job jobs[BATCH];
    static const int32_t ids[] = {3, 5, 7};
    struct error e = {0};
    int wanted = 0, got = 0;
    for (int i = 0; i < BATCH; i++) {
        jobs[i] = (struct wire_job){.key = {"local", "", 1}, .sampling = sampling_default(),
                                    .attempts = 1, .max_tokens = 1 + i % 3, .ignore_eos = true,
                                    .ids = {ids, (size_t) (1 + i / 3 % 3) * sizeof *ids}};
        snprintf(jobs[i].key.id, sizeof jobs[i].key.id, "%d", first + i);
        wanted += jobs[i].max_tokens;
    }
    struct engine_events events = {.arg = &got, .result = on_result};
    if (engine_run(g, jobs, BATCH, &events, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(got, wanted);
}

static void run_pipeline(int tp, int pp, int n)
{
    struct engine *g;
    struct error e = {0};
    struct engine_options o = {.model = dir.path, .tp = tp, .pp = pp, .slots = SLOTS,
                               .max_context = 8, .precision = PRECISION_F32, .n_threads = 2,
                               .backend = backend_cpu()};
    long settled = 0;
    if (engine_open(&g, &o, &e) != OK) fail_msg("%s", e.text);
    for (int done = 0; done < n; done += BATCH) {
        if (done == SETTLED) settled = rss_kib();
        run_batch(g, done);
    }
    long grown = rss_kib() - settled;
    struct seal_counts counts = seal_counts();
    print_message("# tp=%d pp=%d: %d sequences, %llu heap calls under the seal, RSS grew %ld KiB "
                  "after the first %d\n", tp, pp, n, (unsigned long long) counts.broken, grown,
                  SETTLED);
    if (counts.broken > 0) fail_msg("the first heap call came from %p", counts.first);
    if (counts.watched) assert_true(grown <= SLACK_KIB);
    engine_close(&g);
}

static void nothing_is_allocated_in_one_stage(void **state)
{
    (void) state;
    run_pipeline(2, 1, SEQUENCES);
}

static void nothing_is_allocated_between_stages(void **state)
{
    (void) state;
    run_pipeline(1, 2, SEQUENCES);
}

// The counter counts: each function that takes memory or gives it back, and only under the seal.
static void the_seal_sees_every_call(void **state)
{
    (void) state;
    if (!seal_counts().watched || seal_counts().fatal) skip();
    uint64_t before = seal_counts().broken;
    void *volatile a, *volatile b, *volatile c, *volatile none = NULL; // nothing is optimised away
    void *d = NULL;
    a = malloc(100);
    free(a);
    assert_int_equal(seal_counts().broken, before);
    assert_false(seal_set(true));
    a = malloc(10), b = calloc(1, 10), c = aligned_alloc(64, 64);
    int failed = posix_memalign(&d, 64, 10);
    a = realloc(a, 100);
    void *map = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    free(a), free(b), free(c), free(d), free(none);
    assert_true(seal_set(false));
    assert_int_equal(failed, 0);
    munmap(map, 4096);
    assert_int_equal(seal_counts().broken, before + 10);
    assert_non_null(seal_counts().first);
}

static void *count_apart(void *arg)
{
    (void) arg;
    free(malloc(10));
    return NULL;
}

static void a_seal_is_of_one_thread(void **state)
{
    (void) state;
    pthread_t thread;
    uint64_t before = seal_counts().broken;
    assert_int_equal(pthread_create(&thread, NULL, count_apart, NULL), 0);
    seal_set(true);
    pthread_join(thread, NULL);
    seal_set(false);
    assert_int_equal(seal_counts().broken, before);
}

int main(void)
{
    log_init("test", LOG_WARN, false);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_allocated_in_one_stage),
        cmocka_unit_test(nothing_is_allocated_between_stages),
        cmocka_unit_test(the_seal_sees_every_call),
        cmocka_unit_test(a_seal_is_of_one_thread),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
