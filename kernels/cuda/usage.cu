#include "kernels/cuda/usage.cuh"

#include <dlfcn.h>
#include <pthread.h>

struct gpu {
    bool measured, alone;
    uint64_t context;   // of this process; of all where it is not `alone`
    uint64_t free_then; // with the context, before the first open device
    uint64_t arenas;  // of this process
    int users;        // open devices
};

static struct gpu gpus[TP_MAX];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

// --- NVML, a part of the driver: loaded where it is there, since nothing else needs it

struct nvml_memory {
    unsigned long long total, free_bytes, used;
};

typedef int nvml_init(void);
typedef int nvml_handle(const char *bus_id, void **handle);
typedef int nvml_memory_info(void *handle, struct nvml_memory *m);

// Free bytes of a GPU without a context of this process; 0: unknown.
static uint64_t free_by_nvml(int ordinal)
{
    char bus_id[32];
    void *handle = NULL, *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL || cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, ordinal) != cudaSuccess) {
        return 0;
    }
    nvml_init *init = (nvml_init *) dlsym(library, "nvmlInit_v2");
    nvml_handle *find = (nvml_handle *) dlsym(library, "nvmlDeviceGetHandleByPciBusId_v2");
    nvml_memory_info *info = (nvml_memory_info *) dlsym(library, "nvmlDeviceGetMemoryInfo");
    nvml_init *shutdown = (nvml_init *) dlsym(library, "nvmlShutdown");
    struct nvml_memory m = {};
    if (init == NULL || find == NULL || info == NULL || shutdown == NULL || init() != 0) return 0;
    bool told = find(bus_id, &handle) == 0 && info(handle, &m) == 0;
    shutdown();
    return told ? m.free_bytes : 0;
}

// --- one GPU

cudaError_t usage_context(int ordinal, uint64_t *context)
{
    check(ordinal >= 0 && ordinal < TP_MAX, "GPU %d", ordinal);
    struct gpu *g = &gpus[ordinal];
    size_t free_bytes = 0, total = 0;
    pthread_mutex_lock(&mutex);
    uint64_t before = g->measured ? 0 : free_by_nvml(ordinal);
    cudaError_t error = cudaSetDevice(ordinal);
    if (error == cudaSuccess && !g->measured) {
        error = cudaFree(NULL); // makes the context
        uint64_t after = before > 0 ? free_by_nvml(ordinal) : 0;
        if (error == cudaSuccess) error = cudaMemGetInfo(&free_bytes, &total);
        g->alone = after > 0 && before >= after;
        g->context = g->alone ? before - after : total - free_bytes;
        g->measured = error == cudaSuccess;
    }
    *context = g->alone ? g->context : 0;
    pthread_mutex_unlock(&mutex);
    return error;
}

void usage_join(struct device *d)
{
    struct gpu *g = &gpus[d->ordinal];
    size_t free_bytes = 0, total = 0;
    pthread_mutex_lock(&mutex);
    if (g->users++ == 0 && cudaMemGetInfo(&free_bytes, &total) == cudaSuccess) {
        g->free_then = free_bytes;
    }
    pthread_mutex_unlock(&mutex);
    d->joined = true;
}

void usage_arena(struct device *d)
{
    pthread_mutex_lock(&mutex);
    gpus[d->ordinal].arenas += d->arena_bytes;
    pthread_mutex_unlock(&mutex);
}

void usage_leave(struct device *d)
{
    if (!d->joined) return;
    pthread_mutex_lock(&mutex);
    gpus[d->ordinal].users--;
    gpus[d->ordinal].arenas -= d->arena_bytes;
    pthread_mutex_unlock(&mutex);
    d->joined = false;
}

void cuda_usage(struct device *d, struct device_usage *usage)
{
    const struct gpu *g = &gpus[d->ordinal];
    size_t free_bytes = 0, total = 0;
    pthread_mutex_lock(&mutex);
    device_note(d, cudaMemGetInfo(&free_bytes, &total), "usage");
    uint64_t taken = g->free_then > free_bytes ? g->free_then - free_bytes : 0;
    uint64_t users = g->users > 0 ? (uint64_t) g->users : 1;
    usage->context = g->context / users;
    usage->libraries = (taken > g->arenas ? taken - g->arenas : 0) / users;
    usage->alone = g->alone;
    pthread_mutex_unlock(&mutex);
}
