// One backend with a device, for tests that give the same inputs to two of them: memory is taken
// from the device's arena by name and given back as a whole.
#ifndef PENSTOCK_TESTS_GPU_SIDE_H
#define PENSTOCK_TESTS_GPU_SIDE_H

#include "common/carve.h"
#include "kernels/backend.h"

struct side {
    const struct backend *b;
    struct device *d;
    struct carve arena;
    enum precision precision;
};

// Ends the program where that fails.
void side_open(struct side *s, const struct backend *b, enum precision p, uint64_t bytes);
void side_close(struct side *s);

// Gives the device scratch for `shape` out of the arena, which is emptied first.
void side_reset(struct side *s, const struct scratch_shape *shape);

void *side_take(struct side *s, size_t bytes);                   // not cleared
void *side_put(struct side *s, const void *from, size_t bytes);  // a copy of host bytes
void side_get(struct side *s, void *to, const void *from, size_t bytes); // back to the host
void side_sync(struct side *s);

// The matrix with its rows (n, k) and scales, both host memory, packed for this side.
struct matrix side_matrix(struct side *s, const struct matrix *shape, const void *rows,
                          const float *scales);

// --- what both sides get

// Uniform in [-1, 1), from one seeded generator.
float noise(void);
uint32_t noise_bits(void);
float *noises(size_t n, float scale); // heap

// Random rows of the matrix' type (heap), and random scales (heap; NULL unless FP8).
void *noise_rows(const struct matrix *m);
float *noise_scales(const struct matrix *m);

// Rounds k values, which begin at `phase` in their block of SCALE_BLOCK, to FP8 with a scale a
// block, as the tensor cores read rows where there are many.
void round_to_fp8(float *x, int k, int phase);

// |a - b| / |b| over n values, infinite where one is not a number and the other is.
double difference(const float *a, const float *b, size_t n);

#endif
