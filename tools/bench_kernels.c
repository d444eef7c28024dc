// penstock bench kernels: matrix products of the CPU backend beside what this machine can do at
// most, probed in turn with them by the same threads in the same memory: with few rows the rate at
// which weights are read, beside a plain read; with many, multiply-adds beside the same between
// registers. Each is many short samples over memory that is cold again when its turn comes.
#include "common/carve.h"
#include "common/clock.h"
#include "common/limits.h"
#include "common/options.h"
#include "kernels/backend.h"
#include "kernels/cpu/device.h"
#include "kernels/cpu/probe.h"
#include "tools/commands.h"
#include "tools/csv.h"
#include "tools/outcome.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    N = 7168, K = 2048,       // o_proj of DeepSeek-V3 for one of 8 ranks
    N_MANY = 1024,            // outputs of a sample with many rows: some milliseconds
    ROWS_MAX = 512,
    MATRICES_MAX = 1024,
    SAMPLES_LEAST = 15, SAMPLES_MOST = 400,
    PACK_ROWS = 256,
    READ_PIECE = 64 * 1024,
};

static const int64_t PROBE_ROUNDS = 50000;     // of a piece: about a millisecond
static const int64_t CASE_NS = 2000000000;     // time spent on one line of the table

struct bench_case {
    const char *name;
    enum dtype dtype;
    int n_rows;
    bool reads; // compared by bytes of weights, else by multiply-adds
};

static const struct bench_case CASES[] = {
    {"FP8 weights, 1 row", DTYPE_F8_E4M3, 1, true},
    {"FP8 weights, 4 rows", DTYPE_F8_E4M3, 4, true},
    {"FP8 weights, 16 rows", DTYPE_F8_E4M3, 16, false},
    {"FP8 weights, 512 rows", DTYPE_F8_E4M3, 512, false},
    {"bf16 weights, 1 row", DTYPE_BF16, 1, true},
    {"bf16 weights, 4 rows", DTYPE_BF16, 4, true},
    {"bf16 weights, 16 rows", DTYPE_BF16, 16, false},
    {"bf16 weights, 512 rows", DTYPE_BF16, 512, false},
};

// Rates a second: by the clock, and by the CPU time of the threads, of which other programs on the
// machine take nothing.
struct rate {
    double wall, cpu;
};

struct bench {
    struct device *d;
    const struct probe *probe;
    struct matrix matrices[MATRICES_MAX];
    int n_matrices, next;
    uint64_t set_bytes; // of all matrices together
    char *set;
    size_t read_at;     // where the next read sample begins in the set
    float *x, *out;     // (ROWS_MAX, K), (ROWS_MAX, N)
    uint8_t *rows;      // (PACK_ROWS, K) of any dtype
    FILE *csv;          // or NULL
};

// --- time

struct watch {
    int64_t wall_ns, cpu_ns;
};

static struct watch watch_now(void)
{
    struct timespec cpu;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    return (struct watch) {clock_ns(), cpu.tv_sec * 1000000000 + cpu.tv_nsec};
}

static struct rate rate_since(const struct bench *b, struct watch from, double amount)
{
    struct watch now = watch_now();
    double cpu_ns = (double) (now.cpu_ns - from.cpu_ns) / team_threads(b->d->team);
    return (struct rate) {amount * 1e9 / (double) (now.wall_ns - from.wall_ns),
                          amount * 1e9 / cpu_ns};
}

// --- probes, on the device's team

static void read_pieces(void *arg, int begin, int end, int thread)
{
    (void) thread;
    const struct bench *b = arg;
    b->probe->read(b->set + b->read_at + (size_t) begin * READ_PIECE,
                   (size_t) (end - begin) * READ_PIECE);
}

// Bytes a second, over as much as a matrix has.
static struct rate read_rate(struct bench *b, size_t bytes)
{
    if (b->read_at + bytes > b->set_bytes) b->read_at = 0;
    struct watch from = watch_now();
    team_run(b->d->team, read_pieces, b, (int) (bytes / READ_PIECE), 4);
    b->read_at += bytes / READ_PIECE * READ_PIECE;
    return rate_since(b, from, (double) (bytes / READ_PIECE * READ_PIECE));
}

