#include "kernels/cpu/isa.h"

#include <stdlib.h>
#include <string.h>

static const char *const names[N_ISA] = {
    [ISA_PORTABLE] = "portable",
    [ISA_AVX2] = "avx2",
    [ISA_AVX512] = "avx512",
    [ISA_AVX512BF16] = "avx512bf16",
};

const char *isa_name(enum isa isa) { return (unsigned) isa < N_ISA ? names[isa] : "unknown"; }

static enum isa probe(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return ISA_PORTABLE;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512vbmi")) {
        return ISA_AVX2;
    }
    return __builtin_cpu_supports("avx512bf16") ? ISA_AVX512BF16 : ISA_AVX512;
#else
    return ISA_PORTABLE;
#endif
}

enum isa isa_best(void)
{
    enum isa best = probe();
    const char *wanted = getenv("PENSTOCK_ISA");
    for (int i = 0; wanted != NULL && i < (int) best; i++) {
        if (strcmp(wanted, names[i]) == 0) return (enum isa) i;
    }
    return best;
}
