#include "tests/gpu/speed.h"

#include "kernels/cuda/probe.h"

#include <stdio.h>
#include <stdlib.h>

enum { REPEATS = 20 };

static struct side *gpu;
static struct result *results;
static double copy_rate, mma_rate; // bytes/s, flop/s
static int bucket;                 // of the next graph: none is recorded twice

void speed_open(struct side *side, struct result *r)
{
    gpu = side;
    results = r;
    bucket = 0;
    copy_rate = cuda_probe_copy(gpu->d, 4ull << 30);
    mma_rate = cuda_probe_mma(gpu->d);
    result_figure(r, "device copy, read and written", copy_rate * 1e-9, "GB/s", 0);
    result_figure(r, "mma.sync between registers", mma_rate * 1e-12, "TFLOP/s", 0);
}

void speed_begin(void) { check(gpu->b->graph_begin(gpu->d, ++bucket)); }

double speed_end(void)
{
    gpu->b->graph_end(gpu->d, bucket);
    double s = cuda_probe_graph(gpu->d, bucket, REPEATS);
    side_sync(gpu);
    return s;
}

double speed_again(void)
{
    double s = cuda_probe_graph(gpu->d, bucket, REPEATS);
    side_sync(gpu);
    return s;
}

void line_bytes(const char *name, double seconds, double bytes, double bar)
{
    char line[160];
    snprintf(line, sizeof line, "%s: %.1f us, %.0f GB/s, of copy", name, seconds * 1e6,
             bytes / seconds * 1e-9);
    result_figure(results, line, bytes / seconds / copy_rate, "", bar);
}

void line_flops(const char *name, double seconds, double flops, double bar)
{
    char line[160];
    snprintf(line, sizeof line, "%s: %.1f us, %.0f TFLOP/s, of mma.sync", name, seconds * 1e6,
             flops / seconds * 1e-12);
    result_figure(results, line, flops / seconds / mma_rate, "", bar);
}

void line_tflops(const char *name, double seconds, double flops, double bar)
{
    char line[160];
    snprintf(line, sizeof line, "%s: %.1f us, %.2f of mma.sync, TFLOP/s", name, seconds * 1e6,
             flops / seconds / mma_rate);
    result_figure(results, line, flops / seconds * 1e-12, "", bar);
}

float *put_noise(size_t n, float scale)
{
    float *x = noises(n, scale), *there = side_put(gpu, x, n * sizeof *x);
    side_sync(gpu);
    free(x);
    return there;
}
