// penstock bench sampler: microseconds a row of what a step does (record the id chosen last, then
// sampler_run) on one rank, beside the time in which this machine reads the same logits once and
// that of sorting them, all in turns in the same run.
#include "common/options.h"
#include "kernels/sampler.h"
#include "kernels/sampler_mass.h"
#include "tools/commands.h"
#include "tools/csv.h"
#include "tools/outcome.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROWS_MAX = 64, HISTORY = 4096, REPEATS_LEAST = 5, REPEATS_MAX = 1000 };
enum { DIGIT_BITS = 11, DIGITS = 1 << DIGIT_BITS };

static const int64_t CASE_NS = 200000000; // time spent on sampling for one line of the table

// MODEL_LIKE: normal with standard deviation 2 and, every 4000 ids, a token far above, which
// together have most of the mass, as a language model's next token has.
enum logits_kind { MODEL_LIKE, NORMAL_1, NORMAL_2, NORMAL_3, NORMAL_4, EQUAL, ASCENDING };

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
    {"greedy, penalties", MODEL_LIKE, 0, 1, 0, 0, -1, 1.1f},
    {"temperature 1", MODEL_LIKE, 1, 1, 0, 0, -1, 1},
    {"top_k 50", MODEL_LIKE, 1, 1, 0, 50, -1, 1},
    {"top_k 50, top_p 0.95", MODEL_LIKE, 1, 0.95f, 0, 50, -1, 1},
    {"min_p 0.05", MODEL_LIKE, 1, 1, 0.05f, 0, -1, 1},
    {"top_p 0.95", MODEL_LIKE, 1, 0.95f, 0, 0, -1, 1},
    {"top_p 0.95, temperature 0.6", MODEL_LIKE, 0.6f, 0.95f, 0, 0, -1, 1},
    {"top_p 0.95, 5 logprobs", MODEL_LIKE, 1, 0.95f, 0, 0, 5, 1},
    {"top_p 0.95, penalties", MODEL_LIKE, 1, 0.95f, 0, 0, -1, 1.1f},
    {"top_p 0.95, penalties, 5 logprobs", MODEL_LIKE, 1, 0.95f, 0, 0, 5, 1.1f},
    {"normal, sigma 4: top_p 0.95", NORMAL_4, 1, 0.95f, 0, 0, -1, 1},
    {"normal, sigma 3: top_p 0.95", NORMAL_3, 1, 0.95f, 0, 0, -1, 1},
    {"normal, sigma 2: top_p 0.95", NORMAL_2, 1, 0.95f, 0, 0, -1, 1},
    {"normal, sigma 2: top_p 0.95, 5 logprobs", NORMAL_2, 1, 0.95f, 0, 0, 5, 1},
    {"normal, sigma 2: top_p 0.95, penalties", NORMAL_2, 1, 0.95f, 0, 0, -1, 1.1f},
    {"normal, sigma 2: top_k 5000, top_p 0.95", NORMAL_2, 1, 0.95f, 0, 5000, -1, 1},
    {"normal, sigma 1: top_p 0.95", NORMAL_1, 1, 0.95f, 0, 0, -1, 1},
    {"all equal: top_p 0.95", EQUAL, 1, 0.95f, 0, 0, -1, 1},
    {"ascending: top_k 128", ASCENDING, 1, 1, 0, 128, -1, 1},
};

static const int ROW_COUNTS[] = {1, 8, 64};

struct bench {
    int vocab;
    float *logits;   // (ROWS_MAX, vocab)
    uint64_t *sorted; // (2, vocab)
    int32_t history[HISTORY];
    FILE *csv; // or NULL
};

// CPU time, so that what else runs on the machine does not count.
static int64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t) t.tv_sec * 1000000000 + t.tv_nsec;
}

static double uniform(uint64_t position)
{
    return (double) (sampling_random(1, position) >> 11) / 9007199254740992.0;
}

static double normal(int64_t i)
{
    double radius = sqrt(-2 * log(1 - uniform((uint64_t) i * 2)));
    return radius * cos(6.283185307179586 * uniform((uint64_t) i * 2 + 1));
}

