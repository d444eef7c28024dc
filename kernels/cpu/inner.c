#include "kernels/cpu/inner.h"

const struct inner *inner_for(enum isa isa)
{
    switch (isa) {
    case ISA_AVX2:
        return &inner_avx2;
    case ISA_AVX512:
    case ISA_AVX512BF16:
        return &inner_avx512;
    case ISA_PORTABLE:
    case N_ISA:
        break;
    }
    return &inner_portable;
}
