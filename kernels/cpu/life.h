// The CPU backend's device.c: contracts in kernels/backend.h, part "life" and "recorded steps".
#ifndef PENSTOCK_KERNELS_CPU_LIFE_H
#define PENSTOCK_KERNELS_CPU_LIFE_H

#include "kernels/backend.h"

enum status cpu_memory(int n, uint64_t *bytes, struct error *e);
enum status cpu_open(struct device **device, const struct device_options *options, struct error *e);
void cpu_close(struct device **device);
enum status cpu_arena(struct device *d, uint64_t bytes, void **base, struct error *e);
void cpu_set_scratch(struct device *d, const struct scratch_shape *s, void *scratch);
void cpu_upload(struct device *d, void *to, const void *from, size_t n);
void cpu_download(struct device *d, void *to, const void *from, size_t n);
enum status cpu_sync(struct device *d, struct error *e);
bool cpu_graph_begin(struct device *d, int bucket);
void cpu_graph_end(struct device *d, int bucket); // and graph_launch: nothing was recorded

#endif
