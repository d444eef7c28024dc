#include "common/device_rates.h"

#include <stdio.h>
#include <string.h>

// Sources: design figures of the cards (4090: 1,008 GB/s, 330 TFLOPS FP8 and 165 bf16 with f32
// sums; H100 SXM: 3.35 TB/s, 1,979 and 989), and what is reached of them: 90% of the 4090's memory
// by FP8 GEMV, 85% of the H100's, GEMM 1,229 and 757 TFLOPS measured on V3's shapes, MLA 500.
// NCCL among eight 4090s without peer access takes 74 us and 5.5 GB/s: predicted, fitted to the
// decode rates that are predicted for 32 such cards at five batch sizes. `direct` and `coarse` have
// this program's own sums over the host instead, exact and as 8 bits: predicted from what two and
// four H200 took (kernels/README.md), at half the rate of their buses and with the bytes of eight
// ranks. The h100's sums are those of H200s with NVLink in whole layers, measured with 2 and 4
// ranks: 8 us and 90 GB/s. A limit has the card's own rates, an all-reduce of 16 us at any size,
// and 25 GbE for what leaves a node of 4090s.
// The CPU is two Zen 4 cores, as measured; a head corrects it by the times of its own steps.
static const struct device_rates PRESETS[] = {
    {"rtx4090", 0.9 * 1.008e12, 264e12, 132e12, 60e12, 132e12, 50e-6, 0, 74e-6, 5.5e9, 50e-6,
     2.8e9},
    {"rtx4090-direct", 0.9 * 1.008e12, 264e12, 132e12, 60e12, 132e12, 50e-6, 0, 12e-6, 4.5e9, 50e-6,
     2.8e9},
    {"rtx4090-coarse", 0.9 * 1.008e12, 264e12, 132e12, 60e12, 132e12, 50e-6, 0, 12e-6, 15e9, 50e-6,
     2.8e9},
    {"rtx4090-limit", 1.008e12, 330e12, 165e12, 82e12, 165e12, 0, 0, 16e-6, 1e12, 25e-6, 3.125e9},
    {"h100", 0.85 * 3.35e12, 1229e12, 757e12, 50e12, 500e12, 50e-6, 20e-6, 8e-6, 90e9, 50e-6,
     40e9},
    {"h100-limit", 3.35e12, 1979e12, 989e12, 67e12, 989e12, 0, 0, 5e-6, 450e9, 10e-6, 50e9},
    {"cpu", 30e9, 457e9, 457e9, 233e9, 100e9, 30e-6, 10e-6, 20e-6, 5e9, 60e-6, 1e9},
};

enum { N_PRESETS = sizeof PRESETS / sizeof *PRESETS };

const struct device_rates *device_rates_find(const char *name)
{
    for (int i = 0; i < N_PRESETS; i++) {
        if (strcmp(PRESETS[i].name, name) == 0) return &PRESETS[i];
    }
    return NULL;
}

const struct device_rates *device_rates_of(enum device_kind kind)
{
    const struct device_rates *r = device_rates_find(kind == DEVICE_CUDA ? "rtx4090" : "cpu");
    check(r != NULL, "a preset for each kind of device");
    return r;
}

enum status device_rates_named(struct device_rates *r, const char *name, struct error *e)
{
    const struct device_rates *found = device_rates_find(name);
    char names[128] = "";
    if (found != NULL) {
        *r = *found;
        return OK;
    }
    for (int i = 0; i < N_PRESETS; i++) {
        size_t n = strlen(names);
        snprintf(names + n, sizeof names - n, "%s%s", i > 0 ? ", " : "", PRESETS[i].name);
    }
    return error_set(e, ERR_INPUT, "bad_device", "no rates are known of %.40s; there are %s", name,
                     names);
}
