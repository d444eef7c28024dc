// A device's life, its memory and its recorded steps.
#include "kernels/cuda/device.cuh"

#include "kernels/cuda/usage.cuh"

extern "C" {
#include "common/clock.h"
}

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const int64_t BUSY_NS = 100000; // most waits are over by then

void device_note(struct device *d, cudaError_t error, const char *op)
{
    if (error == cudaSuccess || d->fault != cudaSuccess) return;
    d->fault = error;
    d->fault_op = op;
}

void device_allow(struct device *d, const void *kernel, int bytes, const char *op)
{
    int i = 0;
    while (i < d->n_allowed && d->allowed[i].kernel != kernel) i++;
    if (i < d->n_allowed && d->allowed[i].bytes >= bytes) return;
    check(i < ALLOWED_MAX, "more than %d kernels", ALLOWED_MAX);
    device_note(d, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                op);
    d->allowed[i].kernel = kernel;
    d->allowed[i].bytes = bytes;
    if (i == d->n_allowed) d->n_allowed++;
}

// Whether a wait that lasts so long goes on: the watch may end it, and is looked at after a while.
static bool goes_on(struct device *d, int64_t waited_ns)
{
    if (d->watch == NULL || waited_ns < BUSY_NS) return true;
    enum status status = d->watch(d->watch_arg, waited_ns / 1000000);
    if (status != OK && d->ended_by == OK) d->ended_by = status;
    return status == OK;
}

// A watched wait asks again and again; after a while it lets other threads run between.
static cudaError_t wait_watched(struct device *d, cudaEvent_t event)
{
    int64_t begun_ns = clock_ns();
    for (;;) {
        cudaError_t error = event != NULL ? cudaEventQuery(event) : cudaStreamQuery(d->stream);
        if (error != cudaErrorNotReady) return error;
        int64_t waited_ns = clock_ns() - begun_ns;
        if (!goes_on(d, waited_ns)) return cudaSuccess;
        if (waited_ns >= BUSY_NS) sched_yield();
    }
}

cudaError_t device_wait_event(struct device *d, cudaEvent_t event)
{
    return d->watch == NULL ? cudaEventSynchronize(event) : wait_watched(d, event);
}

cudaError_t device_wait(struct device *d)
{
    return d->watch == NULL ? cudaStreamSynchronize(d->stream) : wait_watched(d, NULL);
}

static enum status no_device(struct error *e, cudaError_t error, int wanted, int count)
{
    if (error == cudaSuccess && count > 0) {
        return error_set(e, ERR_UNAVAILABLE, "no_device",
                         "GPU %d is not there: this machine has %d (counted from 0)", wanted,
                         count);
    }
    const char *why = error == cudaSuccess || error == cudaErrorNoDevice ? "the driver shows none"
                      : error == cudaErrorInsufficientDriver
                          ? "there is no NVIDIA driver, or it is too old for this program"
                          : cudaGetErrorString(error);
    return error_set(e, ERR_UNAVAILABLE, "no_device",
                     "no CUDA device: %s; see that nvidia-smi lists the GPU, or take the CPU", why);
}

static enum status fault_of(struct error *e, cudaError_t error, const char *what)
{
    return error_set(e, error == cudaErrorMemoryAllocation ? ERR_NOMEM : ERR_IO, "device_fault",
                     "%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

static cudaError_t create_event(struct device *d, cudaEvent_t *event)
{
    cudaError_t error = cudaEventCreateWithFlags(event, cudaEventDisableTiming);
    return error != cudaSuccess ? error : cudaEventRecord(*event, d->stream);
}

static cudaError_t create_way(struct device *d, struct wire_way *w)
{
    cudaError_t error = cudaStreamCreateWithFlags(&w->stream, cudaStreamNonBlocking);
    for (int i = 0; i < 2 && error == cudaSuccess; i++) {
        error = create_event(d, &w->filled[i]);
        if (error == cudaSuccess) error = create_event(d, &w->emptied[i]);
    }
    return error;
}

static void destroy_way(struct wire_way *w)
{
    for (int i = 0; i < 2; i++) {
        if (w->filled[i] != NULL) cudaEventDestroy(w->filled[i]);
        if (w->emptied[i] != NULL) cudaEventDestroy(w->emptied[i]);
    }
    if (w->stream != NULL) cudaStreamDestroy(w->stream);
}

// What is apart is short and waited for: its kernels come before the next ones of a step.
static cudaError_t create_beside(struct device *d)
{
    int least, first;
    cudaError_t error = cudaDeviceGetStreamPriorityRange(&least, &first);
    if (error != cudaSuccess) return error;
    return cudaStreamCreateWithPriority(&d->beside, cudaStreamNonBlocking, first);
}

static cudaError_t create_parts(struct device *d)
{
    cudaError_t error = cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking);
    if (error == cudaSuccess) {
        error = cudaHostAlloc((void **) &d->staging, device_sizes(DEVICE_CUDA)->pinned,
                              cudaHostAllocDefault);
    }
    for (int i = 0; i < 2 && error == cudaSuccess; i++) {
        error = create_event(d, &d->copied[i]);
        if (error == cudaSuccess) error = create_event(d, &d->wire_copied[i]);
    }
    if (error == cudaSuccess) error = create_event(d, &d->computed);
    if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&d->side, cudaStreamNonBlocking);
    if (error == cudaSuccess) error = create_beside(d);
    if (error == cudaSuccess) error = create_event(d, &d->begun);
    if (error == cudaSuccess) error = create_event(d, &d->met);
    for (int i = 0; i < DEVICE_STEPS && error == cudaSuccess; i++) {
        error = create_event(d, &d->ended[i]);
    }
    if (error == cudaSuccess) error = create_way(d, &d->in);
    if (error == cudaSuccess) error = create_way(d, &d->out);
    size_t free_bytes = 0, total = 0;
    if (error == cudaSuccess) error = cudaMemGetInfo(&free_bytes, &total);
    if (d->memory_bytes == 0) d->memory_bytes = free_bytes;
    return error;
}