static void fill(struct bench *b, enum logits_kind kind)
{
    for (int64_t i = 0; i < (int64_t) ROWS_MAX * b->vocab; i++) {
        int64_t id = i % b->vocab;
        switch (kind) {
        case MODEL_LIKE: b->logits[i] = (float) (2 * normal(i) + (id % 4000 == 17 ? 16 : 0)); break;
        case NORMAL_1:
        case NORMAL_2:
        case NORMAL_3:
        case NORMAL_4: b->logits[i] = (float) ((1 + kind - NORMAL_1) * normal(i)); break;
        case EQUAL: b->logits[i] = 1; break;
        case ASCENDING: b->logits[i] = (float) id * 16 / (float) b->vocab; break;
        }
    }
}

static float read_once(const float *l, int64_t n)
{
    float sums[32] = {0};
    for (int64_t i = 0; i + 32 <= n; i += 32) {
        for (int j = 0; j < 32; j++) sums[j] += l[i + j];
    }
    for (int j = 1; j < 32; j++) sums[0] += sums[j];
    return sums[0];
}

// What a sampler by sorting does first: tokens by (logit descending, id ascending). Radix sort of
// three digits, which needs no comparison.
static uint64_t sort_row(struct bench *b, const float *l)
{
    uint64_t *from = b->sorted, *to = b->sorted + b->vocab;
    for (int i = 0; i < b->vocab; i++) from[i] = entry_of(l[i], i);
    for (int shift = 32; shift < 64; shift += DIGIT_BITS) {
        uint32_t at[DIGITS + 1] = {0};
        for (int i = 0; i < b->vocab; i++) at[from[i] >> shift & (DIGITS - 1)]++;
        for (uint32_t i = 0, sum = 0; i < DIGITS; i++) {
            uint32_t n = at[i];
            at[i] = sum;
            sum += n;
        }
        for (int i = 0; i < b->vocab; i++) to[at[from[i] >> shift & (DIGITS - 1)]++] = from[i];
        uint64_t *swap = from;
        from = to;
        to = swap;
    }
    return from[0];
}

static int by_time(const void *a, const void *b)
{
    int64_t x = *(const int64_t *) a, y = *(const int64_t *) b;
    return x < y ? -1 : x > y;
}

static double median_us(int64_t *times, int n, int n_rows)
{
    qsort(times, (size_t) n, sizeof *times, by_time);
    return (double) times[n / 2] / 1000.0 / n_rows;
}

static struct sampling sampling_of(const struct bench_case *c)
{
    struct sampling s = sampling_default();
    s.temperature = c->temperature;
    s.top_p = c->top_p;
    s.min_p = c->min_p;
    s.top_k = c->top_k;
    s.n_logprobs = c->n_logprobs;
    s.repetition_penalty = c->repetition;
    return s;
}

static void open_rows(struct bench *b, struct sampler *s, const struct bench_case *c, int n_rows,
                      uint64_t seed)
{
    struct sampling sampling = sampling_of(c);
    for (int i = 0; i < n_rows; i++) {
        sampling.seed = seed + (uint64_t) i;
        sampler_open(s, i, &sampling, HISTORY / 2);
        sampler_history(s, i, 0, b->history, HISTORY - 1);
    }
}

struct figures {
    double row_us, read_us, sort_us;
    struct sampler_counts counts;
};

static void print(struct bench *b, const struct bench_case *c, int n_rows, const struct figures *f)
{
    double rows = (double) f->counts.rows, tested = 100 * (double) f->counts.tests / rows;
    double searched = 100 * (double) f->counts.fallbacks / rows;
    printf("%-42s %4d %9.1f %9.1f %8.2f %9.1f %8.1f %6.0f%% %7.1f%%\n", c->name, n_rows, f->row_us,
           f->read_us, f->row_us / f->read_us, f->sort_us, f->sort_us / f->row_us, tested,
           searched);
    if (b->csv == NULL) return;
    fprintf(b->csv, "\"%s\",%d,%d,%.2f,%.2f,%.3f,%.2f,%.3f,%.2f,%.2f\n", c->name, b->vocab, n_rows,
            f->row_us, f->read_us, f->row_us / f->read_us, f->sort_us, f->sort_us / f->row_us,
            tested, searched);
}

