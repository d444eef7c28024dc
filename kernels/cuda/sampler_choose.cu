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
    const struct sampler_wish &w = r->wish;
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
static __device__ __noinline__ void do_lists(const struct order &o, struct room *room,
                                             const struct task &t)
{
    enum { WORDS = sizeof(struct sampler_wish) / sizeof(uint32_t), N = 2 };
    int thread = thread_now(), lane = thread % WARP, n = o.v.vocab_n;
    int row = o.row[t.i], block = (t.part * WARPS + thread / WARP) * PER;
    int n_blocks = count_of(n, SAMPLER_BLOCK);
    bool brings = t.part == 0 && thread < WORDS;
    uint32_t word = brings ? ((const uint32_t *) &o.wishes[t.i])[thread] : 0, mine = 0;
    sweep<PER, N, ALIGNED>(o, row, block, lane, ~0u, [&](float x[][LANE_LOGITS], int begin) {
#pragma unroll
        for (int b = 0; b < N; b++) {
            uint32_t key = largest_on(x[b]);
            if (lane == begin + b) mine = key;
        }
    });
    if (lane < PER && block + lane < n_blocks) {
        o.v.parts.maxima[(size_t) row * n_blocks + block + lane] = mine;
    }
    if (brings) ((uint32_t *) &o.records[t.i].wish)[thread] = word;
    __syncthreads();
    if (ends_phase(o, room, t.i)) decide_lists(o, room, t.i);
}

// --- masses

// By all threads: goes on with the trials from k on, as row_decide_trial does.
static __device__ __noinline__ void try_on(const struct order &o, struct room *room, int i, int k)
{
    struct record *r = &o.records[i];
    const struct sampler_wish &w = r->wish;
    uint64_t random = random_on(w.seed, w.pos);
    for (; k < TRIALS; k++) {
        uint64_t draw = __umul64hi(random_on(random, (uint64_t) k), r->total);
        uint64_t entry = walk(o, room, i, draw);
        bool kept = entry <= r->sure;
        bool reaches = exponent_on(&r->softmax, entry_logit_on(entry)) >= w.least;
        if (!kept && (r->closed || !reaches)) continue;
        if (threadIdx.x != 0) return;
        if (kept) {
            finish(o, i, HEAD_GOOD, entry);
            return;
        }
        r->trial = k;
        r->tested = entry;
        r->before = 0;
        publish(o, i, PHASE_TESTS);
        return;
    }
    if (r->closed) {
        if ((int) threadIdx.x < w.n_list) room->s.entries[threadIdx.x] = r->entries[threadIdx.x];
        __syncthreads();
        uint64_t chosen = draw_listed(room, w, r->softmax, r->need, o.v.vocab_n);
        if (threadIdx.x == 0) finish(o, i, HEAD_GOOD, chosen);
    } else if (threadIdx.x == 0) {
        begin_search(o, i, true, r->need);
    }
}

// One warp, once the mass of all is known: which of the list's tokens are kept (row_decide_total).
static __device__ __noinline__ void decide_total(const struct order &o, struct room *room, int i)
{
    struct record *r = &o.records[i];
    const struct sampler_wish &w = r->wish;
    const struct softmax softmax = r->softmax;
    uint64_t need = need_on(w, r->total), sum = 0;
    int limit = w.n_list < o.v.vocab_n ? w.n_list : o.v.vocab_n;
    struct lane_list l = read_list(r->entries, limit, room->table, softmax, w.least);
    int n = count_before(l, l.n_reach, need);
    for (int j = 0; j < LANE_ENTRIES; j++) {
        sum += (int) threadIdx.x * LANE_ENTRIES + j < n ? l.mass[j] : 0;
    }
    sum = warp_sum(sum);
    if (threadIdx.x != 0) return;
    r->need = need;
    r->sure = r->entries[n - 1];
    r->closed = n < limit || sum >= need || limit == o.v.vocab_n;
}