// All kernels are loaded when the device is opened: one that was loaded at its first launch would
// take memory of the device then.
static void load_eagerly(void) { setenv("CUDA_MODULE_LOADING", "EAGER", 0); }

static cudaError_t count_devices(int *count)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load_eagerly);
    *count = 0;
    cudaError_t error = cudaGetDeviceCount(count); // leaves the count unset where it fails
    if (error != cudaSuccess) *count = 0;
    return error;
}

enum status cuda_memory(int n, uint64_t *bytes, struct error *e)
{
    int count;
    cudaError_t error = count_devices(&count);
    if (n > count) {
        cudaGetLastError(); // this one is reported
        return no_device(e, error, n - 1, count);
    }
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < n; i++) {
        size_t free_bytes = 0, total = 0;
        uint64_t context = 0;
        error = usage_context(i, &context);
        if (error == cudaSuccess) error = cudaMemGetInfo(&free_bytes, &total);
        if (error != cudaSuccess) return fault_of(e, error, "the GPU's memory cannot be read");
        if (free_bytes + context < least) least = free_bytes + context;
    }
    *bytes = least;
    return OK;
}

enum status cuda_open(struct device **device, const struct device_options *options,
                      struct error *e)
{
    *device = NULL;
    int count;
    cudaError_t error = count_devices(&count);
    if (options->index < 0 || options->index >= count) {
        cudaGetLastError(); // this one is reported
        return no_device(e, error, options->index, count);
    }
    struct device *d = (struct device *) calloc(1, sizeof *d);
    if (d == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a device");
    d->precision = options->precision;
    d->ordinal = options->index;
    d->memory_bytes = options->memory_bytes;
    cudaDeviceProp properties;
    uint64_t context = 0;
    error = usage_context(d->ordinal, &context);
    if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, d->ordinal);
    if (error == cudaSuccess && properties.major * 10 + properties.minor < 89) {
        enum status status = error_set(e, ERR_UNAVAILABLE, "no_device",
                                       "GPU %d (%s) has compute capability %d.%d; 8.9 is needed",
                                       d->ordinal, properties.name, properties.major,
                                       properties.minor);
        cuda_close(&d);
        return status;
    }
    d->n_sm = properties.multiProcessorCount;
    d->has_hopper = PENSTOCK_HAS_SM90A && properties.major == 9 && properties.minor == 0;
    d->hopper = d->has_hopper;
    d->block_bytes = (int) properties.sharedMemPerBlockOptin;
    usage_join(d);
    if (error == cudaSuccess) error = create_parts(d);
    if (error != cudaSuccess) {
        cuda_close(&d);
        return fault_of(e, error, "the GPU cannot be opened");
    }
    *device = d;
    return OK;
}

void device_forget(struct device *d)
{
    for (int i = 0; i < d->n_graphs; i++) cudaGraphExecDestroy(d->graphs[i].exec);
    d->n_graphs = 0;
}

