// import_act and export_act of the CPU backend (kernels/backend.h).
#ifndef PENSTOCK_KERNELS_CPU_WIRE_FORM_H
#define PENSTOCK_KERNELS_CPU_WIRE_FORM_H

#include "kernels/backend.h"

void cpu_import_act(struct device *d, float *x, const void *wire, size_t n);
void cpu_export_act(struct device *d, void *wire, const float *x, size_t n);

#endif