static void multiply_pieces(void *arg, int begin, int end, int thread)
{
    (void) thread;
    const struct bench *b = arg;
    for (int i = begin; i < end; i++) b->probe->multiply(PROBE_ROUNDS);
}

// Floating-point operations a second.
static struct rate multiply_rate(struct bench *b)
{
    int pieces = 2 * team_threads(b->d->team);
    struct watch from = watch_now();
    team_run(b->d->team, multiply_pieces, b, pieces, 1);
    return rate_since(b, from, (double) pieces * (double) PROBE_ROUNDS * b->probe->flops_a_round);
}

// --- products

// Any numbers of FP8; of bf16 those whose exponents lie near 1.
static void fill_rows(struct bench *b, enum dtype dtype)
{
    size_t n = (size_t) PACK_ROWS * K * dtype_size(dtype);
    uint64_t seed = 1;
    for (size_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        uint8_t byte = (uint8_t) (seed >> 56);
        if (dtype == DTYPE_F8_E4M3) b->rows[i] = (byte & 0x7f) == 0x7f ? byte & 0x80 : byte;
        else b->rows[i] = i % 2 == 0 ? byte : (uint8_t) ((byte & 0x87) | 0x38);
    }
}

static void set_matrices(struct bench *b, enum dtype dtype)
{
    const struct backend *cpu = backend_cpu();
    struct carve c = {.base = b->set, .size = b->set_bytes};
    fill_rows(b, dtype);
    for (b->n_matrices = 0; b->n_matrices < MATRICES_MAX; b->n_matrices++) {
        struct matrix *m = &b->matrices[b->n_matrices];
        *m = (struct matrix) {.dtype = dtype, .n = N, .k = K};
        uint64_t bytes = matrix_bytes(cpu, m);
        uint64_t scales = (uint64_t) (N / SCALE_BLOCK) * (K / SCALE_BLOCK) * sizeof(float);
        if (c.used + bytes + scales + 2 * CARVE_ALIGN > c.size) return;
        m->data = carve_take(&c, bytes);
        m->scales = carve_take(&c, scales);
        for (uint64_t i = 0; i < scales / sizeof(float); i++) m->scales[i] = 1e-3f;
        for (int row = 0; row < N; row += PACK_ROWS) {
            cpu->matrix_pack(b->d, m, row, PACK_ROWS, b->rows);
        }
    }
}

// One product with the next matrix. With many rows a part of its outputs will do.
static struct rate product_rate(struct bench *b, const struct bench_case *c)
{
    struct matrix m = b->matrices[b->next];
    b->next = (b->next + 1) % b->n_matrices;
    if (!c->reads) m.n = N_MANY;
    struct watch from = watch_now();
    backend_cpu()->gemm(b->d, &m, b->x, K, b->out, N, c->n_rows);
    double products = (double) m.n * (double) K;
    return rate_since(b, from, c->reads ? products * (double) dtype_size(c->dtype)
                                        : 2 * products * c->n_rows);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *) a, y = *(const double *) b;
    return x < y ? -1 : x > y;
}

static double median(double *values, int n)
{
    qsort(values, (size_t) n, sizeof *values, ascending);
    return values[n / 2];
}

static void measure(struct bench *b, const struct bench_case *c)
{
    static double marks[SAMPLES_MOST], rates[SAMPLES_MOST], walls[SAMPLES_MOST], cpus[SAMPLES_MOST];
    size_t bytes = (size_t) N * K * dtype_size(c->dtype);
    int64_t begin = clock_ns();
    int n = 0;
    b->read_at = b->set_bytes / 2; // far from the next matrix
    b->next = 0;
    while (n < SAMPLES_MOST && (n < SAMPLES_LEAST || clock_ns() - begin < CASE_NS)) {
        struct rate mark = c->reads ? read_rate(b, bytes) : multiply_rate(b);
        struct rate rate = product_rate(b, c);
        marks[n] = mark.wall * 1e-9;
        rates[n] = rate.wall * 1e-9;
        walls[n] = rate.wall / mark.wall;
        cpus[n++] = rate.cpu / mark.cpu;
    }
    const char *unit = c->reads ? "GB/s" : "GFLOP/s";
    double rate = median(rates, n), mark = median(marks, n), wall = median(walls, n);
    double cpu = median(cpus, n);
    printf("%-24s %9.1f %9.1f %-8s %5.0f%% %11.0f%%\n", c->name, rate, mark, unit, 100 * wall,
           100 * cpu);
    if (b->csv != NULL) {
        fprintf(b->csv, "\"%s\",%d,%d,%d,%s,%.2f,%.2f,%.3f,%.3f\n", c->name, N, K, c->n_rows, unit,
                rate, mark, wall, cpu);
    }
}

