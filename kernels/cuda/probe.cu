#include "kernels/cuda/device.cuh"

#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/probe.h"

enum { COPIES = 20, MMA_LOOPS = 4096, MMA_CHAINS = 8, MMA_REPEATS = 5 };

struct timer {
    cudaEvent_t begin, end;
};

static void timer_start(struct device *d, struct timer *t)
{
    device_note(d, cudaEventCreate(&t->begin), "a probe");
    device_note(d, cudaEventCreate(&t->end), "a probe");
    device_note(d, cudaEventRecord(t->begin, d->stream), "a probe");
}

static double timer_stop(struct device *d, struct timer *t)
{
    float ms = 0;
    device_note(d, cudaEventRecord(t->end, d->stream), "a probe");
    device_note(d, cudaEventSynchronize(t->end), "a probe");
    device_note(d, cudaEventElapsedTime(&ms, t->begin, t->end), "a probe");
    cudaEventDestroy(t->begin);
    cudaEventDestroy(t->end);
    return (double) ms * 1e-3;
}

double cuda_probe_copy(struct device *d, uint64_t bytes)
{
    struct timer t;
    char *base = (char *) d->arena;
    check(2 * bytes <= d->arena_bytes, "the arena is smaller than the copy");
    for (int i = 0; i <= COPIES; i++) {
        if (i == 1) timer_start(d, &t); // the first warms up
        device_note(d, cudaMemcpyAsync(base + bytes, base, bytes, cudaMemcpyDeviceToDevice,
                                       d->stream), "a probe");
    }
    return 2.0 * (double) bytes * COPIES / timer_stop(d, &t);
}

static __global__ void multiply(float *out, uint32_t some)
{
    float c[MMA_CHAINS][4] = {};
    uint32_t a = some + threadIdx.x, b = some;
    for (int i = 0; i < MMA_LOOPS; i++) {
#pragma unroll
        for (int j = 0; j < MMA_CHAINS; j++) mma_bf16(c[j], a, b, a, b, b, a);
    }
    float sum = 0;
    for (int j = 0; j < MMA_CHAINS; j++) sum += c[j][0] + c[j][1] + c[j][2] + c[j][3];
    if (sum == 1.0f) out[threadIdx.x] = sum; // never, but the compiler does not know
}

double cuda_probe_mma(struct device *d)
{
    struct timer t;
    int blocks = d->n_sm * 2;
    for (int i = 0; i <= MMA_REPEATS; i++) {
        if (i == 1) timer_start(d, &t);
        multiply<<<blocks, 256, 0, d->stream>>>((float *) d->arena, 0x3f80u);
    }
    device_launched(d, "a probe");
    double each = 2.0 * 16 * 8 * 16;
    double all = each * MMA_LOOPS * MMA_CHAINS * (256 / WARP) * blocks * MMA_REPEATS;
    return all / timer_stop(d, &t);
}

void cuda_probe_hopper(struct device *d, bool on) { d->hopper = on && d->has_hopper; }

void cuda_probe_quantise(struct device *d, const float *x, int k, int n_rows)
{
    struct gemm_rows rows = {};
    rows.x = x;
    rows.x_stride = (size_t) k;
    rows.n_rows = n_rows;
    rows.k = k;
    size_t pitch = (size_t) mat_blocks(0, k) * SCALE_BLOCK;
    check(fp8_bytes(pitch, n_rows) <= d->scratch.input_bytes);
    struct fp8_rows to = fp8_lay(d->scratch.input, pitch, n_rows);
    fp8_quantise(d, &rows, &to);
}

double cuda_probe_graph(struct device *d, int bucket, int n)
{
    struct timer t;
    cuda_graph_launch(d, bucket);
    timer_start(d, &t);
    for (int i = 0; i < n; i++) cuda_graph_launch(d, bucket);
    return timer_stop(d, &t) / n;
}
