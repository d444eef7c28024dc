// How a slice of the checkpoint lies in a device: as which matrices and vectors, and in what order
// they are carved. The one list from which the plan counts bytes and the loader places them. Pure;
// any thread.
#ifndef PENSTOCK_COMMON_PACKED_H
#define PENSTOCK_COMMON_PACKED_H

#include "common/carve.h"
#include "common/device_sizes.h"
#include "common/layout.h"

// The kernels know no F16: it is kept as F32.
enum dtype packed_type(enum dtype type);

// A part of a slice: part i of it, at `data` with `scales` (NULL unless FP8), both NULL while
// counting. `shape` is NULL for vectors (f32) and for the embedding (rows, cols, packed_type).
// kv_b has two matrices a head: W_UK turned, (kv_lora, nope), then W_UV, (v, kv_lora).
typedef void packed_part(void *arg, const struct slice *s, int i, const struct matrix_shape *shape,
                         void *data, float *scales);

// Carves a slice that the checkpoint has as `type`, and tells its parts to `put`, which may be
// NULL. Lines: weights and scales as the checkpoint has them; packing is what they take beyond.
void packed_carve(enum device_kind device, const struct model_config *c, const struct slice *s,
                  enum dtype type, struct carve *carve, packed_part *put, void *arg);

// The table of inverse frequencies, (rope/2) f32, which every rank has: packing.
float *packed_carve_frequencies(const struct model_config *c, struct carve *carve);

#endif
