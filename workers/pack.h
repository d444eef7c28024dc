// What a rank takes of a piece of the checkpoint (load.h): the rows and columns of its slice,
// checked, and packed into its weights in the form that its device wants. The rank's thread. Reads
// no files.
#ifndef PENSTOCK_WORKERS_PACK_H
#define PENSTOCK_WORKERS_PACK_H

#include "workers/load.h"
#include "workers/weights.h"

struct packer {
    struct weights *weights; // laid out
    const struct backend *backend;
    struct device *device;
    char *scratch;           // pack_scratch_bytes of host memory
    size_t scratch_bytes;
};

// Bytes in which rows are cut, converted or turned on their way.
size_t pack_scratch_bytes(const struct model_config *c);

// Fills what does not come from the checkpoint: the frequencies of the rotary embedding.
enum status pack_constants(struct packer *p, struct error *e);

// Takes this rank's part of the piece, if it has any. On return nothing reads from the piece any
// more, though the device may still copy what was staged of it. ERR_INPUT bad_checkpoint names a
// tensor that holds NaN, an infinity, or a negative scale.
enum status pack_piece(struct packer *p, const struct load_piece *piece, struct error *e);

#endif
