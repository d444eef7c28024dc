// The loader: the bytes of a stage's tensors, each read once and in the order of the files, into a
// ring of fixed staging buffers, from which every rank of the group takes its slices (pack.h).
// Threads of its own fill several buffers at a time; one more hashes them in their order and
// compares with the manifest, if there is one, before a rank gets them. So the disk, the hash and
// the ranks work at once. Knows no devices.
#ifndef PENSTOCK_WORKERS_LOAD_H
#define PENSTOCK_WORKERS_LOAD_H

#include "common/checkpoint.h"
#include "common/layout.h"
#include "common/manifest.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    LOAD_BUFFERS = 16,
    LOAD_BUFFER_BYTES = 2 * 1024 * 1024, // of each, or what the largest piece takes
    LOAD_READERS = 2,                    // threads that fill buffers, each with one read at a time
    LOAD_PANEL_ROWS = 16,                // pieces begin at multiples of so many rows of a slice
};

struct load_options {
    const struct model_config *config;   // borrowed, as all that follows
    const struct checkpoint *checkpoint;
    struct placement place;              // of rank 0
    struct manifest *manifest;           // NULL: none
    void *memory;                        // load_memory_bytes; outlives the load
};

// A tensor of the stage.
struct load_part {
    const struct tensor *tensor;
    struct slice slice; // whole; of the matrix, where `scales`
    bool scales;        // the block scales of that matrix
};

// Consecutive whole rows of one tensor, as they lie in its file.
struct load_piece {
    const struct load_part *part;
    int64_t row0, n_rows;
    const char *bytes; // not aligned
};

struct load_batch {
    const struct load_piece *pieces;
    int n;
    uint64_t bytes; // of all
};

struct load;

// Bytes of the staging buffers, by config and place alone.
uint64_t load_memory_bytes(const struct load_options *o);

// Of all tensors of the stage; after load_create.
uint64_t load_bytes(const struct load *l);

// Starts its threads, which wait until all ranks have called load_join. ERR_INPUT bad_checkpoint
// names a tensor that is missing or has another shape; ERR_NOMEM.
enum status load_create(struct load **load, const struct load_options *o, struct error *e);

// A rank is ready to pack.
void load_join(struct load *l);

// The next batch for this rank, waiting for it; batch->n is 0 at the end. Errors: those of reading,
// ERR_INPUT damaged, ERR_ABORTED.
enum status load_next(struct load *l, int rank, struct load_batch *batch, struct error *e);

// The rank has taken what it wants of its last batch: the buffer may be filled again.
void load_done(struct load *l, int rank);

// Ends reading and waiting; any thread.
void load_abort(struct load *l);

// Nanoseconds from when all ranks had joined until the last had taken its last batch; 0 until then.
int64_t load_ns(struct load *l);

// Ends its threads and waits for them; the ranks have ended or got an error.
void load_destroy(struct load **load);

#endif
