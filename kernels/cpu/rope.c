// Rotary positions: angles in double, so that far positions lose nothing; pairs (2i, 2i + 1).
#include "kernels/cpu/device.h"
#include "kernels/cpu/ops.h"

#include <math.h>

enum { ANGLE_ROWS = 16, ROTATE_ROWS = 64 }; // rows worth another thread

struct angles {
    const float *inv_freq; // (rope/2)
    float multiplier;
    int rope;
    const int32_t *pos;
    float *cos_sin; // (n_rows, rope/2, 2)
};

static void angles_rows(void *arg, int begin, int end, int thread)
{
    (void) thread;
    const struct angles *a = arg;
    for (int row = begin; row < end; row++) {
        if (a->pos[row] < 0) continue;
        float *to = a->cos_sin + (size_t) row * a->rope;
        for (int i = 0; i < a->rope / 2; i++) {
            double angle = (double) a->pos[row] * (double) a->inv_freq[i];
            to[2 * i] = (float) (cos(angle) * (double) a->multiplier);
            to[2 * i + 1] = (float) (sin(angle) * (double) a->multiplier);
        }
    }
}

void cpu_rope_angles(struct device *d, const float *inv_freq, float multiplier, int rope,
                     const int32_t *pos, float *cos_sin, int n_rows)
{
    struct angles a = {inv_freq, multiplier, rope, pos, cos_sin};
    team_run(d->team, angles_rows, &a, n_rows, ANGLE_ROWS);
}

void row_rope(const float *x, const float *cos_sin, float *out, int rope)
{
    for (int i = 0; i < rope; i += 2) {
        float even = x[i], odd = x[i + 1];
        out[i] = even * cos_sin[i] - odd * cos_sin[i + 1];
        out[i + 1] = even * cos_sin[i + 1] + odd * cos_sin[i];
    }
}

struct rotate {
    float *x;
    size_t x_stride, x_head_stride;
    int n_heads, rope;
    const float *cos_sin;
};

static void rotate_rows(void *arg, int begin, int end, int thread)
{
    (void) thread;
    const struct rotate *r = arg;
    for (int row = begin; row < end; row++) {
        for (int head = 0; head < r->n_heads; head++) {
            float *x = r->x + (size_t) row * r->x_stride + (size_t) head * r->x_head_stride;
            row_rope(x, r->cos_sin + (size_t) row * r->rope, x, r->rope);
        }
    }
}

void cpu_rope(struct device *d, float *x, int x_stride, int x_head_stride, int n_heads, int rope,
              const float *cos_sin, int n_rows)
{
    struct rotate r = {x, (size_t) x_stride, (size_t) x_head_stride, n_heads, rope, cos_sin};
    team_run(d->team, rotate_rows, &r, n_rows, n_heads < ROTATE_ROWS ? ROTATE_ROWS / n_heads : 1);
}
