#include "kernels/cuda/sampler_choose.cuh"

#include "kernels/cuda/sampler_draws.cuh"
#include "kernels/cuda/sampler_penalty.cuh"
#include "kernels/cuda/sampler_search.cuh"

enum { RESIDENT = 4 }; // blocks of a multiprocessor

// --- the lists

// By all threads, after the maxima of the row's blocks.
static __device__ __noinline__ void decide_lists(const struct order &o, struct room *room, int i)
{
    struct record *r = &o.records[i];
    const struct sampler_wish w = r->wish;
    struct selection *s = &room->s;
    uint32_t most;
    enum sampler_head head = select_list(s, o.v, o.row[i], w.n_list, o.aligned, &most);
    uint64_t first = s->entries[0];
    if (head == HEAD_GOOD && entry_logit_on(first) == -INFINITY) head = HEAD_NONE;
    if (head != HEAD_GOOD) {
        if (threadIdx.x == 0) finish(o, i, head, ENTRY_NONE);
        return;
    }
    if ((int) threadIdx.x < w.n_list) r->entries[threadIdx.x] = s->entries[threadIdx.x];
    if ((int) threadIdx.x < w.n_top) o.choices[i].top[threadIdx.x] = s->entries[threadIdx.x];
    bool drawn = w.scale != 0, raw = w.raw_scale != 0, least = w.least > -INFINITY;
    bool searches = drawn && w.top_k > LIST;
    bool listed = drawn && !searches && (w.top_k > 0 || (w.top_p == 0 && least));
    struct softmax softmax = {}, raw_softmax = {};
    if (drawn) softmax = softmax_on(most, w.scale);
    if (raw) raw_softmax = softmax_on(most, w.raw_scale);
    uint64_t chosen = drawn ? ENTRY_NONE : first;
    if (listed) chosen = draw_listed(room, w, softmax, UINT64_MAX, o.v.vocab_n);
    __syncthreads();
    if (threadIdx.x != 0) return;
    float above = -INFINITY;
    if (chosen == ENTRY_NONE && listed) above = float_below_on(softmax, w.least);
    r->softmax = softmax;
    r->raw_softmax = raw_softmax;
    r->chosen = chosen;
    r->above = above;
    r->tie_end = 0;
    r->raw = raw;
    r->searched = false;
    r->same = raw && !searches && chosen == ENTRY_NONE && above == -INFINITY && softmax.plain &&
              raw_softmax.plain && softmax.scale == raw_softmax.scale &&
              softmax.offset == raw_softmax.offset;
    r->raw_sum = r->raw_total = 0;
    r->n_tests = 0;
    o.choices[i].most = key_logit_on(most);
    if (chosen != ENTRY_NONE && !raw) {
        finish(o, i, HEAD_GOOD, chosen);
    } else if (searches) {
        begin_search(o, i, false, (uint64_t) w.top_k);
    } else {
        publish(o, i, PHASE_MASSES);
    }
}

template <int PER, bool ALIGNED>
static __device__ void do_lists(const struct order &o, struct room *room, const struct task &t)
{
    enum { WORDS = sizeof(struct sampler_wish) / sizeof(uint32_t) };
    int thread = thread_now(), lane = thread % WARP, n = o.v.vocab_n;
    int row = o.row[t.i], block = (t.part * WARPS + thread / WARP) * PER;
    int n_blocks = count_of(n, SAMPLER_BLOCK);
    bool brings = t.part == 0 && thread < WORDS;
    uint32_t word = brings ? ((const uint32_t *) &o.wishes[t.i])[thread] : 0, mine = 0;
    float x[PER][LANE_LOGITS];
    read_blocks<PER>(row_of(o.v, row), n, block * SAMPLER_BLOCK, lane, ALIGNED, x);
#pragma unroll
    for (int b = 0; b < PER; b++) {
        uint32_t key = largest_on(x[b]);
        if (lane == b) mine = key;
    }
    if (lane < PER && block + lane < n_blocks) {
        o.v.parts.maxima[(size_t) row * n_blocks + block + lane] = mine;
    }
    if (brings) ((uint32_t *) &o.records[t.i].wish)[thread] = word;
    __syncthreads();
    if (ends_phase(o, room, t.i)) decide_lists(o, room, t.i);
}

// --- masses

