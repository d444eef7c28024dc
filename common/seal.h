// The seal: a thread that may make no heap call says so, and whatever it calls of malloc and its
// kin while it is sealed is counted (in a debug build: ends the program). What is sealed and what
// is not stands in workers/README.md. Any thread; knows nothing of what runs under it.
#ifndef PENSTOCK_COMMON_SEAL_H
#define PENSTOCK_COMMON_SEAL_H

#include <stdbool.h>
#include <stdint.h>

struct seal_counts {
    bool watched;      // false in sanitizer builds, whose own allocator is in place
    bool fatal;        // a debug build: the first one ends the program
    uint64_t broken;   // heap calls of sealed threads since the start
    const void *first; // who made the first of them: an address in the program, for addr2line
};

// Seals the calling thread, or lifts its seal; returns what it was, to be set again.
bool seal_set(bool sealed);

// Of all threads of this process.
struct seal_counts seal_counts(void);

#endif
