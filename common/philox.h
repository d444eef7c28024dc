// Philox-4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011):
// key = seed, counter = (position, 0); the first two of its four words. The same source for hosts
// and GPUs. Pure; any thread.
#ifndef PENSTOCK_COMMON_PHILOX_H
#define PENSTOCK_COMMON_PHILOX_H

#include <stdint.h>

#ifdef __CUDACC__
#define PHILOX_SIDES __host__ __device__
#else
#define PHILOX_SIDES
#endif

PHILOX_SIDES static inline uint64_t philox(uint64_t seed, uint64_t position)
{
    uint32_t c0 = (uint32_t) position, c1 = (uint32_t) (position >> 32), c2 = 0, c3 = 0;
    uint32_t k0 = (uint32_t) seed, k1 = (uint32_t) (seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t) c0 * 0xD2511F53u, b = (uint64_t) c2 * 0xCD9E8D57u;
        c0 = (uint32_t) (b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t) b;
        c2 = (uint32_t) (a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t) a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (uint64_t) c1 << 32 | c0;
}

#endif