// By all threads, after the sums of all chunks.
static __device__ __noinline__ void decide_masses(const struct order &o, struct room *room, int i)
{
    struct record *r = &o.records[i];
    uint64_t chosen = r->chosen, total = 0;
    bool tries = r->wish.top_p != 0 && !r->searched;
    int n = count_of(o.v.vocab_n, SAMPLER_CHUNK);
    const uint64_t *chunks = o.v.parts.chunks + (size_t) o.row[i] * n;
    if (threadIdx.x < WARP) {
        for (int c = threadIdx.x; c < n; c += WARP) total += chunks[c];
        total = warp_sum(total);
        if (threadIdx.x == 0) {
            r->total = total;
            if (r->raw) r->raw_total = r->same ? total : __ldcg(&r->raw_sum);
            r->raw = false;
        }
        __syncwarp();
        if (tries && chosen == ENTRY_NONE) decide_total(o, room, i);
    }
    __syncthreads();
    if (chosen == ENTRY_NONE && tries) {
        try_on(o, room, i, 0);
        return;
    }
    if (chosen == ENTRY_NONE) {
        chosen = walk(o, room, i, __umul64hi(random_on(r->wish.seed, r->wish.pos), r->total));
    }
    if (threadIdx.x == 0) finish(o, i, HEAD_GOOD, chosen);
}

template <int PER, bool ALIGNED>
static __device__ void do_masses(const struct order &o, struct room *room, const struct task &t)
{
    struct record *r = &o.records[t.i];
    bool drawn = r->chosen == ENTRY_NONE, raw = r->raw && !r->same;
    if (drawn) {
        add_part<PER, ALIGNED>(o, room, t, &r->softmax, r->above, r->tie_end, true, NULL);
    }
    if (raw) add_part<PER, ALIGNED>(o, room, t, &r->raw_softmax, -INFINITY, 0, false, &r->raw_sum);
    if (ends_phase(o, room, t.i)) decide_masses(o, room, t.i);
}

// --- tests

// By all threads, after the mass before the trial's token: row_decide_test.
static __device__ __noinline__ void decide_tests(const struct order &o, struct room *room, int i)
{
    struct record *r = &o.records[i];
    bool kept = __ldcg(&r->before) < r->need;
    if (threadIdx.x == 0) r->n_tests++;
    if (!kept) {
        try_on(o, room, i, r->trial + 1);
    } else if (threadIdx.x == 0) {
        finish(o, i, HEAD_GOOD, r->tested);
    }
}

template <int PER, bool ALIGNED>
static __device__ void do_tests(const struct order &o, struct room *room, const struct task &t)
{
    struct record *r = &o.records[t.i];
    float logit = entry_logit_on(r->tested);
    int at = (int) (uint32_t) r->tested;
    add_part<PER, ALIGNED>(o, room, t, &r->softmax, logit, at, false, &r->before);
    if (ends_phase(o, room, t.i)) decide_tests(o, room, t.i);
}

// --- the kernel

template <int PER, bool ALIGNED>
static __global__ void __launch_bounds__(THREADS, RESIDENT)
choose_tokens(const __grid_constant__ struct order o)
{
    __shared__ struct room room;
    struct hand hand = {0, NOTHING, 0, 0}; // thread 0's
    if (threadIdx.x == 0) hand.first = atomicAdd(&o.queue->begun.n, 1);
    put_table(room.table);
    if (blockIdx.x == 0) {
        for (int k = threadIdx.x; k < (int) (sizeof *o.next / sizeof(unsigned)); k += THREADS) {
            ((unsigned *) o.next)[k] = 0;
        }
    }
    for (;;) {
        if (threadIdx.x == 0) room.task = next_task(o, &hand);
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
    uint64_t room = d->block_bytes / sizeof(struct room);
    uint64_t most = (uint64_t) d->n_sm * smaller(room, RESIDENT);
    uint64_t large = (uint64_t) n * ceil_div(blocks, WARPS * PART_MOST);
    int per = o.aligned && large >= 2 * (uint64_t) d->n_sm ? PART_MOST : PART_LEAST;
    o.parts = (int) ceil_div(blocks, (uint64_t) (WARPS * per));
    unsigned grid = (unsigned) smaller(most, (uint64_t) n * o.parts);
    if (per == PART_MOST) {
        choose_tokens<PART_MOST, true><<<grid, THREADS, 0, d->stream>>>(o);
    } else if (o.aligned) {
        choose_tokens<PART_LEAST, true><<<grid, THREADS, 0, d->stream>>>(o);
    } else {
        choose_tokens<PART_LEAST, false><<<grid, THREADS, 0, d->stream>>>(o);
    }
    device_launched(d, "the sampler's choice");
}
