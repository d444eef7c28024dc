// A sequence's KV from FP8 to bf16, for attention of many rows: they read it far more often.
#include "kernels/cuda/kv_fp8.cuh"
#include "kernels/cuda/mla_run.cuh"

enum {
    THREADS = 256,
    PARTS = 4, // of a block
    ROWS = KV_BLOCK_ROWS / PARTS,
    PIECES = (RUN_LORA + RUN_ROPE) / 8, // of a row: 8 values
};

// Grid: parts, blocks of the sequence.
static __global__ void __launch_bounds__(THREADS)
widen_kv(const struct kv_layer kv, const int32_t *blocks, uint4 *to)
{
    int id = blocks[blockIdx.y];
    if (id < 0 || id >= kv.n_blocks) __trap();
    const char *block = (const char *) kv.pool + (size_t) id * KV8_BLOCK;
    const float *scales = (const float *) (block + KV8_SCALES_AT);
    to += (size_t) blockIdx.y * KV_BLOCK_ROWS * PIECES;
    for (int i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
        int row = blockIdx.x * ROWS + i / PIECES, piece = i % PIECES;
        uint4 values;
        if (piece < RUN_LORA / 8) {
            float scale = scales[row * KV8_SCALES + piece / (KV_SCALE_VALUES / 8)];
            values = e4m3_widen_8(*((const uint2 *) (block + row * RUN_LORA) + piece),
                                  e4m3_factor(scale));
        } else {
            values = *((const uint4 *) (block + KV8_ROPE_AT + row * RUN_ROPE * 2) + piece -
                       RUN_LORA / 8);
        }
        to[row * PIECES + piece] = values;
    }
}

struct kv_layer run_widen_kv(struct device *d, const struct kv_layer *kv, const int32_t *blocks,
                             int n, char *to)
{
    dim3 grid(PARTS, (unsigned) n);
    widen_kv<<<grid, THREADS, 0, d->stream>>>(*kv, blocks, (uint4 *) to);
    device_launched(d, "mla_run");
    return {to, n, false};
}
