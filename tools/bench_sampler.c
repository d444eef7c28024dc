// penstock bench sampler: microseconds a row of sampler_run on one rank, beside the time in which
// this machine reads the same logits once, probed right before in the same run.
#include "common/clock.h"
#include "common/options.h"
#include "kernels/sampler.h"
#include "tools/commands.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_MAX = 64, HISTORY = 4096, REPEATS_LEAST = 3 };

static const int64_t CASE_NS = 200000000; // time spent on one line of the table

enum logits_kind { MODEL_LIKE, FLAT, EQUAL, ASCENDING };

struct bench_case {
    const char *name;
    enum logits_kind logits;
    float temperature, top_p, min_p;
    int32_t top_k, n_logprobs;
    float repetition;
};

static const struct bench_case CASES[] = {
    {"greedy", MODEL_LIKE, 0, 1, 0, 0, -1, 1},
    {"greedy, 5 logprobs", MODEL_LIKE, 0, 1, 0, 0, 5, 1},
    {"greedy, repetition over 4096 ids", MODEL_LIKE, 0, 1, 0, 0, -1, 1.1f},
    {"temperature", MODEL_LIKE, 0.8f, 1, 0, 0, -1, 1},
    {"top_k 50", MODEL_LIKE, 0.8f, 1, 0, 50, -1, 1},
    {"top_p 0.9", MODEL_LIKE, 0.8f, 0.9f, 0, 0, -1, 1},
    {"top_k 50, top_p 0.9", MODEL_LIKE, 0.8f, 0.9f, 0, 50, -1, 1},
    {"min_p 0.05", MODEL_LIKE, 0.8f, 1, 0.05f, 0, -1, 1},
    {"adversarial: flat, top_p 0.95", FLAT, 1, 0.95f, 0, 0, -1, 1},
    {"adversarial: flat, top_k 5000, top_p 0.95", FLAT, 1, 0.95f, 0, 5000, -1, 1},
    {"adversarial: all equal, top_p 0.5", EQUAL, 1, 0.5f, 0, 0, -1, 1},
    {"adversarial: ascending, top_k 128", ASCENDING, 1, 1, 0, 128, -1, 1},
};

static const int ROW_COUNTS[] = {1, 4, 16, 64};

struct bench {
    int vocab;
    float *logits; // (ROWS_MAX, vocab)
    int32_t history[HISTORY];
    FILE *csv; // or NULL
};

static double uniform(uint64_t position)
{
    return (double) (sampling_random(1, position) >> 11) / 9007199254740992.0;
}

// MODEL_LIKE: normal with standard deviation 2 and, every 4000 ids, a token far above, which
// together have most of the mass, as a language model's next token has.
static void fill(struct bench *b, enum logits_kind kind)
{
    for (int64_t i = 0; i < (int64_t) ROWS_MAX * b->vocab; i++) {
        int64_t id = i % b->vocab;
        double radius = sqrt(-2 * log(1 - uniform((uint64_t) i * 2)));
        double normal = radius * cos(6.283185307179586 * uniform((uint64_t) i * 2 + 1));
        switch (kind) {
        case MODEL_LIKE: b->logits[i] = (float) (2 * normal + (id % 4000 == 17 ? 16 : 0)); break;
        case FLAT: b->logits[i] = (float) (2 * normal); break;
        case EQUAL: b->logits[i] = 1; break;
        case ASCENDING: b->logits[i] = (float) id * 16 / (float) b->vocab; break;
        }
    }
}

// Nanoseconds of reading n floats once: the best of several sums.
static int64_t read_ns(const float *l, int64_t n)
{
    volatile float keep;
    int64_t best = INT64_MAX, begin = clock_ns();
    for (int repeat = 0; repeat < REPEATS_LEAST || clock_ns() - begin < CASE_NS / 8; repeat++) {
        float sums[32] = {0};
        int64_t from = clock_ns();
        for (int64_t i = 0; i + 32 <= n; i += 32) {
            for (int j = 0; j < 32; j++) sums[j] += l[i + j];
        }
        for (int j = 1; j < 32; j++) sums[0] += sums[j];
        keep = sums[0];
        int64_t took = clock_ns() - from;
        best = took < best ? took : best;
    }
    (void) keep;
    return best;
}

static int by_time(const void *a, const void *b)
{
    int64_t x = *(const int64_t *) a, y = *(const int64_t *) b;
    return x < y ? -1 : x > y;
}

