// gpu_check PARTS FIXTURES MODEL: checks the CUDA backend on the GPU at hand and prints a table.
// PARTS: letters of o (ops), a (attention, and its speed), g (golden files), b (few of them, for
// slow tools), r (steps, recorded and not), c (collectives and ranks on the GPUs there are), w
// (golden files by ranks with a GPU each, over every way of their sums), m (times of sums between
// several of them), h, v, i (collectives, golden files, times, as if GPUs could not use each
// other's memory), t (sampler), s (speed), f (full size: rehearsals), l (of those the layers
// that have bars), p (rehearsals of ranks that sum with each other). Exit status 0: all bars are
// met, 77: no device.
#include "tests/gpu/check.h"
#include "tests/gpu/ranks.h"

#include <stdio.h>
#include <string.h>

static void count(struct result *r, bool passed)
{
    *(passed ? &r->passed : &r->failed) += 1;
}

void result_error(struct result *r, const char *name, double off, double bar)
{
    bool passed = off <= bar; // not if it is no number
    printf("%-6s %-64s %10.2e  (<= %.0e)\n", passed ? "ok" : "MISSED", name, off, bar);
    fflush(stdout);
    count(r, passed);
}

void result_figure(struct result *r, const char *name, double figure, const char *unit, double bar)
{
    bool passed = figure >= bar;
    printf("%-6s %-64s %10.3f %s", passed ? "ok" : "MISSED", name, figure, unit);
    if (bar > 0) printf("  (>= %g)", bar);
    printf("\n");
    fflush(stdout);
    count(r, passed);
}

void result_most(struct result *r, const char *name, double figure, const char *unit, double bar)
{
    bool passed = bar == 0 || figure <= bar;
    printf("%-6s %-64s %10.3f %s", passed ? "ok" : "MISSED", name, figure, unit);
    if (bar > 0) printf("  (<= %g)", bar);
    printf("\n");
    fflush(stdout);
    count(r, passed);
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: gpu_check PARTS FIXTURES MODEL\n");
        return 2;
    }
    const struct backend *b = backend_cuda();
    struct device *d = NULL;
    struct error e = {0};
    struct device_options options = {.precision = PRECISION_BF16};
    if (b == NULL || b->open(&d, &options, &e) != OK) {
        printf("skipped: %s\n", b == NULL ? "built without CUDA" : e.text);
        return 77;
    }
    b->close(&d);
    struct result r = {0};
    if (strchr(argv[1], 'o') != NULL) {
        printf("--- ops, f32\n");
        check_ops(&r, PRECISION_F32);
        printf("--- ops, bf16\n");
        check_ops(&r, PRECISION_BF16);
    }
    if (strchr(argv[1], 'a') != NULL) {
        printf("--- attention\n");
        check_attention(&r, PRECISION_F32);
        check_attention(&r, PRECISION_BF16);
        check_attention_speed(&r);
    }
    if (strchr(argv[1], 'g') != NULL) check_golden(&r, argv[2], argv[3], false);
    if (strchr(argv[1], 'b') != NULL) check_golden(&r, argv[2], argv[3], true);
    if (strchr(argv[1], 'r') != NULL) check_steps(&r, argv[2]);
    int n_gpus = ranks_gpus();
    if (strchr(argv[1], 'c') != NULL) {
        check_ranks(&r, n_gpus);
        for (int tp = 2; tp <= 4; tp *= 2) {
            check_golden_ranks(&r, argv[2], argv[3], tp, n_gpus < tp ? n_gpus : tp);
        }
    }
    if (strchr(argv[1], 'w') != NULL) check_golden_ways(&r, argv[2], argv[3], n_gpus, false);
    if (strchr(argv[1], 'm') != NULL) check_ranks_speed(&r, n_gpus, false);
    if (strchr(argv[1], 'h') != NULL) check_ranks_staged(&r, n_gpus);
    if (strchr(argv[1], 'v') != NULL) check_golden_ways(&r, argv[2], argv[3], n_gpus, true);
    if (strchr(argv[1], 'i') != NULL) check_ranks_speed(&r, n_gpus, true);
    if (strchr(argv[1], 'p') != NULL) check_rehearse_ranks(&r, argv[2], n_gpus);
    if (strchr(argv[1], 't') != NULL) check_sampler(&r);
    if (strchr(argv[1], 's') != NULL) check_speed(&r);
    if (strchr(argv[1], 'f') != NULL) check_rehearse(&r, argv[2], false);
    if (strchr(argv[1], 'l') != NULL) check_rehearse(&r, argv[2], true);
    printf("%d passed, %d failed\n", r.passed, r.failed);
    return r.failed == 0 ? 0 : 1;
}
