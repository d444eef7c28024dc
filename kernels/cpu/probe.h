// What this CPU can do at most, measured where nothing else is in the way: the marks beside which
// benchmarks of the kernels are read. Built once per instruction set; one thread each.
#ifndef PENSTOCK_KERNELS_CPU_PROBE_H
#define PENSTOCK_KERNELS_CPU_PROBE_H

#include "kernels/cpu/isa.h"

#include <stddef.h>
#include <stdint.h>

struct probe {
    const char *arithmetic;  // of `multiply`: "f32 FMA", "dpbf16"
    double flops_a_round;    // of `multiply`; a multiply-add counts two
    void (*multiply)(int64_t rounds); // multiply-adds between registers, in independent chains
    void (*read)(const void *data, size_t n); // n bytes, a multiple of 4096, front to back
};

extern const struct probe probe_portable, probe_avx2, probe_avx512, probe_avx512bf16;

const struct probe *probe_for(enum isa isa);

#endif
