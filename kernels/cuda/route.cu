// The router (noaux_tc): sigmoid scores of all experts, then the choice, row by row. All f32.
#include "kernels/cuda/device.cuh"

#include "kernels/cuda/reduce.cuh"

#include <float.h>

enum {
    SCORE_WARPS = 8,
    SCORE_ROWS = 4, // of one warp, which reads an expert's weights once for all of them
    CHOOSE_THREADS = 128,
};

// A warp takes one expert and SCORE_ROWS rows. A row's sum has the same order whatever its place.
static __global__ void score(const float *x, const float *weight, int n_experts, int hidden,
                             float *scores, int n_rows)
{
    int expert = blockIdx.x * SCORE_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int row0 = blockIdx.y * SCORE_ROWS;
    if (expert >= n_experts) return;
    const float *w = weight + (size_t) expert * hidden;
    const float *from[SCORE_ROWS];
    float sums[SCORE_ROWS] = {};
    for (int r = 0; r < SCORE_ROWS; r++) {
        from[r] = x + (size_t) (row0 + r < n_rows ? row0 + r : n_rows - 1) * hidden;
    }
#pragma unroll 8
    for (int i = lane; i < hidden; i += WARP) {
        float value = w[i];
        for (int r = 0; r < SCORE_ROWS; r++) sums[r] = fmaf(from[r][i], value, sums[r]);
    }
    for (int r = 0; r < SCORE_ROWS; r++) {
        float sum = warp_sum(sums[r]);
        if (lane == 0 && row0 + r < n_rows) {
            scores[(size_t) (row0 + r) * n_experts + expert] = 1.0f / (1.0f + expf(-sum));
        }
    }
}

// The index of the first of the largest values among those that are open, over the block; -1 if
// none is. `keys` has room for a warp's worth each.
static __device__ int first_largest(const float *values, const uint8_t *open, int n)
{
    __shared__ float most[CHOOSE_THREADS / WARP];
    __shared__ int where[CHOOSE_THREADS / WARP];
    float best = 0;
    int at = -1;
    for (int i = threadIdx.x; i < n; i += CHOOSE_THREADS) {
        if (open[i] && (at < 0 || values[i] > best)) {
            best = values[i];
            at = i;
        }
    }
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
    if (threadIdx.x % WARP == 0) {
        most[threadIdx.x / WARP] = best;
        where[threadIdx.x / WARP] = at;
    }
    __syncthreads();
    best = most[0];
    at = where[0];
    for (int i = 1; i < CHOOSE_THREADS / WARP; i++) {
        bool take = where[i] >= 0 &&
                    (at < 0 || most[i] > best || (most[i] == best && where[i] < at));
        if (take) {
            best = most[i];
            at = where[i];
        }
    }
    __syncthreads(); // the next call writes them
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

// One block a row. Shared: biased (n_experts), groups (n_groups), then open, taken (n_experts) and
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
    for (int i = threadIdx.x; i < r.n_experts; i += CHOOSE_THREADS) {
        float c = scores[i] + r.bias[i];
        biased[i] = isnan(c) ? -INFINITY : c; // broken input still gets distinct experts
        open[i] = taken[i] = 0;
    }
    __syncthreads();
    for (int g = threadIdx.x; g < r.n_groups; g += CHOOSE_THREADS) {
        groups[g] = group_score(biased + (size_t) g * size, size);
        left[g] = 1;
    }
    __syncthreads();
    for (int kept = 0; kept < r.n_groups_kept; kept++) {
        int g = first_largest(groups, left, r.n_groups);
        if (g < 0) break;
        if (threadIdx.x == 0) left[g] = 0;
        for (int i = threadIdx.x; i < size; i += CHOOSE_THREADS) open[g * size + i] = 1;
        __syncthreads();
    }
    float sum = 0;
    for (int k = 0; k < r.n_chosen; k++) {
        int best = first_largest(biased, open, r.n_experts);
        for (int i = 0; best < 0; i++) { // the kept groups are used up: all others tie
            if (!taken[i]) best = i;
        }
        sum += scores[best];
        __syncthreads();
        if (threadIdx.x == 0) {
            open[best] = 0;
            taken[best] = 1;
            chosen[k] = best;
            weights[k] = scores[best];
        }
        __syncthreads();
    }
    for (int k = threadIdx.x; k < r.n_chosen; k += CHOOSE_THREADS) {
        float weight = weights[k];
        if (r.normalize) weight /= sum + 1e-20f;
        weights[k] = weight * r.scaling;
    }
}

void cuda_route(struct device *d, const struct router *r, const void *x, int32_t *chosen,
                float *weights, int n_rows)
{
    check(r->n_experts <= MODEL_EXPERTS_MAX && r->n_chosen <= r->n_experts);
    if (n_rows == 0) return;
    dim3 grid((unsigned) ceil_div(r->n_experts, SCORE_WARPS),
              (unsigned) ceil_div(n_rows, SCORE_ROWS));
    score<<<grid, SCORE_WARPS * WARP, 0, d->stream>>>((const float *) x, r->weight, r->n_experts,
                                                      r->hidden, d->scratch.scores, n_rows);
    device_launched(d, "route");
    size_t shared = (size_t) r->n_experts * 6 + (size_t) r->n_groups * 5;
    choose<<<n_rows, CHOOSE_THREADS, shared, d->stream>>>(*r, d->scratch.scores, chosen, weights);
    device_launched(d, "route");
}