void cuda_close(struct device **device)
{
    struct device *d = *device;
    if (d == NULL) return;
    const cudaStream_t streams[] = {d->in.stream, d->side, d->beside, d->stream, d->out.stream};
    for (size_t i = 0; i < sizeof streams / sizeof *streams; i++) {
        if (streams[i] != NULL) cudaStreamSynchronize(streams[i]);
    }
    device_forget(d);
    for (int i = 0; i < 2; i++) {
        if (d->copied[i] != NULL) cudaEventDestroy(d->copied[i]);
        if (d->wire_copied[i] != NULL) cudaEventDestroy(d->wire_copied[i]);
    }
    for (int i = 0; i < DEVICE_STEPS; i++) {
        if (d->ended[i] != NULL) cudaEventDestroy(d->ended[i]);
    }
    if (d->computed != NULL) cudaEventDestroy(d->computed);
    if (d->begun != NULL) cudaEventDestroy(d->begun);
    if (d->met != NULL) cudaEventDestroy(d->met);
    destroy_way(&d->in);
    destroy_way(&d->out);
    usage_leave(d);
    if (d->pinned != NULL) cudaHostUnregister(d->pinned);
    if (d->staging != NULL) cudaFreeHost(d->staging);
    if (d->host != NULL) cudaFreeHost(d->host);
    if (d->arena != NULL) cudaFree(d->arena);
    if (d->beside != NULL) cudaStreamDestroy(d->beside);
    if (d->side != NULL) cudaStreamDestroy(d->side);
    if (d->stream != NULL) cudaStreamDestroy(d->stream);
    cudaGetLastError();
    free(d);
    *device = NULL;
}

enum status cuda_arena(struct device *d, uint64_t bytes, void **base, struct error *e)
{
    check(d->arena == NULL, "a device has one arena");
    if (bytes > d->memory_bytes) {
        return error_set(e, ERR_NOMEM, "does_not_fit",
                         "the device needs %.2f GiB and may have %.2f GiB",
                         (double) bytes / (double) GIB, (double) d->memory_bytes / (double) GIB);
    }
    cudaError_t error = cudaMalloc(&d->arena, bytes > 0 ? bytes : 1);
    if (error != cudaSuccess) {
        d->arena = NULL;
        cudaGetLastError();
        return error_set(e, ERR_NOMEM, "does_not_fit", "cannot take %.2f GiB of the GPU: %s",
                         (double) bytes / (double) GIB, cudaGetErrorString(error));
    }
    d->arena_bytes = bytes;
    usage_arena(d);
    error = cudaMemsetAsync(d->arena, 0, bytes > 0 ? bytes : 1, d->stream);
    if (error != cudaSuccess) return fault_of(e, error, "the GPU's memory cannot be cleared");
    *base = d->arena;
    return cuda_sync(d, e);
}

enum status cuda_host_memory(struct device *d, uint64_t bytes, void **base, struct error *e)
{
    check(d->host == NULL, "a device has one piece of host memory");
    cudaError_t error = cudaHostAlloc(&d->host, bytes > 0 ? bytes : 1, cudaHostAllocDefault);
    if (error != cudaSuccess) {
        d->host = NULL;
        cudaGetLastError();
        return error_set(e, ERR_NOMEM, "does_not_fit", "cannot pin %.2f GiB of host memory: %s",
                         (double) bytes / (double) GIB, cudaGetErrorString(error));
    }
    memset(d->host, 0, bytes);
    *base = d->host;
    return OK;
}

// Whole pages: the driver locks no less.
enum status cuda_pin(struct device *d, void *memory, uint64_t bytes, struct error *e)
{
    check(d->pinned == NULL, "a device pins one piece of memory");
    if (bytes == 0) return OK;
    uintptr_t page = (uintptr_t) sysconf(_SC_PAGESIZE), at = (uintptr_t) memory;
    uintptr_t begin = at / page * page, end = (at + bytes + page - 1) / page * page;
    cudaError_t error = cudaHostRegister((void *) begin, end - begin, cudaHostRegisterDefault);
    if (error != cudaSuccess) {
        cudaGetLastError();
        return error_set(e, ERR_NOMEM, "does_not_fit", "cannot page-lock %.2f MiB of the steps: %s",
                         (double) bytes / (double) MIB, cudaGetErrorString(error));
    }
    d->pinned = (char *) begin;
    d->pinned_bytes = end - begin;
    return OK;
}

void cuda_set_scratch(struct device *d, const struct scratch_shape *s, void *scratch)
{
    struct carve c = {};
    c.base = (char *) scratch;
    c.size = device_sizes(DEVICE_CUDA)->scratch(s);
    d->shape = *s;
    cuda_scratch_carve(&d->scratch, s, &c);
    device_note(d, cudaMemsetAsync(d->scratch.counters, 0, CUDA_COUNTERS * 4, d->stream),
                "set_scratch");
    d->barred = true;
}

// --- the stream

