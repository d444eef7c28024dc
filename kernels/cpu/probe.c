#include "kernels/cpu/probe.h"

const struct probe *probe_for(enum isa isa)
{
    switch (isa) {
    case ISA_AVX2:
        return &probe_avx2;
    case ISA_AVX512:
        return &probe_avx512;
    case ISA_AVX512BF16:
        return &probe_avx512bf16;
    case ISA_PORTABLE:
    case N_ISA:
        break;
    }
    return &probe_portable;
}
