// Sums in shares over pinned memory of the host. A block of threads takes tiles of all shares, a
// word a thread (comm_words.cuh), in three steps:
//   1. give: it writes the tile of each other rank's share where that rank reads it;
//   2. sum: it adds, in rank order, what the others wrote of its own share to its own values, and
//      writes the sum where all read it;
//   3. take: it reads the others' sums. Where values are rounded, all ranks take the rounded sum,
//      and so have the same bits.
// Steps of several tiles overlap, so that bytes go both ways at once.
//
// One place is enough for each word. Who writes the next sum's parts has all sums of this one,
// which came after its parts were read; who writes a sum has parts that others wrote after they had
// taken the sum before. A word's flag counts the sums of its block, which is the same one on all
// ranks; it comes round after 2^32 of them.
#include "kernels/cuda/comm_shares.cuh"

#include "kernels/cuda/comm_words.cuh"

enum {
    SHARE_THREADS = CUDA_SHARES_TILE,
    DEPTH = 1, // tiles from giving a part to adding what others gave, and on to taking the sum
};

struct shares_args {
    float *x; // (n)
    size_t n;
    uint32_t *counters; // (CUDA_SHARES_BLOCKS) sums of a block so far
    const volatile uint32_t *ended;
    uint4 *mine;                 // this rank's: parts (tp, pitch) | sums (pitch)
    const uint4 *area[TP_MAX];   // of each rank
    size_t pitch, share;         // words: from a share to the next; of a share of this sum
    int tp, rank;
};

// --- a tile of values [first, end), of which each thread has those of a word

template <typename FORM>
static __device__ __forceinline__ void tile_load(const struct shares_args &a, float *tile,
                                                 size_t first, size_t end, float v[FORM::VALUES])
{
    __syncthreads(); // the tile is free
#pragma unroll
    for (int i = 0; i < FORM::VALUES; i++) {
        size_t at = first + i * SHARE_THREADS + threadIdx.x;
        tile[i * SHARE_THREADS + threadIdx.x] = at < end ? a.x[at] : 0;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < FORM::VALUES; i++) v[i] = tile[threadIdx.x * FORM::VALUES + i];
}

template <typename FORM>
static __device__ __forceinline__ void tile_store(const struct shares_args &a, float *tile,
                                                  size_t first, size_t end,
                                                  const float v[FORM::VALUES])
{
    __syncthreads();
#pragma unroll
    for (int i = 0; i < FORM::VALUES; i++) tile[threadIdx.x * FORM::VALUES + i] = v[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < FORM::VALUES; i++) {
        size_t at = first + i * SHARE_THREADS + threadIdx.x;
        if (at < end) a.x[at] = tile[i * SHARE_THREADS + threadIdx.x];
    }
}

// --- the steps of a tile that begins at word `word` of each share

template <typename FORM>
static __device__ __forceinline__ size_t value_of(const struct shares_args &a, int share,
                                                  size_t word)
{
    return ((size_t) share * a.share + word) * FORM::VALUES;
}

// Where the share's values end: what a last tile has beyond is the next share's.
template <typename FORM>
static __device__ __forceinline__ size_t end_of(const struct shares_args &a, int share)
{
    size_t end = value_of<FORM>(a, share + 1, 0);
    return end < a.n ? end : a.n;
}

template <typename FORM>
static __device__ __forceinline__ void give(const struct shares_args &a, float *tile, size_t word,
                                            uint32_t flag)
{
    for (int i = 1; i < a.tp; i++) {
        int share = (a.rank + i) % a.tp;
        float v[FORM::VALUES];
        tile_load<FORM>(a, tile, value_of<FORM>(a, share, word), end_of<FORM>(a, share), v);
        word_write(a.mine + share * a.pitch + word + threadIdx.x, FORM::pack(v, flag));
    }
}

template <typename FORM, int N>
static __device__ __forceinline__ bool sum(const struct shares_args &a, float *tile, size_t word,
                                           uint32_t flag)
{
    float own[FORM::VALUES], all[FORM::VALUES];
    size_t first_value = value_of<FORM>(a, a.rank, word), end = end_of<FORM>(a, a.rank);
    size_t at = word + threadIdx.x;
    bool goes_on = true;
    tile_load<FORM>(a, tile, first_value, end, own);
    for (int first = 0; first < a.tp; first += N) {
        uint4 w[N];
        goes_on = words_wait<N>(a.area, a.tp, a.rank, a.ended, first, a.rank * a.pitch + at, flag,
                                w) && goes_on;
#pragma unroll
        for (int i = 0; i < N; i++) {
            float part[FORM::VALUES];
            if (first + i >= a.tp) break;
            FORM::unpack(w[i], part);
#pragma unroll
            for (int k = 0; k < FORM::VALUES; k++) {
                float value = first + i == a.rank ? own[k] : part[k];
                all[k] = first + i == 0 ? value : all[k] + value;
            }
        }
    }
    word_write(a.mine + a.tp * a.pitch + at, FORM::pack(all, flag));
    tile_store<FORM>(a, tile, first_value, end, all);
    return goes_on;
}

