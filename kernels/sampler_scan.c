#include "kernels/sampler_scan.h"

#include "kernels/cpu/isa.h"

const struct scan *scan_best(void)
{
    switch (isa_best()) {
    case ISA_AVX512BF16:
    case ISA_AVX512: return &scan_avx512;
    case ISA_AVX2: return &scan_avx2;
    default: return &scan_portable;
    }
}
