// The residual stream's form between stages: f32, or bf16 in bf16 precision.
#include "kernels/cpu/wire_form.h"

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/device.h"

#include <string.h>

void cpu_import_act(struct device *d, float *x, const void *wire, size_t n)
{
    if (d->precision == PRECISION_F32) {
        memcpy(x, wire, n * sizeof *x);
        return;
    }
    const char *from = wire; // a received frame may lie at any address
    for (size_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, from + 2 * i, 2);
        x[i] = bf16_widen(half);
    }
}

void cpu_export_act(struct device *d, void *wire, const float *x, size_t n)
{
    if (d->precision == PRECISION_F32) {
        memcpy(wire, x, n * sizeof *x);
        return;
    }
    char *to = wire;
    for (size_t i = 0; i < n; i++) {
        uint16_t half = bf16_round(x[i]);
        memcpy(to + 2 * i, &half, 2);
    }
}
