// How much memory there is to give to devices: read from Linux, here and in the container. Any
// thread.
#ifndef PENSTOCK_COMMON_MEMORY_H
#define PENSTOCK_COMMON_MEMORY_H

#include <stdint.h>

// What can be had without swapping, in bytes: free memory and page cache.
uint64_t memory_available(void);

// What each of n devices may take unless told, in bytes: what is available, less a fifth for
// everybody else, shared out.
uint64_t memory_share(int64_t n);

#endif
