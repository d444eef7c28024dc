// Events as places on a GPU's stream, copies within its memory, and what its driver shows.
#include "kernels/cuda/device.cuh"

extern "C" {
#include "kernels/measures.h"
}

#include <stdlib.h>

struct marks {
    struct device *d;
    cudaEvent_t *events; // (n)
    int n;
};

static void marks_destroy(struct marks **marks)
{
    struct marks *m = *marks;
    if (m == NULL) return;
    for (int i = 0; i < m->n; i++) cudaEventDestroy(m->events[i]);
    free(m->events);
    free(m);
    *marks = NULL;
}

static enum status marks_create(struct marks **marks, struct device *d, int n, struct error *e)
{
    struct marks *m = *marks = (struct marks *) calloc(1, sizeof *m);
    if (m != NULL) m->events = (cudaEvent_t *) malloc((size_t) n * sizeof *m->events);
    if (m == NULL || m->events == NULL) {
        free(m);
        *marks = NULL;
        return error_set(e, ERR_NOMEM, NULL, "no memory for %d marks", n);
    }
    m->d = d;
    for (; m->n < n; m->n++) {
        cudaError_t error = cudaEventCreate(&m->events[m->n]);
        if (error == cudaSuccess) error = cudaEventRecord(m->events[m->n], d->stream);
        if (error == cudaSuccess) continue;
        marks_destroy(marks);
        return error_set(e, ERR_IO, "device_fault", "mark %d of %d cannot be made: %s", m->n, n,
                         cudaGetErrorString(error));
    }
    return OK;
}

static void mark(struct marks *m, int i)
{
    device_note(m->d, cudaEventRecord(m->events[i], m->d->stream), "a mark");
    m->d->barred = true;
}

static double between(struct marks *m, int from, int to)
{
    float ms = 0;
    device_note(m->d, cudaEventElapsedTime(&ms, m->events[from], m->events[to]), "a mark");
    return (double) ms * 1e-3;
}

static __global__ void wait_ns(uint64_t ns)
{
    uint64_t begun, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begun));
    do {
        __nanosleep(1000);
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - begun < ns);
}

static void hold(struct device *d, double seconds)
{
    wait_ns<<<1, 1, 0, d->stream>>>((uint64_t) (seconds * 1e9));
    device_launched(d, "hold");
}

static void copy(struct device *d, void *to, const void *from, size_t n)
{
    device_note(d, cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToDevice, d->stream), "copy");
    d->barred = true;
}

static enum status memory(struct device *d, uint64_t *free_bytes, uint64_t *total, struct error *e)
{
    size_t has = 0, of = 0;
    cudaError_t error = cudaMemGetInfo(&has, &of);
    *free_bytes = has;
    *total = of;
    if (error == cudaSuccess) return OK;
    return error_set(e, ERR_IO, "device_fault", "the memory of GPU %d cannot be read: %s",
                     d->ordinal, cudaGetErrorString(error));
}

// The table's order is that of the struct: C++17 has no designated initialisers.
static const struct measures cuda = {marks_create, marks_destroy, mark, between,
                                     hold,         copy,          memory};

extern "C" const struct measures *measures_cuda(void) { return &cuda; }
