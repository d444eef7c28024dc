// What a rehearsal and benchmarks want of a device beside its ops: times on its stream, copies
// within its memory, and what its driver says is free. Not for ranks that serve. Calls come from
// the device's thread.
#ifndef PENSTOCK_KERNELS_MEASURES_H
#define PENSTOCK_KERNELS_MEASURES_H

#include "kernels/backend.h"

struct marks; // places on a device's stream

struct measures {
    // Makes n places, all of them on the stream's present end. Frees the places of `marks`.
    enum status (*marks_create)(struct marks **marks, struct device *d, int n, struct error *e);
    void (*marks_destroy)(struct marks **marks);
    // Puts place i behind all that the stream was given.
    void (*mark)(struct marks *marks, int i);
    // Seconds from one place to another, after a sync.
    double (*between)(struct marks *marks, int from, int to);
    // The stream does nothing for so long, so that the host is ahead of it with what follows.
    void (*hold)(struct device *d, double seconds);
    // n bytes of the device's memory to another place of it, on the stream.
    void (*copy)(struct device *d, void *to, const void *from, size_t n);
    // What the driver shows of the device, other processes' part included; zeros where nothing is.
    enum status (*memory)(struct device *d, uint64_t *free_bytes, uint64_t *total,
                          struct error *e);
};

const struct measures *measures_cpu(void);
const struct measures *measures_cuda(void); // NULL in a build without CUDA

static inline const struct measures *measures_of(enum device_kind kind)
{
    return kind == DEVICE_CUDA ? measures_cuda() : measures_cpu();
}

#endif