static enum status measure(struct bench *b, const struct bench_case *c, int n_rows, struct error *e)
{
    static struct sampled out[ROWS_MAX];
    static int64_t rows[REPEATS_MAX], reads[REPEATS_MAX], sorts[REPEATS_MAX];
    struct sampler_shape shape = {.slots = ROWS_MAX, .max_context = HISTORY, .max_out = ROWS_MAX,
                                  .vocab_n = b->vocab, .vocab_size = b->vocab, .tp = 1};
    void *memory = NULL;
    if (posix_memalign(&memory, 256, sampler_bytes(&shape)) != 0) {
        return error_set(e, ERR_NOMEM, NULL, "no %" PRIu64 " bytes for the sampler",
                         sampler_bytes(&shape));
    }
    struct sampler *s = sampler_init(memory, &shape, NULL, NULL, NULL, NULL);
    int32_t slot[ROWS_MAX], pos[ROWS_MAX];
    for (int i = 0; i < n_rows; i++) {
        slot[i] = i;
        pos[i] = HISTORY;
    }
    volatile uint64_t keep;
    int n = 0;
    int64_t spent = 0;
    enum status status = OK;
    for (; status == OK && n < REPEATS_MAX && (n < REPEATS_LEAST || spent < CASE_NS); n++) {
        open_rows(b, s, c, n_rows, (uint64_t) n * ROWS_MAX);
        int64_t begin = cpu_ns();
        keep = (uint64_t) read_once(b->logits, (int64_t) n_rows * b->vocab);
        reads[n] = cpu_ns() - begin;
        begin = cpu_ns();
        for (int i = 0; i < n_rows; i++) {
            sampler_history(s, i, HISTORY - 1, &b->history[HISTORY - 1], 1);
        }
        status = sampler_run(s, b->logits, n_rows, slot, pos, out, e);
        rows[n] = cpu_ns() - begin;
        spent += rows[n];
        begin = cpu_ns();
        keep = sort_row(b, b->logits + (size_t) (n % n_rows) * (size_t) b->vocab);
        sorts[n] = cpu_ns() - begin;
    }
    (void) keep;
    struct figures f = {.counts = sampler_counts(s)};
    free(memory);
    if (status != OK) return status;
    f.row_us = median_us(rows, n, n_rows);
    f.read_us = median_us(reads, n, n_rows);
    f.sort_us = median_us(sorts, n, 1);
    print(b, c, n_rows, &f);
    return OK;
}

static enum status run_all(struct bench *b, struct error *e)
{
    for (int i = 0; i < HISTORY; i++) {
        // As words in a text: the r-th most frequent one as often as 1 / r.
        double rank = pow(b->vocab, uniform((uint64_t) i)) - 1;
        b->history[i] = (int32_t) ((int64_t) rank * 7919 % b->vocab);
    }
    printf("vocabulary %d, one rank, penalties over %d ids; median us of CPU time a row\n",
           b->vocab, HISTORY);
    printf("%-42s %4s %9s %9s %8s %9s %8s %7s %8s\n", "case", "rows", "sample", "read", "x read",
           "sort", "x faster", "tested", "searched");
    if (b->csv != NULL) {
        fprintf(b->csv, "case,vocab,rows,sample_us_a_row,read_us_a_row,sample_to_read,"
                        "sort_us_a_row,sort_to_sample,tested_percent,searched_percent\n");
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
        CSV_FLAG_ROW(csv),
    };
    struct options o = {.program = "penstock bench sampler",
                        .usage = "[OPTIONS]",
                        .about = "Times sampler_run, beside reading its logits once and sorting "
                                 "them.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    struct bench *b = calloc(1, sizeof *b);
    float *logits = malloc((size_t) ROWS_MAX * (size_t) vocab * sizeof *logits);
    uint64_t *sorted = malloc(2 * (size_t) vocab * sizeof *sorted);
    enum status status = OK;
    if (b == NULL || logits == NULL || sorted == NULL) {
        status = error_set(&e, ERR_NOMEM, NULL, "no memory for %d rows of logits", ROWS_MAX);
    } else {
        *b = (struct bench){.vocab = (int) vocab, .logits = logits, .sorted = sorted};
        status = csv_open(&b->csv, csv, &e);
        if (status == OK) status = run_all(b, &e);
        status = csv_close(b->csv, csv, status, &e);
    }
    free(sorted);
    free(logits);
    free(b);
    if (status == OK) return EXIT_DONE;
    return outcome_failed(o.program, &e, false);
}
