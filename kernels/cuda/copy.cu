// Host bytes to the device and back, always through the pinned staging: two halves, so that the
// host fills one while the device reads the other.
#include "kernels/cuda/device.cuh"

#include "kernels/cuda/staging.cuh"

#include <cuda_bf16.h>

enum { PIECE_ALIGN = 16, ELEMENT_THREADS = 256 };

char *staging_take(struct device *d, size_t n)
{
    if (d->filled + n > CUDA_STAGING_HALF) {
        device_note(d, cudaEventRecord(d->copied[d->half], d->stream), "upload");
        d->half ^= 1;
        d->filled = 0;
        device_note(d, cudaEventSynchronize(d->copied[d->half]), "upload");
    }
    char *at = d->staging + (size_t) d->half * CUDA_STAGING_HALF + d->filled;
    d->filled += (n + PIECE_ALIGN - 1) / PIECE_ALIGN * PIECE_ALIGN;
    return at;
}

void cuda_upload(struct device *d, void *to, const void *from, size_t n)
{
    for (size_t done = 0; done < n;) {
        size_t piece = smaller(n - done, CUDA_STAGING_HALF);
        char *staged = staging_take(d, piece);
        memcpy(staged, (const char *) from + done, piece);
        device_note(d, cudaMemcpyAsync((char *) to + done, staged, piece, cudaMemcpyHostToDevice,
                                       d->stream), "upload");
        done += piece;
    }
}

void cuda_download(struct device *d, void *to, const void *from, size_t n)
{
    for (size_t done = 0; done < n;) {
        size_t piece = smaller(n - done, CUDA_STAGING_HALF);
        char *staged = staging_take(d, piece);
        device_note(d, cudaMemcpyAsync(staged, (const char *) from + done, piece,
                                       cudaMemcpyDeviceToHost, d->stream), "download");
        device_note(d, device_wait(d), "download");
        d->filled = 0;
        memcpy((char *) to + done, staged, piece);
        done += piece;
    }
}

// --- the residual stream's form between stages

static __global__ void widen(float *x, const __nv_bfloat16 *wire, size_t n)
{
    size_t i = (size_t) blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (i < n) x[i] = __bfloat162float(wire[i]);
}

static __global__ void narrow(__nv_bfloat16 *wire, const float *x, size_t n)
{
    size_t i = (size_t) blockIdx.x * ELEMENT_THREADS + threadIdx.x;
    if (i < n) wire[i] = __float2bfloat16_rn(x[i]);
}

static unsigned blocks_of(size_t n) { return (unsigned) ceil_div(n, ELEMENT_THREADS); }

void cuda_import_act(struct device *d, float *x, const void *wire, size_t n)
{
    if (d->precision == PRECISION_F32) {
        cuda_upload(d, x, wire, n * sizeof *x);
        return;
    }
    size_t most = CUDA_STAGING_HALF / sizeof(__nv_bfloat16);
    for (size_t done = 0; done < n; done += most) {
        size_t piece = smaller(n - done, most);
        __nv_bfloat16 *halves = (__nv_bfloat16 *) d->scratch.wire;
        cuda_upload(d, halves, (const char *) wire + 2 * done, 2 * piece);
        widen<<<blocks_of(piece), ELEMENT_THREADS, 0, d->stream>>>(x + done, halves, piece);
        device_launched(d, "import_act");
    }
}

void cuda_export_act(struct device *d, void *wire, const float *x, size_t n)
{
    if (d->precision == PRECISION_F32) {
        cuda_download(d, wire, x, n * sizeof *x);
        return;
    }
    size_t most = CUDA_STAGING_HALF / sizeof(__nv_bfloat16);
    for (size_t done = 0; done < n; done += most) {
        size_t piece = smaller(n - done, most);
        __nv_bfloat16 *halves = (__nv_bfloat16 *) d->scratch.wire;
        narrow<<<blocks_of(piece), ELEMENT_THREADS, 0, d->stream>>>(halves, x + done, piece);
        device_launched(d, "export_act");
        cuda_download(d, (char *) wire + 2 * done, halves, 2 * piece);
    }
}