static enum status measure(struct bench *b, const struct bench_case *c, int n_rows, struct error *e)
{
    enum { TIMES_MAX = 1000 };
    static struct sampled out[ROWS_MAX];
    static int64_t times[TIMES_MAX];
    struct sampler_shape shape = {.slots = ROWS_MAX, .max_context = HISTORY, .max_out = ROWS_MAX,
                                  .vocab_n = b->vocab, .vocab_size = b->vocab, .tp = 1};
    void *memory = NULL;
    if (posix_memalign(&memory, 64, sampler_bytes(&shape)) != 0) {
        return error_set(e, ERR_NOMEM, NULL, "no %" PRIu64 " bytes for the sampler",
                         sampler_bytes(&shape));
    }
    struct sampler *s = sampler_init(memory, &shape, NULL, NULL, NULL);
    struct sampling sampling = sampling_default();
    sampling.temperature = c->temperature;
    sampling.top_p = c->top_p;
    sampling.min_p = c->min_p;
    sampling.top_k = c->top_k;
    sampling.n_logprobs = c->n_logprobs;
    sampling.repetition_penalty = c->repetition;
    int32_t slot[ROWS_MAX], pos[ROWS_MAX];
    for (int i = 0; i < n_rows; i++) {
        sampling.seed = (uint64_t) i;
        slot[i] = i;
        pos[i] = HISTORY;
        sampler_open(s, i, &sampling, HISTORY / 2);
        sampler_history(s, i, 0, b->history, HISTORY);
    }
    int64_t read = read_ns(b->logits, (int64_t) n_rows * b->vocab), begin = clock_ns();
    int n = 0;
    enum status status = OK;
    while (status == OK && n < TIMES_MAX && (n < REPEATS_LEAST || clock_ns() - begin < CASE_NS)) {
        int64_t from = clock_ns();
        status = sampler_run(s, b->logits, n_rows, slot, pos, out, e);
        times[n++] = clock_ns() - from;
    }
    struct sampler_counts counts = sampler_counts(s);
    free(memory);
    if (status != OK) return status;
    qsort(times, (size_t) n, sizeof *times, by_time);
    double rows = 1000.0 * n_rows, median = (double) times[n / 2] / rows;
    double best = (double) times[0] / rows, once = (double) read / rows;
    double searched = 100.0 * (double) counts.fallbacks / (double) counts.rows;
    printf("%-42s %5d %10.1f %10.1f %10.1f %7.1f %9.0f%%\n", c->name, n_rows, median, best, once,
           median / once, searched);
    if (b->csv != NULL) {
        fprintf(b->csv, "\"%s\",%d,%d,%.2f,%.2f,%.2f,%.1f\n", c->name, b->vocab, n_rows, median,
                best, once, searched);
    }
    return OK;
}

static enum status run_all(struct bench *b, struct error *e)
{
    for (int i = 0; i < HISTORY; i++) {
        b->history[i] = (int32_t) (sampling_random(2, (uint64_t) i) % (uint64_t) b->vocab);
    }
    printf("vocabulary %d, one rank; us a row\n", b->vocab);
    printf("%-42s %5s %10s %10s %10s %7s %10s\n", "case", "rows", "median", "best", "read once",
           "ratio", "searched");
    if (b->csv != NULL) {
        fprintf(b->csv, "case,vocab,rows,median_us_a_row,best_us_a_row,read_us_a_row,"
                        "searched_percent\n");
    }
    for (size_t c = 0; c < sizeof CASES / sizeof *CASES; c++) {
        if (c == 0 || CASES[c].logits != CASES[c - 1].logits) fill(b, CASES[c].logits);
        for (size_t r = 0; r < sizeof ROW_COUNTS / sizeof *ROW_COUNTS; r++) {
            try(measure(b, &CASES[c], ROW_COUNTS[r], e));
        }
    }
    return OK;
}

int bench_sampler(int argc, char **argv)
{
    int64_t vocab = 129280;
    const char *csv = NULL;
    struct option_spec specs[] = {
        {.name = "vocab", .kind = OPTION_INT, .value = &vocab, .argument = "N",
         .help = "Ids of the vocabulary.", .least = 1, .most = MODEL_VOCAB_MAX},
        {.name = "csv", .kind = OPTION_STRING, .value = &csv, .argument = "FILE",
         .help = "Writes the table as CSV too."},
    };
    struct options o = {.program = "penstock bench sampler",
                        .usage = "[OPTIONS]",
                        .about = "Times sampler_run, beside reading its logits once.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) {
        fprintf(stderr, "%s: %s\n", o.program, e.text);
        return EXIT_USAGE;
    }
    if (o.help) return EXIT_DONE;
    struct bench *b = calloc(1, sizeof *b);
    float *logits = malloc((size_t) ROWS_MAX * (size_t) vocab * sizeof *logits);
    enum status status = OK;
    if (b == NULL || logits == NULL) {
        status = error_set(&e, ERR_NOMEM, NULL, "no memory for %d rows of logits", ROWS_MAX);
    } else {
        *b = (struct bench){.vocab = (int) vocab, .logits = logits};
        if (csv != NULL && (b->csv = fopen(csv, "w")) == NULL) {
            status = error_set(&e, ERR_IO, NULL, "cannot write %s", csv);
        } else {
            status = run_all(b, &e);
        }
        if (b->csv != NULL && fclose(b->csv) != 0 && status == OK) {
            status = error_set(&e, ERR_IO, NULL, "cannot write %s", csv);
        }
    }
    free(logits);
    free(b);
    if (status == OK) return EXIT_DONE;
    fprintf(stderr, "%s: %s\n", o.program, e.text);
    return EXIT_FAILED;
}
