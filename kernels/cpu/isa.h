// Which instruction sets this CPU and this program share; decides the kernel variant once at start.
// Any thread.
#ifndef PENSTOCK_KERNELS_CPU_ISA_H
#define PENSTOCK_KERNELS_CPU_ISA_H

enum isa {
    ISA_PORTABLE,
    ISA_AVX2,       // AVX2 + FMA + F16C
    ISA_AVX512,     // AVX-512 F BW DQ VL VBMI
    ISA_AVX512BF16, // and vdpbf16ps
    N_ISA,
};

// The best one this CPU has; PENSTOCK_ISA=portable|avx2|avx512|avx512bf16 lowers it (never raises
// it).
enum isa isa_best(void);

const char *isa_name(enum isa isa);

#endif