static enum status report(struct device *d, struct error *e)
{
    if (d->ended_by != OK) {
        enum status ended = d->ended_by;
        d->ended_by = OK;
        return error_set(e, ended, NULL, ended == ERR_TIMEOUT
                         ? "GPU %d waited too long for the other ranks"
                         : "GPU %d waited for other ranks, which have ended", d->ordinal);
    }
    if (d->fault == cudaSuccess) return OK;
    cudaError_t error = d->fault;
    d->fault = cudaSuccess;
    return error_set(e, ERR_IO, "device_fault", "GPU %d failed in %s: %s (%s)", d->ordinal,
                     d->fault_op, cudaGetErrorString(error), cudaGetErrorName(error));
}

enum status cuda_sync(struct device *d, struct error *e)
{
    if (d->apart) { // the steps' copies are not over
        device_note(d, device_wait(d), "the stream");
        return report(d, e);
    }
    for (int i = 0; i < 2; i++) { // exports are done, too
        device_note(d, cudaStreamWaitEvent(d->stream, d->out.emptied[i], 0), "export_act");
    }
    device_note(d, device_wait(d), "the stream");
    d->filled = 0;
    return report(d, e);
}

// The stream goes on: only the way out waits for what was computed.
void cuda_step_end(struct device *d, int i)
{
    device_note(d, cudaEventRecord(d->computed, d->stream), "step_end");
    d->barred = true;
    device_note(d, cudaStreamWaitEvent(d->out.stream, d->computed, 0), "step_end");
    device_note(d, cudaEventRecord(d->ended[i], d->out.stream), "step_end");
}

bool cuda_step_passed(struct device *d, int i)
{
    if (cudaEventQuery(d->ended[i]) != cudaErrorNotReady) return true;
    int64_t now_ns = clock_ns();
    if (d->asked_ns == 0) d->asked_ns = now_ns;
    return !goes_on(d, now_ns - d->asked_ns);
}

enum status cuda_step_wait(struct device *d, int i, struct error *e)
{
    d->asked_ns = 0;
    if (d->ended_by == OK) {
        device_note(d, d->watch == NULL ? cudaEventSynchronize(d->ended[i])
                                        : wait_watched(d, d->ended[i]), "the stream");
    }
    return report(d, e);
}

void cuda_apart(struct device *d, bool on)
{
    check(d->apart != on && !d->branched);
    cudaStream_t other = d->stream;
    d->stream = d->beside;
    d->beside = other;
    d->apart = on;
    d->barred = true;
    if (on) device_note(d, cudaStreamWaitEvent(d->stream, d->computed, 0), "apart");
}

static struct graph *graph_of(struct device *d, int bucket)
{
    for (int i = 0; i < d->n_graphs; i++) {
        if (d->graphs[i].bucket == bucket) return &d->graphs[i];
    }
    return NULL;
}

bool cuda_graph_begin(struct device *d, int bucket)
{
    if (graph_of(d, bucket) != NULL) return false;
    check(d->n_graphs < GRAPHS_MAX, "more than %d row buckets", GRAPHS_MAX);
    device_note(d, cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal),
                "graph_begin");
    d->barred = true;
    return true;
}

void cuda_graph_end(struct device *d, int bucket)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    cudaError_t error = cudaStreamEndCapture(d->stream, &graph);
    if (error == cudaSuccess) error = cudaGraphInstantiate(&exec, graph, 0);
    if (error == cudaSuccess) error = cudaGraphUpload(exec, d->stream); // its memory is taken now
    if (graph != NULL) cudaGraphDestroy(graph);
    device_note(d, error, "graph_end");
    if (error == cudaSuccess) d->graphs[d->n_graphs++] = (struct graph) {bucket, exec};
}

void cuda_graph_launch(struct device *d, int bucket)
{
    struct graph *g = graph_of(d, bucket);
    if (g == NULL) { // its recording failed, which sync tells
        device_note(d, cudaErrorInvalidValue, "graph_launch");
        return;
    }
    device_note(d, cudaGraphLaunch(g->exec, d->stream), "graph_launch");
    d->barred = true;
}

// --- branches

static void swap_streams(struct device *d)
{
    cudaStream_t main = d->stream;
    d->stream = d->side;
    d->side = main;
    d->branched = !d->branched;
}

void cuda_branch(struct device *d)
{
    device_note(d, cudaEventRecord(d->begun, d->stream), "branch");
    device_note(d, cudaStreamWaitEvent(d->side, d->begun, 0), "branch");
    swap_streams(d);
}

void cuda_resume(struct device *d) { swap_streams(d); }

void cuda_join(struct device *d)
{
    device_note(d, cudaEventRecord(d->met, d->side), "join");
    device_note(d, cudaStreamWaitEvent(d->stream, d->met, 0), "join");
    d->barred = true;
}
