// Large sums over pinned memory of the host with a quarter of the bytes: values travel as 8 bits,
// 64 of them with one scale. A block of threads has one piece of each rank's share at a time:
//   1. it writes the pieces of all other ranks' shares, coarse, where those read them;
//   2. it adds, in rank order, what the others wrote of its own share to its own values, and
//      writes the sum, coarse, where all read it;
//   3. it takes the sums of all other shares, and its own as the others see it: all ranks end with
//      the same bits.
// After 1 and 2 it counts up a word that the others' blocks wait for. No piece is overwritten too
// early: who is in the next turn has seen all others past 2, who writes a sum all others past 3.
// Relative error: about 0.6% a rounding, of which a value sees two.
#include "kernels/cuda/comm_coarse.cuh"

#include <cuda_bf16.h>

enum {
    COARSE_THREADS = 256,
    COARSE_EACH = CUDA_COARSE_PIECE / COARSE_THREADS, // values of a thread
    SCALE_THREADS = CUDA_COARSE_SCALED / COARSE_EACH, // that share a scale
    LOOKS = 1024,                                     // for a word, then whether all has ended
};

static_assert(COARSE_EACH == 16, "a thread's values are one 16-byte word");

struct coarse_args {
    float *x;
    size_t n;
    uint32_t *counters;              // (CUDA_COARSE_BLOCKS) turns so far
    const volatile uint32_t *ended;
    char *area[TP_MAX];              // of each rank, pinned
    int tp, rank;
};

// --- a rank's area

static __device__ __forceinline__ uint32_t *word_of(char *area, int step, int block)
{
    return (uint32_t *) area + step * CUDA_COARSE_BLOCKS + block;
}

// The piece for share k, or the sum (k = tp).
static __device__ __forceinline__ char *piece_of(char *area, int tp, int block, int k)
{
    return area + 2 * CUDA_COARSE_BLOCKS * sizeof(uint32_t) +
           (size_t) (block * (tp + 1) + k) * CUDA_COARSE_PACKET;
}

// --- 16 values of a thread

struct values {
    float x[COARSE_EACH];
};

static __device__ __forceinline__ struct values take(const struct coarse_args &a, size_t at)
{
    struct values v;
#pragma unroll
    for (int i = 0; i < COARSE_EACH; i += 4) {
        float4 x = {};
        if (at + i + 4 <= a.n) x = *(const float4 *) (a.x + at + i);
        else if (at + i < a.n) {
            x.x = a.x[at + i];
            if (at + i + 1 < a.n) x.y = a.x[at + i + 1];
            if (at + i + 2 < a.n) x.z = a.x[at + i + 2];
        }
        v.x[i] = x.x;
        v.x[i + 1] = x.y;
        v.x[i + 2] = x.z;
        v.x[i + 3] = x.w;
    }
    return v;
}

static __device__ __forceinline__ void give(const struct coarse_args &a, size_t at,
                                            const struct values &v)
{
#pragma unroll
    for (int i = 0; i < COARSE_EACH; i += 4) {
        if (at + i + 4 <= a.n) {
            *(float4 *) (a.x + at + i) = make_float4(v.x[i], v.x[i + 1], v.x[i + 2], v.x[i + 3]);
        } else {
#pragma unroll
            for (int j = i; j < i + 4; j++) {
                if (at + j < a.n) a.x[at + j] = v.x[j];
            }
        }
    }
}

// Rounds the values to 8 bits and writes them. The scale is rounded up to bf16, so that none is
// beyond 127; a value that is no finite number makes all of its scale none.
static __device__ __forceinline__ void write_coarse(char *piece, struct values *v)
{
    float most = 0;
    bool finite = true;
#pragma unroll
    for (int i = 0; i < COARSE_EACH; i++) {
        most = fmaxf(most, fabsf(v->x[i]));
        finite = finite && isfinite(v->x[i]);
    }
    for (int lane = SCALE_THREADS / 2; lane > 0; lane /= 2) {
        most = fmaxf(most, __shfl_xor_sync(~0u, most, lane));
        finite = __shfl_xor_sync(~0u, (int) finite, lane) && finite;
    }
    uint32_t bits = (__float_as_uint(most / 127.0f) + 0xffffu) & 0xffff0000u;
    if (!finite) bits = 0x7fc00000u;
    float scale = __uint_as_float(bits), per = bits == 0 ? 0 : 1.0f / scale;
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < COARSE_EACH; i++) {
        int q = __float2int_rn(v->x[i] * per);
        uint32_t byte = (uint32_t) q & 0xffu;
        word[i / 4] = i % 4 == 0 ? byte : word[i / 4] | byte << 8 * (i % 4);
        v->x[i] = (float) q * scale;
    }
    *(uint4 *) (piece + threadIdx.x * COARSE_EACH) = make_uint4(word[0], word[1], word[2], word[3]);
    if (threadIdx.x % SCALE_THREADS == 0) {
        *((uint16_t *) (piece + CUDA_COARSE_PIECE) + threadIdx.x / SCALE_THREADS) =
            (uint16_t) (bits >> 16);
    }
}