static enum status run_all(struct bench *b, int n_threads, uint64_t set_bytes, struct error *e)
{
    const struct backend *cpu = backend_cpu();
    struct device_options options = {.precision = PRECISION_BF16, .n_threads = n_threads};
    try(cpu->open(&b->d, &options, e));
    struct scratch_shape shape = {.max_rows = ROWS_MAX, .hidden = K};
    uint64_t scratch = device_sizes(cpu->kind)->scratch(&shape);
    uint64_t x = (uint64_t) ROWS_MAX * K * sizeof(float);
    uint64_t out = (uint64_t) ROWS_MAX * N * sizeof(float);
    b->set_bytes = set_bytes;
    struct carve c = {.size = set_bytes + scratch + x + out + 4 * CARVE_ALIGN};
    void *base;
    try(cpu->arena(b->d, c.size, &base, e));
    c.base = base;
    b->set = carve_take(&c, set_bytes);
    cpu->set_scratch(b->d, &shape, carve_take(&c, scratch));
    b->x = carve_take(&c, x);
    b->out = carve_take(&c, out);
    for (int i = 0; i < ROWS_MAX * K; i++) b->x[i] = (float) (i % 1009) / 504.5f - 1;
    b->probe = probe_for(b->d->isa);
    printf("%s, %d threads, bf16 precision; (%d, %d) weights, %.0f MB of them, cold; the mark is a "
           "plain read,\nor %s between registers\n", isa_name(b->d->isa), team_threads(b->d->team),
           N, K, (double) set_bytes * 1e-6, b->probe->arithmetic);
    printf("%-24s %9s %9s %-8s %6s %12s\n", "case", "rate", "mark", "unit", "ratio",
           "by CPU time");
    if (b->csv != NULL) fprintf(b->csv, "case,n,k,rows,unit,rate,mark,ratio,cpu_ratio\n");
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        if (i == 0 || CASES[i].dtype != CASES[i - 1].dtype) set_matrices(b, CASES[i].dtype);
        measure(b, &CASES[i]);
    }
    return OK;
}

int bench_kernels(int argc, char **argv)
{
    int64_t threads = 0, set_bytes = 544 * MIB;
    const char *csv = NULL;
    struct option_spec specs[] = {
        {.name = "threads", .kind = OPTION_INT, .value = &threads, .argument = "N",
         .help = "Threads of the device; 0: one a core.", .least = 0, .most = DEVICE_THREADS_MAX},
        {.name = "set", .kind = OPTION_BYTES, .value = &set_bytes, .argument = "BYTES",
         .help = "Memory of the weights: far more than the caches."},
        CSV_FLAG_ROW(csv),
    };
    struct options o = {.program = "penstock bench kernels",
                        .usage = "[OPTIONS]",
                        .about = "Times matrix products of the CPU, beside what it can do at most.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    enum status status = options_parse(&o, argc, argv, &e);
    if (status == OK && !o.help && set_bytes < 32 * MIB) {
        status = error_set(&e, ERR_INPUT, "bad_usage", "--set: at least one matrix, 32 MiB");
    }
    if (status != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    struct bench *b = calloc(1, sizeof *b);
    uint8_t *rows = malloc((size_t) PACK_ROWS * K * sizeof(float));
    if (b == NULL || rows == NULL) {
        status = error_set(&e, ERR_NOMEM, NULL, "no memory for the rows of a matrix");
    } else {
        b->rows = rows;
        status = csv_open(&b->csv, csv, &e);
        if (status == OK) status = run_all(b, (int) threads, (uint64_t) set_bytes, &e);
        status = csv_close(b->csv, csv, status, &e);
        backend_cpu()->close(&b->d);
    }
    free(rows);
    free(b);
    if (status == OK) return EXIT_DONE;
    return outcome_failed(o.program, &e, false);
}