template <typename FORM, int N>
static __device__ __forceinline__ bool take(const struct shares_args &a, float *tile, size_t word,
                                            uint32_t flag)
{
    bool goes_on = true;
    for (int first = 0; first < a.tp; first += N) {
        uint4 w[N];
        goes_on = words_wait<N>(a.area, a.tp, a.rank, a.ended, first,
                                a.tp * a.pitch + word + threadIdx.x, flag, w) && goes_on;
#pragma unroll
        for (int i = 0; i < N; i++) {
            int share = first + i;
            float v[FORM::VALUES];
            if (share >= a.tp || share == a.rank) continue;
            FORM::unpack(w[i], v);
            tile_store<FORM>(a, tile, value_of<FORM>(a, share, word), end_of<FORM>(a, share), v);
        }
    }
    return goes_on;
}

template <typename FORM, int N>
static __global__ void __launch_bounds__(SHARE_THREADS)
    add_shares(const __grid_constant__ struct shares_args a)
{
    __shared__ float tile[SHARE_THREADS * FORM::VALUES];
    uint32_t flag = a.counters[blockIdx.x] + 1;
    size_t step = (size_t) gridDim.x * SHARE_THREADS, first = (size_t) blockIdx.x * SHARE_THREADS;
    size_t late = DEPTH * step;
    bool goes_on = true; // the block's; else what it adds is of no use
    for (size_t word = first; word < a.share + 2 * late && goes_on; word += step) {
        bool mine = true;
        if (word < a.share) give<FORM>(a, tile, word, flag);
        if (word >= late && word - late < a.share) mine = sum<FORM, N>(a, tile, word - late, flag);
        if (word >= 2 * late) mine = take<FORM, N>(a, tile, word - 2 * late, flag) && mine;
        goes_on = __syncthreads_and(mine);
    }
    if (threadIdx.x == 0) a.counters[blockIdx.x] = flag;
}

// --- the launch

template <typename FORM>
static void add_piece(struct cuda_comm *c, struct shares_args a)
{
    uint64_t words = ceil_div(a.n, FORM::VALUES);
    a.share = ceil_div(words, (uint64_t) a.tp);
    unsigned blocks = (unsigned) smaller(ceil_div(a.share, SHARE_THREADS), CUDA_SHARES_BLOCKS);
    cudaStream_t s = c->device->stream;
    if (a.tp <= 2) add_shares<FORM, 2><<<blocks, SHARE_THREADS, 0, s>>>(a);
    else if (a.tp <= 4) add_shares<FORM, 4><<<blocks, SHARE_THREADS, 0, s>>>(a);
    else add_shares<FORM, 8><<<blocks, SHARE_THREADS, 0, s>>>(a);
    device_launched(c->device, "all_reduce");
}

void shares_add(struct cuda_comm *c, float *x, size_t n, bool coarse)
{
    struct shares_args a = {};
    struct cuda_comm_pinned pinned = cuda_comm_pinned(c->comm.tp);
    a.counters = (uint32_t *) (c->memory + cuda_comm_device(c->comm.tp).shares);
    a.ended = (const volatile uint32_t *) (c->pinned + pinned.ended);
    a.mine = (uint4 *) (c->pinned + pinned.shares);
    a.pitch = cuda_shares_pitch(c->comm.tp);
    a.tp = c->comm.tp;
    a.rank = c->comm.rank;
    for (int r = 0; r < a.tp; r++) {
        a.area[r] = (const uint4 *) (c->group->ranks[r].pinned + pinned.shares);
    }
    uint64_t values = coarse ? (uint64_t) word_coarse::VALUES : (uint64_t) word_exact::VALUES;
    uint64_t most = a.pitch * (uint64_t) a.tp * values;
    for (size_t at = 0; at < n; at += most) {
        a.x = x + at;
        a.n = smaller(n - at, most);
        coarse ? add_piece<word_coarse>(c, a) : add_piece<word_exact>(c, a);
    }
}