// Thread 0: goes on with the trials from k on, of which `most` may be tested at once.
static __device__ __noinline__ void try_on(const struct order &o, int i, int k, int most)
{
    struct record *r = &o.records[i];
    int n = 0;
    r->first = k;
    for (; k < TRIALS && n < most; k++) {
        if (r->fates[k] == FATE_KEPT) break;
        n += r->fates[k] == FATE_TEST;
    }
    r->n_tested = n;
    for (int j = 0; j < TRIALS; j++) r->before[j] = 0;
    if (n > 0) {
        publish(o, i, PHASE_TESTS);
    } else if (k < TRIALS) {
        finish(o, i, HEAD_GOOD, r->trials[k]);
    } else {
        begin_search(o, i, true, r->need);
    }
}

// By all threads, once the trials' tokens are in room->trials: row_decide_total, row_decide_trial.
static __device__ __noinline__ void decide_trials(const struct order &o, struct room *room, int i,
                                                  uint64_t total)
{
    struct record *r = &o.records[i];
    const struct sampler_wish w = r->wish;
    const struct softmax softmax = r->softmax;
    uint64_t need = need_on(w, total);
    int vocab_n = o.v.vocab_n;
    if (threadIdx.x < WARP) {
        int limit = w.n_list < vocab_n ? w.n_list : vocab_n;
        struct lane_list l = read_list(r->entries, limit, room->table, softmax, w.least);
        int n = count_before(l, l.n_reach, need);
        uint64_t sum = 0;
        for (int j = 0; j < LANE_ENTRIES; j++) {
            sum += (int) threadIdx.x * LANE_ENTRIES + j < n ? l.mass[j] : 0;
        }
        bool closed = n < limit || warp_sum(sum) >= need || limit == vocab_n;
        uint64_t sure = r->entries[n - 1];
        if (threadIdx.x < TRIALS) {
            uint64_t entry = room->trials[threadIdx.x];
            bool out = closed || !(exponent_on(&softmax, entry_logit_on(entry)) >= w.least);
            room->fates[threadIdx.x] = entry <= sure ? FATE_KEPT : out ? FATE_OUT : FATE_TEST;
        }
        if (threadIdx.x == 0) room->n_kept = closed;
    }
    __syncthreads();
    bool listed = room->n_kept != 0;
    for (int k = 0; k < TRIALS; k++) listed = listed && room->fates[k] == FATE_OUT;
    if (listed) {
        if ((int) threadIdx.x < w.n_list) room->s.entries[threadIdx.x] = r->entries[threadIdx.x];
        __syncthreads();
        uint64_t chosen = draw_listed(room, w, softmax, need, vocab_n);
        if (threadIdx.x == 0) finish(o, i, HEAD_GOOD, chosen);
        return;
    }
    if (threadIdx.x != 0) return;
    r->need = need;
    for (int k = 0; k < TRIALS; k++) {
        r->trials[k] = room->trials[k];
        r->fates[k] = (uint8_t) room->fates[k];
    }
    try_on(o, i, 0, 1);
}

// By all threads, after the sums of all chunks.
static __device__ __noinline__ void decide_masses(const struct order &o, struct room *room, int i)
{
    struct record *r = &o.records[i];
    const struct sampler_wish w = r->wish;
    const struct softmax softmax = r->softmax;
    uint64_t chosen = r->chosen, total = 0;
    if (chosen != ENTRY_NONE) {
        if (threadIdx.x != 0) return;
        r->raw_total = __ldcg(&r->raw_sum);
        finish(o, i, HEAD_GOOD, chosen);
        return;
    }
    int warp = threadIdx.x / WARP, row = o.row[i], n = count_of(o.v.vocab_n, SAMPLER_CHUNK);
    const uint64_t *chunks = o.v.parts.chunks + (size_t) row * n;
    for (int c = threadIdx.x % WARP; c < n; c += WARP) total += chunks[c];
    total = warp_sum(total);
    bool tries = w.top_p != 0 && !r->searched;
    if (warp < (tries ? TRIALS : 1)) {
        uint64_t random = philox(w.seed, w.pos);
        if (tries) random = philox(random, (uint64_t) warp);
        uint64_t entry = walk(o, row_of(o.v, row), chunks, room->table, softmax, r->above,
                              r->tie_end, __umul64hi(random, total));
        if (threadIdx.x % WARP == 0) room->trials[warp] = entry;
    }
    if (threadIdx.x == 0 && r->raw) {
        r->raw_total = r->same ? total : __ldcg(&r->raw_sum);
        r->raw = false;
    }
    __syncthreads();
    if (tries) {
        decide_trials(o, room, i, total);
    } else if (threadIdx.x == 0) {
        finish(o, i, HEAD_GOOD, room->trials[0]);
    }
}

