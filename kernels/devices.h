// The devices that a user names: which backend, and how many ranks of it. Any thread.
#ifndef PENSTOCK_KERNELS_DEVICES_H
#define PENSTOCK_KERNELS_DEVICES_H

#include "common/status.h"
#include "kernels/backend.h"

struct devices {
    const struct backend *backend;
    int n;      // ranks
    int n_gpus; // that they share; 0: one each
};

// "cpu" or "cuda" is one rank; "cpu:N" N ranks on this node's CPUs, "cuda:N" a rank on each of the
// first N GPUs that the driver shows (CUDA_VISIBLE_DEVICES chooses), "cuda:N/M" N ranks on the
// first M GPUs, in turn: for tests, and for trying a partition on fewer GPUs. Nothing is opened.
// ERR_INPUT bad_usage; ERR_UNSUPPORTED no_cuda in a program that was built without.
enum status devices_parse(const char *text, struct devices *d, struct error *e);

// Bytes that each of them may take unless told: of CPUs a share of what is available, of GPUs what
// is free on the one that has least. ERR_UNAVAILABLE no_device.
enum status devices_memory(const struct devices *d, uint64_t *bytes, struct error *e);

// What the driver takes of the first device of a kind for a process, measured, in bytes; 0 where
// there is none, where it cannot be told apart from others' part, or where the host's memory is the
// device's.
uint64_t devices_context(enum device_kind kind);

#endif
