// Times of kernels, in lines of the check's table, beside limits that are probed in the same run.
// One side at a time.
#ifndef PENSTOCK_TESTS_GPU_SPEED_H
#define PENSTOCK_TESTS_GPU_SPEED_H

#include "tests/gpu/check.h"
#include "tests/gpu/side.h"

// Probes the limits and adds a line for each; later lines go to `r`. The side stays the caller's.
void speed_open(struct side *side, struct result *r);

// Seconds of the ops that were put on the stream since speed_begin, as a graph, which runs often.
void speed_begin(void);
double speed_end(void);

// The same once more: the first time has the clocks that the load before it left.
double speed_again(void);

// `bar`: of the device's copy rate, bytes read and written together.
void line_bytes(const char *name, double seconds, double bytes, double bar);

// `bar`: of what mma.sync does between registers; or TFLOP/s.
void line_flops(const char *name, double seconds, double flops, double bar);
void line_tflops(const char *name, double seconds, double flops, double bar);

// n random values in [-scale, scale) in the side's memory.
float *put_noise(size_t n, float scale);

#endif
