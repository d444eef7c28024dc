// Reading a file past the page cache: bytes that are needed once come from the disk without the
// CPU copying them. Not for files that are in the page cache, and not every file system does so;
// what a read here leaves is read the usual way.
// Any thread. Knows no tensors.
#ifndef PENSTOCK_COMMON_DIRECT_H
#define PENSTOCK_COMMON_DIRECT_H

#include <stddef.h>
#include <stdint.h>

enum { DIRECT_ALIGN = 4096 }; // of offsets, lengths and addresses, as all disks take them

static inline size_t direct_aligned(size_t bytes)
{
    return (bytes + DIRECT_ALIGN - 1) / DIRECT_ALIGN * DIRECT_ALIGN;
}

// A descriptor of `path` for direct_read, the caller's to close. -1: its file system has none, most
// of the file is in the page cache anyway, or it is no longer the file that `fd` is.
int direct_open(const char *path, int fd);

// Reads n bytes at `offset` of `fd` (direct_open). `to` lies as far behind a multiple of
// DIRECT_ALIGN as `offset`, and the bytes around it up to such multiples are written, too. Returns
// how many of the n, from the first on, were read: fewer at the end of the file and after an error.
size_t direct_read(int fd, uint64_t offset, void *to, size_t n);

#endif