static __device__ __forceinline__ struct values read_coarse(const char *piece)
{
    uint4 w;
    uint16_t half;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
                 : "l"(piece + threadIdx.x * COARSE_EACH));
    asm volatile("ld.volatile.global.u16 %0, [%1];"
                 : "=h"(half)
                 : "l"((const uint16_t *) (piece + CUDA_COARSE_PIECE) +
                       threadIdx.x / SCALE_THREADS));
    float scale = __uint_as_float((uint32_t) half << 16);
    uint32_t word[4] = {w.x, w.y, w.z, w.w};
    struct values v;
#pragma unroll
    for (int i = 0; i < COARSE_EACH; i++) {
        v.x[i] = (float) (int8_t) (word[i / 4] >> 8 * (i % 4)) * scale;
    }
    return v;
}

// --- meetings of the blocks of one number

// What the block wrote, others see before the word.
static __device__ __forceinline__ void tell(const struct coarse_args &a, int step, uint32_t turn)
{
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) {
        *(volatile uint32_t *) word_of(a.area[a.rank], step, blockIdx.x) = turn;
    }
}

static __device__ __forceinline__ void wait(const struct coarse_args &a, int step, uint32_t turn)
{
    int r = (int) threadIdx.x;
    if (r < a.tp && r != a.rank) {
        const volatile uint32_t *word = word_of(a.area[r], step, blockIdx.x);
        for (uint32_t looks = 1; (int32_t) (*word - turn) < 0; looks++) {
            if (looks % LOOKS == 0 && *a.ended != 0) break;
        }
        __threadfence_system();
    }
    __syncthreads();
}

static __global__ void __launch_bounds__(COARSE_THREADS)
    add_coarse(const __grid_constant__ struct coarse_args a)
{
    int block = (int) blockIdx.x;
    uint32_t turn = a.counters[block];
    size_t round = (size_t) CUDA_COARSE_PIECE * a.tp;
    for (size_t base = round * block; base < a.n; base += round * gridDim.x) {
        size_t at = base + threadIdx.x * COARSE_EACH;
        turn++;
        for (int i = 1; i < a.tp; i++) {
            int k = (a.rank + i) % a.tp;
            struct values v = take(a, at + (size_t) k * CUDA_COARSE_PIECE);
            write_coarse(piece_of(a.area[a.rank], a.tp, block, k), &v);
        }
        tell(a, 0, turn);
        wait(a, 0, turn);
        size_t mine = at + (size_t) a.rank * CUDA_COARSE_PIECE;
        struct values sum;
        for (int r = 0; r < a.tp; r++) {
            struct values v = r == a.rank ? take(a, mine)
                                          : read_coarse(piece_of(a.area[r], a.tp, block, a.rank));
#pragma unroll
            for (int i = 0; i < COARSE_EACH; i++) sum.x[i] = r == 0 ? v.x[i] : sum.x[i] + v.x[i];
        }
        write_coarse(piece_of(a.area[a.rank], a.tp, block, a.tp), &sum);
        tell(a, 1, turn);
        give(a, mine, sum);
        wait(a, 1, turn);
        for (int i = 1; i < a.tp; i++) {
            int k = (a.rank + i) % a.tp;
            give(a, at + (size_t) k * CUDA_COARSE_PIECE,
                 read_coarse(piece_of(a.area[k], a.tp, block, a.tp)));
        }
    }
    __syncthreads(); // all have read the counter
    if (threadIdx.x == 0) a.counters[block] = turn;
}

void coarse_add(struct cuda_comm *c, float *x, size_t n)
{
    struct coarse_args a = {};
    size_t head = cuda_comm_pinned(c->comm.tp).coarse;
    a.x = x;
    a.n = n;
    a.counters = (uint32_t *) (c->memory + cuda_comm_device(c->comm.tp).coarse);
    a.ended = (const volatile uint32_t *) c->pinned;
    a.tp = c->comm.tp;
    a.rank = c->comm.rank;
    for (int r = 0; r < a.tp; r++) a.area[r] = c->group->ranks[r].pinned + head;
    uint64_t pieces = ceil_div(n, (uint64_t) CUDA_COARSE_PIECE * (uint64_t) a.tp);
    add_coarse<<<(unsigned) smaller(pieces, CUDA_COARSE_BLOCKS), COARSE_THREADS, 0,
                 c->device->stream>>>(a);
    device_launched(c->device, "all_reduce");
}