template <int PER, bool ALIGNED>
static __device__ void do_masses(const struct order &o, struct room *room, const struct task &t)
{
    enum { OF_CHUNK = BLOCKS / PER, N = PER < AT_A_TIME ? PER : AT_A_TIME }; // warps of a chunk
    struct record *r = &o.records[t.i];
    const struct softmax softmax = r->softmax, raw_softmax = r->raw_softmax;
    bool drawn = r->chosen == ENTRY_NONE, raw = r->raw && !r->same;
    int thread = thread_now(), lane = thread % WARP, warp = thread / WARP, row = o.row[t.i];
    int block = (t.part * WARPS + warp) * PER, n_chunks = count_of(o.v.vocab_n, SAMPLER_CHUNK);
    float above = r->above;
    int tie_end = r->tie_end;
    uint32_t wanted = wanted_blocks<PER>(o, row, block, lane, [&](uint32_t key) {
        float l = key_logit_on(key);
        bool in = drawn && l >= above && !none_on(softmax, l);
        return in || (raw && !none_on(raw_softmax, l));
    });
    uint64_t sum = 0, raw_sum = 0;
#pragma unroll 1
    for (int b = 0; b < PER; b += N, wanted >>= N) {
        float x[N][LANE_LOGITS];
        read_wanted<N, ALIGNED>(o, row, block + b, lane, wanted, x);
        if (drawn && above == -INFINITY) {
            sum += sum_wanted<N>(x, wanted, room->table, softmax);
        } else if (drawn) {
            sum += sum_before<N, ALIGNED>(x, wanted, room->table, softmax, above,
                                          tie_end - (block + b) * SAMPLER_BLOCK, lane);
        }
        if (raw) raw_sum += sum_wanted<N>(x, wanted, room->table, raw_softmax);
    }
    sum = warp_sum(sum);
    raw_sum = warp_sum(raw_sum);
    if (lane == 0) room->sums[0][warp] = sum, room->sums[1][warp] = raw_sum;
    __syncthreads();
    int chunk = t.part * PER + thread;
    if (drawn && thread < PER && chunk < n_chunks) {
        uint64_t mass = 0;
        for (int k = 0; k < OF_CHUNK; k++) mass += room->sums[0][thread * OF_CHUNK + k];
        o.v.parts.chunks[(size_t) row * n_chunks + chunk] = mass;
    }
    if (raw && thread == 0) {
        for (int w = 1; w < WARPS; w++) raw_sum += room->sums[1][w];
        atomicAdd(&r->raw_sum, raw_sum);
    }
    __syncthreads();
    if (ends_phase(o, room, t.i)) decide_masses(o, room, t.i);
}

// --- tests

// Thread 0, after the mass before each token: row_decide_test.
static __device__ __noinline__ void decide_tests(const struct order &o, int i)
{
    struct record *r = &o.records[i];
    int k = r->first;
    for (int n = 0; n < r->n_tested; k++) {
        if (r->fates[k] != FATE_TEST) continue;
        r->n_tests++;
        if (__ldcg(&r->before[n++]) >= r->need) continue;
        finish(o, i, HEAD_GOOD, r->trials[k]);
        return;
    }
    try_on(o, i, k, TRIALS);
}

template <int PER, bool ALIGNED>
static __device__ void do_tests(const struct order &o, struct room *room, const struct task &t)
{
    enum { N = PER < AT_A_TIME ? PER : AT_A_TIME };
    struct record *r = &o.records[t.i];
    const struct softmax softmax = r->softmax;
    int thread = thread_now(), lane = thread % WARP, warp = thread / WARP, row = o.row[t.i];
    int n = r->n_tested;
    int block = (t.part * WARPS + warp) * PER;
    uint32_t least = NAN_KEY;
    for (int k = r->first, tested = 0; tested < n; k++) {
        if (r->fates[k] != FATE_TEST) continue;
        least = min(least, ~(uint32_t) (r->trials[k] >> 32));
        tested++;
    }
    uint32_t wanted = wanted_blocks<PER>(o, row, block, lane,
                                         [&](uint32_t key) { return key >= least; });
    for (int k = r->first, tested = 0; tested < n; k++) { // mostly one
        if (r->fates[k] != FATE_TEST) continue;
        uint64_t entry = r->trials[k], sum = 0;
        float logit = entry_logit_on(entry);
        int at = (int) (uint32_t) entry;
#pragma unroll 1
        for (int b = 0; b < PER; b += N) {
            float x[N][LANE_LOGITS];
            read_wanted<N, ALIGNED>(o, row, block + b, lane, wanted >> b, x);
            sum += sum_before<N, ALIGNED>(x, wanted >> b, room->table, softmax, logit,
                                          at - (block + b) * SAMPLER_BLOCK, lane);
        }
        sum = warp_sum(sum);
        if (lane == 0) room->sums[tested][warp] = sum;
        tested++;
    }
    __syncthreads();
    if (thread == 0) {
        for (int k = 0; k < n; k++) {
            unsigned long long all = 0;
            for (int w = 0; w < WARPS; w++) all += room->sums[k][w];
            if (all != 0) atomicAdd(&r->before[k], all);
        }
    }
    if (ends_phase(o, room, t.i) && thread == 0) decide_tests(o, t.i);
}

