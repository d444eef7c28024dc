// A checkpoint directory as published on the hub: the safetensors files' headers, checked, and
// where each tensor's bytes lie. The files are read, never computed from. Immutable after open; any
// thread.
#ifndef PENSTOCK_COMMON_CHECKPOINT_H
#define PENSTOCK_COMMON_CHECKPOINT_H

#include "common/limits.h"
#include "common/status.h"

#include <stddef.h>
#include <stdint.h>

enum dtype { DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_F8_E4M3, DTYPE_OTHER };

// Bytes an element; 0 for DTYPE_OTHER.
size_t dtype_size(enum dtype dtype);
const char *dtype_name(enum dtype dtype);

struct tensor {
    const char *name;
    enum dtype dtype;
    int n_dims;
    int64_t shape[4]; // [out, in] for matrices
    int index;        // among the checkpoint's tensors (checkpoint_tensor)
    int file;         // index into the checkpoint's files
    uint64_t offset;  // of the first byte in the file
    uint64_t bytes;
};

struct checkpoint; // opens model.safetensors.index.json, or model.safetensors alone

// Opens `dir`. Every header is checked: sizes against the file's, offsets in range and not
// overlapping, shapes x dtype = bytes, names unique, the index against the headers.
// Errors: ERR_IO; ERR_INPUT bad_checkpoint with file and tensor.
enum status checkpoint_open(struct checkpoint **checkpoint, const char *dir, struct error *e);
void checkpoint_close(struct checkpoint **checkpoint);

// NULL if there is none of this name. The result lives as long as the checkpoint.
const struct tensor *checkpoint_find(const struct checkpoint *c, const char *name);

int checkpoint_n_tensors(const struct checkpoint *c);
const struct tensor *checkpoint_tensor(const struct checkpoint *c, int i); // by name, ascending
int checkpoint_n_files(const struct checkpoint *c);
const char *checkpoint_file(const struct checkpoint *c, int file); // path
uint64_t checkpoint_bytes(const struct checkpoint *c);             // of all tensors

// Copies `n` bytes at `offset` of the file that holds `t` to `to` (pread); they may reach into the
// tensors behind it. ERR_IO names file and tensor.
enum status checkpoint_read_file(const struct checkpoint *c, const struct tensor *t,
                                 uint64_t offset, void *to, size_t n, struct error *e);

// The same past the page cache. `direct` is checkpoint_open_direct of the file; `to` lies as
// direct_read (direct.h) says.
enum status checkpoint_read_direct(const struct checkpoint *c, const struct tensor *t, int direct,
                                   uint64_t offset, void *to, size_t n, struct error *e);

// A descriptor for that, the caller's to close; -1: the file can't be read so, or its bytes are in
// the page cache anyway.
int checkpoint_open_direct(const struct checkpoint *c, int file);

// Has the disk begin with such bytes, which are read soon.
void checkpoint_will_read(const struct checkpoint *c, const struct tensor *t, uint64_t offset,
                          size_t n);

// XXH3-128 of names, dtypes, shapes (the manifest), as 32 hex digits: equal for equal checkpoints'
// structure. `hex` has 33 bytes.
void checkpoint_manifest_hash(const struct checkpoint *c, char *hex);

#endif
