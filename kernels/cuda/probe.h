// What the GPU can do at most, measured: the limits beside which kernels' figures are put. They
// take time and memory: for benchmarks, not for ranks that serve.
#ifndef PENSTOCK_KERNELS_CUDA_PROBE_H
#define PENSTOCK_KERNELS_CUDA_PROBE_H

#ifndef __cplusplus
#include "kernels/backend.h"
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Bytes a second, read and written, of device copies of `bytes` within the arena's first 2 * bytes,
// which are overwritten.
double cuda_probe_copy(struct device *d, uint64_t bytes);

// Floating-point operations a second of mma.sync (bf16, f32 sums) between registers alone.
double cuda_probe_mma(struct device *d);

// Whether kernels of sm_90a run where they can: without them a Hopper card runs what others do.
void cuda_probe_hopper(struct device *d, bool on);

// Puts on the stream what a product of many rows (x: n_rows, k) does first: they are quantised to
// FP8. n_rows and k as a product may have them at once.
void cuda_probe_quantise(struct device *d, const float *x, int k, int n_rows);

// Seconds of one launch of the bucket's graph, the mean of `n` after one more.
double cuda_probe_graph(struct device *d, int bucket, int n);

#ifdef __cplusplus
}
#endif

#endif
