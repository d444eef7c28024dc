// Host bytes to the device and back through the pinned staging: two halves, so that the host fills
// one while the device reads the other. Activations have streams of their own beside the ops'.
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
        device_note(d, device_wait_event(d, d->copied[d->half]), "upload");
    }
    char *at = d->staging + (size_t) d->half * CUDA_STAGING_HALF + d->filled;
    d->filled += (n + PIECE_ALIGN - 1) / PIECE_ALIGN * PIECE_ALIGN;
    return at;
}

void cuda_upload(struct device *d, void *to, const void *from, size_t n)
{
    d->barred = true;
    for (size_t done = 0; done < n;) {
        size_t piece = smaller(n - done, CUDA_STAGING_HALF);
        char *staged = staging_take(d, piece);
        memcpy(staged, (const char *) from + done, piece);
        device_note(d, cudaMemcpyAsync((char *) to + done, staged, piece, cudaMemcpyHostToDevice,
                                       d->stream), "upload");
        done += piece;
    }
}

// Apart from the steps the staging is theirs.
static void download_apart(struct device *d, void *to, const void *from, size_t n)
{
    device_note(d, cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToHost, d->stream), "download");
    device_note(d, device_wait(d), "download");
}

void cuda_download(struct device *d, void *to, const void *from, size_t n)
{
    d->barred = true;
    if (d->apart) {
        download_apart(d, to, from, n);
        return;
    }
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

// Of the wire buffer: a way in, a way out, each with two halves.
static __nv_bfloat16 *wire_half(struct device *d, struct wire_way *w)
{
    size_t at = (size_t) (w == &d->in ? 0 : 2) + (size_t) w->half;
    return (__nv_bfloat16 *) (d->scratch.wire + at * d->scratch.wire_bytes);
}

// Values that a half holds.
static size_t wire_most(const struct device *d) { return d->scratch.wire_bytes / 2; }

static void record(struct device *d, cudaEvent_t event, cudaStream_t stream, const char *op)
{
    device_note(d, cudaEventRecord(event, stream), op);
    d->barred = true;
}

static void wait_for(struct device *d, cudaStream_t stream, cudaEvent_t event, const char *op)
{
    device_note(d, cudaStreamWaitEvent(stream, event, 0), op);
    d->barred = true;
}

// Through a staging of its own, which waits for copies and not for ops.
static void stage_wire(struct device *d, char *there, const char *wire, size_t n)
{
    for (size_t done = 0; done < n; done += CUDA_WIRE_STAGED) {
        size_t piece = smaller(n - done, CUDA_WIRE_STAGED);
        int half = d->wire_half ^= 1;
        char *staged = d->staging + 2 * (size_t) CUDA_STAGING_HALF +
                       (size_t) half * CUDA_WIRE_STAGED;
        device_note(d, device_wait_event(d, d->wire_copied[half]), "import_act");
        memcpy(staged, wire + done, piece);
        device_note(d, cudaMemcpyAsync(there + done, staged, piece, cudaMemcpyHostToDevice,
                                       d->in.stream), "import_act");
        record(d, d->wire_copied[half], d->in.stream, "import_act");
    }
}

// The next half's values come as soon as its last ones have been widened.
static void import_half(struct device *d, const char *wire, size_t n)
{
    struct wire_way *w = &d->in;
    w->half ^= 1;
    wait_for(d, w->stream, w->emptied[w->half], "import_act");
    stage_wire(d, (char *) wire_half(d, w), wire, 2 * n);
    record(d, w->filled[w->half], w->stream, "import_act");
}

static void widen_half(struct device *d, int half, float *x, size_t n)
{
    struct wire_way *w = &d->in;
    const __nv_bfloat16 *there = (__nv_bfloat16 *) (d->scratch.wire +
                                                    (size_t) half * d->scratch.wire_bytes);
    wait_for(d, d->stream, w->filled[half], "import_act");
    widen<<<blocks_of(n), ELEMENT_THREADS, 0, d->stream>>>(x, there, n);
    device_launched(d, "import_act");
    record(d, w->emptied[half], d->stream, "import_act");
}

// Both halves at most: a third part would wait for ops that are not given yet.
void cuda_import_ahead(struct device *d, const void *wire, size_t n)
{
    size_t most = wire_most(d);
    check(d->ahead_n == 0);
    if (d->precision == PRECISION_F32 || n == 0 || n > 2 * most) return;
    for (size_t done = 0; done < n; done += most) {
        import_half(d, (const char *) wire + 2 * done, smaller(n - done, most));
    }
    d->ahead = wire;
    d->ahead_n = n;
}

void cuda_import_act(struct device *d, float *x, const void *wire, size_t n)
{
    if (d->precision == PRECISION_F32) {
        cuda_upload(d, x, wire, n * sizeof *x);
        return;
    }
    size_t most = wire_most(d);
    bool ahead = d->ahead_n > 0;
    check(!ahead || (d->ahead == wire && d->ahead_n == n), "the import that came ahead");
    for (size_t done = 0; done < n; done += most) {
        size_t piece = smaller(n - done, most);
        if (!ahead) import_half(d, (const char *) wire + 2 * done, piece);
        // Two that came ahead: the second one was last.
        int half = ahead && done == 0 && n > most ? d->in.half ^ 1 : d->in.half;
        widen_half(d, half, x + done, piece);
    }
    d->ahead_n = 0;
}

static void export_piece(struct device *d, void *wire, const float *x, size_t n, bool pinned)
{
    struct wire_way *w = &d->out;
    w->half ^= 1;
    __nv_bfloat16 *there = wire_half(d, w);
    wait_for(d, d->stream, w->emptied[w->half], "export_act");
    narrow<<<blocks_of(n), ELEMENT_THREADS, 0, d->stream>>>(there, x, n);
    device_launched(d, "export_act");
    if (!pinned) {
        cuda_download(d, wire, there, 2 * n);
        return;
    }
    record(d, w->filled[w->half], d->stream, "export_act");
    wait_for(d, w->stream, w->filled[w->half], "export_act");
    device_note(d, cudaMemcpyAsync(wire, there, 2 * n, cudaMemcpyDeviceToHost, w->stream),
                "export_act");
    record(d, w->emptied[w->half], w->stream, "export_act");
}

void cuda_export_act(struct device *d, void *wire, const float *x, size_t n)
{
    if (d->precision == PRECISION_F32) {
        cuda_download(d, wire, x, n * sizeof *x);
        return;
    }
    const char *to = (const char *) wire;
    bool pinned = d->pinned != NULL && to >= d->pinned &&
                  to + 2 * n <= d->pinned + d->pinned_bytes;
    size_t most = wire_most(d);
    for (size_t done = 0; done < n; done += most) {
        size_t piece = smaller(n - done, most);
        export_piece(d, (char *) wire + 2 * done, x + done, piece, pinned);
    }
}
