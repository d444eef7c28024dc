// The router (noaux_tc): sigmoid scores of all experts, then the choice, row by row. All f32.
#include "kernels/cuda/device.cuh"

#include "kernels/cuda/exact.cuh"
#include "kernels/cuda/reduce.cuh"

#include <float.h>

enum {
    SCORE_THREADS = 256,
    SCORE_ROWS = 4,  // of one block, which reads an expert's weights once for all of them
    TILE_ROWS = 1024, // from so many rows on a tiled product is faster
};

// A block takes one expert and SCORE_ROWS rows. A row's sum has one order whatever its place.
static __global__ void __launch_bounds__(SCORE_THREADS)
score(const float *x, const float *weight, int n_experts, int hidden, float *scores, int n_rows)
{
    int expert = blockIdx.x, row0 = blockIdx.y * SCORE_ROWS;
    const float *w = weight + (size_t) expert * hidden;
    float sums[SCORE_ROWS] = {};
#pragma unroll 4
    for (int i = threadIdx.x; i < hidden; i += SCORE_THREADS) {
        float value = w[i];
#pragma unroll
        for (int r = 0; r < SCORE_ROWS; r++) {
            if (row0 + r < n_rows) {
                sums[r] = fmaf(x[(size_t) (row0 + r) * hidden + i], value, sums[r]);
            }
        }
    }
    for (int r = 0; r < SCORE_ROWS && row0 + r < n_rows; r++) {
        float sum = block_sum<SCORE_THREADS>(sums[r]);
        if (threadIdx.x == 0) {
            scores[(size_t) (row0 + r) * n_experts + expert] = 1.0f / (1.0f + expf(-sum));
        }
    }
}

// The same for many rows. Grid: tiles of experts, tiles of rows.
static __global__ void __launch_bounds__(EXACT_THREADS)
score_tiles(const float *x, struct mat weight, float *scores, int n_rows)
{
    __shared__ int32_t rows[EXACT_ROWS];
    int row0 = blockIdx.y * EXACT_ROWS, n0 = blockIdx.x * EXACT_N;
    if (threadIdx.x < EXACT_ROWS) {
        int row = row0 + threadIdx.x;
        rows[threadIdx.x] = row < n_rows ? row : n_rows - 1;
    }
    __syncthreads();
    float out[4];
    exact_tile(weight, DTYPE_F32, sizeof(float), n0, x, weight.k, rows, false, out);
    int row = row0 + threadIdx.x / 16;
    for (int i = 0; i < 4; i++) {
        int expert = n0 + threadIdx.x % 16 * 4 + i;
        if (row < n_rows && expert < weight.n) {
            scores[(size_t) row * weight.n + expert] = 1.0f / (1.0f + expf(-out[i]));
        }
    }
}

// The index of the first of the largest values among those that are open, over the warp; -1 if
// none is.
static __device__ int first_largest(const float *values, const uint8_t *open, int n)
{
    float best = 0;
    int at = -1;
    for (int i = threadIdx.x; i < n; i += WARP) {
        if (open[i] && (at < 0 || values[i] > best)) {
            best = values[i];
            at = i;
        }
    }
#pragma unroll
    for (int lane = WARP / 2; lane > 0; lane /= 2) {
        float other = __shfl_xor_sync(~0u, best, lane);
        int other_at = __shfl_xor_sync(~0u, at, lane);
        bool take = other_at >= 0 &&
                    (at < 0 || other > best || (other == best && other_at < at));
        if (take) {
            best = other;
            at = other_at;
        }
    }
    return at;
}

static __device__ float group_score(const float *biased, int size)
{
    float first = biased[0], second = -INFINITY;
    for (int i = 1; i < size; i++) {
        if (biased[i] > first) {
            second = first;
            first = biased[i];
        } else if (biased[i] > second) {
            second = biased[i];
        }
    }
    return size > 1 ? first + second : first;
}