// --- the kernel

template <int PER, bool ALIGNED>
static __global__ void __launch_bounds__(THREADS, RESIDENT)
choose_tokens(const __grid_constant__ struct order o)
{
    __shared__ struct room room;
    unsigned taken = NOTHING; // thread 0's
    bool first = true;
    put_table(room.table);
    if (blockIdx.x == 0) {
        for (int k = threadIdx.x; k < (int) (sizeof *o.next / sizeof(unsigned)); k += THREADS) {
            ((unsigned *) o.next)[k] = 0;
        }
    }
    for (;;) {
        if (threadIdx.x == 0) room.task = next_task(o, &taken, &first);
        __syncthreads();
        const struct task t = room.task;
        if (t.phase == PHASE_PENALTIES) {
            do_penalties(o, &room, t);
        } else if (t.phase == PHASE_LISTS) {
            do_lists<PER, ALIGNED>(o, &room, t);
        } else if (t.phase == PHASE_MASSES) {
            do_masses<PER, ALIGNED>(o, &room, t);
        } else if (t.phase == PHASE_TESTS) {
            do_tests<PER, ALIGNED>(o, &room, t);
        } else if (t.phase == PHASE_SEARCH) {
            do_search<PER, ALIGNED>(o, &room, t);
        } else if (t.phase == PHASE_TIES) {
            do_ties<PER, ALIGNED>(o, &room, t);
        } else {
            return;
        }
    }
}

void sampler_choose_on(struct device *d, const struct sampler_view *v,
                       const struct sampler_wish *wishes, int n, unsigned turn,
                       struct sampler_choice *choices)
{
    if (n == 0) return;
    struct queue *queues[2];
    for (int k = 0; k < 2; k++) {
        queues[k] = (struct queue *) ((char *) v->parts.queues + k * SAMPLER_QUEUE_BYTES);
    }
    struct order o = {*v, wishes, choices, (struct record *) v->parts.records, queues[turn % 2],
                      queues[(turn + 1) % 2], n, 0, is_aligned(v), {}, {}};
    for (int i = 0; i < n; i++) {
        o.row[i] = (uint8_t) wishes[i].row;
        o.first[i] = (uint8_t) (wishes[i].n_ids > 0 ? PHASE_PENALTIES : PHASE_LISTS);
    }
    if (turn == 0) {
        size_t bins = (size_t) v->parts.batch * sizeof(struct bins);
        device_note(d, cudaMemsetAsync(v->parts.bins, 0, bins, d->stream), "choose");
        device_note(d, cudaMemsetAsync(v->parts.queues, 0, 2 * SAMPLER_QUEUE_BYTES, d->stream),
                    "choose");
    }
    uint64_t blocks = ceil_div((uint64_t) v->vocab_n, SAMPLER_BLOCK);
    uint64_t parts = ceil_div(blocks, WARPS * BLOCKS), room = d->block_bytes / sizeof(struct room);
    bool few = !o.aligned || (uint64_t) n * parts < 2 * (uint64_t) d->n_sm;
    if (few) parts = ceil_div(blocks, WARPS * FEW);
    o.parts = (int) parts;
    uint64_t most = (uint64_t) d->n_sm * smaller(room, RESIDENT);
    unsigned grid = (unsigned) smaller(most, (uint64_t) n * parts);
    if (!few) {
        choose_tokens<BLOCKS, true><<<grid, THREADS, 0, d->stream>>>(o);
    } else if (o.aligned) {
        choose_tokens<FEW, true><<<grid, THREADS, 0, d->stream>>>(o);
    } else {
        choose_tokens<FEW, false><<<grid, THREADS, 0, d->stream>>>(o);
    }
    device_launched(d, "the sampler's choice");
}
