// What a rehearsal computes on in place of a checkpoint and of sequences: random weights of a
// rank's true shapes and types, and rows of KV. Weights are such that activations stay of the size
// they come in with, and rows of chance choose all experts equally. The rank's thread calls it.
#ifndef PENSTOCK_WORKERS_REHEARSE_FILL_H
#define PENSTOCK_WORKERS_REHEARSE_FILL_H

#include "kernels/measures.h"
#include "workers/forward.h"
#include "workers/weights.h"

enum { REHEARSE_QUANTILES = 4096 };

// Normal values, drawn once and used again from any place on: nothing of a rank's size is held in
// host memory.
struct rehearse_noise {
    char *fp8, *bf16; // (bytes): of FP8's range; of deviation 1 / sqrt(hidden)
    float *f32;       // (bytes / 4) of the same deviation
    size_t bytes;     // of each
    float magnitudes[REHEARSE_QUANTILES]; // of deviation 1, equally likely
    uint64_t state;
};

enum status rehearse_noise_create(struct rehearse_noise *n, const struct model_config *c,
                                  struct error *e);
void rehearse_noise_destroy(struct rehearse_noise *n);

// n normal values of deviation 1 in the form that activations have between stages.
void rehearse_noise_wire(struct rehearse_noise *n, enum precision p, void *wire, size_t values);

// Random bits.
uint32_t rehearse_noise_bits(struct rehearse_noise *n);

// Fills weights that are laid out. Of each shape of a matrix REHEARSE_COPIES differ; the others are
// copies of them within the device.
enum { REHEARSE_COPIES = 4, REHEARSE_SHAPES_MAX = 64 };
enum status rehearse_fill_weights(struct weights *w, const struct backend *b,
                                  const struct measures *measures, struct device *d,
                                  struct rehearse_noise *noise, struct error *e);

// Rows [0, context) of each slot, in all layers, after the slots' tables are on the device.
enum status rehearse_fill_kv(struct forward *f, int slots, int context,
                             struct rehearse_noise *noise, struct error *e);

#endif