// One warp a row. Shared: biased (n_experts), groups (n_groups), then open, taken (n_experts) and
// left (n_groups) bytes.
static __global__ void choose(struct router r, const float *all_scores, int32_t *all_chosen,
                              float *all_weights)
{
    extern __shared__ float biased[];
    float *groups = biased + r.n_experts;
    uint8_t *open = (uint8_t *) (groups + r.n_groups);
    uint8_t *taken = open + r.n_experts, *left = taken + r.n_experts;
    const float *scores = all_scores + (size_t) blockIdx.x * r.n_experts;
    int32_t *chosen = all_chosen + (size_t) blockIdx.x * r.n_chosen;
    float *weights = all_weights + (size_t) blockIdx.x * r.n_chosen;
    int size = r.n_experts / r.n_groups;
    for (int i = threadIdx.x; i < r.n_experts; i += WARP) {
        float c = scores[i] + r.bias[i];
        biased[i] = isnan(c) ? -INFINITY : c; // broken input still gets distinct experts
        open[i] = taken[i] = 0;
    }
    __syncwarp();
    for (int g = threadIdx.x; g < r.n_groups; g += WARP) {
        groups[g] = group_score(biased + (size_t) g * size, size);
        left[g] = 1;
    }
    __syncwarp();
    for (int kept = 0; kept < r.n_groups_kept; kept++) {
        int g = first_largest(groups, left, r.n_groups);
        if (g < 0) break;
        if (threadIdx.x == 0) left[g] = 0;
        for (int i = threadIdx.x; i < size; i += WARP) open[g * size + i] = 1;
        __syncwarp();
    }
    float sum = 0;
    for (int k = 0; k < r.n_chosen; k++) {
        int best = first_largest(biased, open, r.n_experts);
        for (int i = 0; best < 0; i++) { // the kept groups are used up: all others tie
            if (!taken[i]) best = i;
        }
        sum += scores[best];
        __syncwarp();
        if (threadIdx.x == 0) {
            open[best] = 0;
            taken[best] = 1;
            chosen[k] = best;
            weights[k] = scores[best];
        }
        __syncwarp();
    }
    for (int k = threadIdx.x; k < r.n_chosen; k += WARP) {
        float weight = weights[k];
        if (r.normalize) weight /= sum + 1e-20f;
        weights[k] = weight * r.scaling;
    }
}

void cuda_route(struct device *d, const struct router *r, const void *x, int32_t *chosen,
                float *weights, int n_rows)
{
    check(r->n_experts <= MODEL_EXPERTS_MAX && r->n_chosen <= r->n_experts);
    check(n_rows <= d->shape.max_rows && r->n_experts <= d->shape.n_experts);
    if (n_rows == 0) return;
    const float *from = (const float *) x;
    // In exact mode a row's sum may not depend on how many there are.
    bool tiled = n_rows >= TILE_ROWS && d->precision != PRECISION_F32 &&
                 r->hidden % SCALE_BLOCK == 0;
    if (tiled) {
        struct mat weight = {};
        weight.rows = (const uint8_t *) r->weight;
        weight.n = r->n_experts;
        weight.k = r->hidden;
        dim3 grid((unsigned) ceil_div(r->n_experts, EXACT_N),
                  (unsigned) ceil_div(n_rows, EXACT_ROWS));
        score_tiles<<<grid, EXACT_THREADS, 0, d->stream>>>(from, weight, d->scratch.scores,
                                                           n_rows);
    } else {
        dim3 grid((unsigned) r->n_experts, (unsigned) ceil_div(n_rows, SCORE_ROWS));
        score<<<grid, SCORE_THREADS, 0, d->stream>>>(from, r->weight, r->n_experts, r->hidden,
                                                     d->scratch.scores, n_rows);
    }
    device_launched(d, "route");
    size_t shared = (size_t) r->n_experts * 6 + (size_t) r->n_groups * 5;
    choose<<<n_rows, WARP, shared, d->stream>>>(*r, d->scratch.scores, chosen, weights);
    device_launched(d, "route");
}
