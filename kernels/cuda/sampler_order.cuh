// The work of sampler_choose.cu: what is kept of each row, and the order in which blocks take parts
// of the rows' phases.
#ifndef PENSTOCK_KERNELS_CUDA_SAMPLER_ORDER_CUH
#define PENSTOCK_KERNELS_CUDA_SAMPLER_ORDER_CUH

#include "kernels/cuda/sampler_lists.cuh"

enum {
    // Of a row are published at most: lists, masses, tests twice; two searches, ties, masses.
    SLOTS = SAMPLER_DEVICE_BATCH * SAMPLER_PHASES,
    TRIALS = SAMPLER_TRIALS,
    LIST = SAMPLER_CANDIDATES_MAX, LANE_ENTRIES = LIST / WARP,
};

static const unsigned NOTHING = ~0u;

enum phase {
    PHASE_PENALTIES, // in place; the first phase of rows that have them
    PHASE_LISTS,     // maxima of blocks; in the end the best tokens, and what those decide
    PHASE_MASSES,    // of all logits; in the end draws among them
    PHASE_TESTS,     // the mass before drawn tokens
    PHASE_SEARCH,    // a round of the search of a cut-off: before the masses, or trials are out
    PHASE_TIES,      // which of the logits equal to the cut-off are kept
    PHASE_END,       // no phase: all rows have chosen
};

enum fate {
    FATE_OUT,  // a trial's token is not kept
    FATE_KEPT, // it is
    FATE_TEST, // the mass before it tells
};

// The search of a cut-off, as kernels/sampler_narrow.h has it.
struct search {
    bool by_mass; // else by count
    int round;
    uint32_t prefix;
    uint64_t want, above; // still to be reached among the keys with the prefix; mass beyond these
};

// What a row's phases leave to the next; written by the block that ends a phase.
struct record {
    struct sampler_wish wish;
    struct softmax softmax, raw_softmax;
    uint64_t chosen; // ENTRY_NONE: masses are for the draw
    float above;     // which is among the logits beyond this,
    int tie_end;     // and those equal at indices below
    bool raw, same;  // a mass of the raw logits is wanted; it is the draw's
    bool searched;
    struct search search;
    uint64_t n_ties; // equal ones that are kept, where not all are
    uint64_t raw_total, need;
    uint64_t trials[TRIALS]; // their tokens' entries
    uint8_t fates[TRIALS];
    int n_tests, first, n_tested; // so far; trials that are tested: n_tested of fate FATE_TEST
    unsigned long long raw_sum, before[TRIALS];
    uint64_t entries[LIST];
};

// Which parts of which phases are to be done. First phases come in the order of rows, others in the
// order in which they are published.
struct queue {
    unsigned begun;     // parts of first phases that were taken
    unsigned taken;     // parts of published phases that were taken, or are waited for
    unsigned published; // phases
    unsigned finished;  // rows
    unsigned slots[SLOTS]; // row * PHASE_END + phase; 0: not published yet
    unsigned done[SAMPLER_DEVICE_BATCH]; // parts that have ended of the row's phase
};

static_assert(sizeof(struct record) <= SAMPLER_RECORD_BYTES, "the plan has room for it");
static_assert(sizeof(struct queue) <= SAMPLER_QUEUE_BYTES, "the plan has room for it");
static_assert(sizeof(struct sampler_wish) % sizeof(uint32_t) == 0, "copied by words");

struct order {
    struct sampler_view v;
    const struct sampler_wish *wishes;
    struct sampler_choice *choices;
    struct record *records;
    struct queue *queue, *next; // next: of the next call, to be emptied
    int n, parts;               // rows; parts of each phase
    bool aligned;
    uint8_t row[SAMPLER_DEVICE_BATCH];   // of the view
    uint8_t first[SAMPLER_DEVICE_BATCH]; // the row's first phase
};

static_assert(SAMPLER_DEVICE_BATCH <= UINT8_MAX + 1, "rows are bytes");

struct task {
    int phase, i, part;
};

struct room {
    struct task task;
    bool last;
    float table[8];
    unsigned long long sums[TRIALS][WARPS];
    uint64_t trials[TRIALS], draw, chosen;
    int n_kept;
    struct sampler_wish wish; // of penalties
    enum fate fates[TRIALS];
    struct selection s;
};

// --- the queue. By thread 0 of a block.

static __device__ unsigned look(const unsigned *at) { return *(const volatile unsigned *) at; }

// A block that waits has taken a part that nobody else will do; those of first phases, which wait
// for nothing, are done meanwhile. So every part that is waited for is reached.
static __device__ struct task next_task(const struct order &o, unsigned *taken, bool *first)
{
    struct queue *q = o.queue;
    unsigned parts = o.parts;
    for (;;) {
        if (*taken == NOTHING && (!*first || look(&q->published) * parts > look(&q->taken))) {
            *taken = atomicAdd(&q->taken, 1);
        }
        if (*taken != NOTHING) {
            unsigned slot = *taken / parts, part = *taken % parts;
            unsigned what = slot < SLOTS ? look(&q->slots[slot]) : 0;
            if (what != 0) {
                *taken = NOTHING;
                __threadfence();
                return {(int) (what % PHASE_END), (int) (what / PHASE_END), (int) part};
            }
        }
        if (*first) {
            unsigned at = atomicAdd(&q->begun, 1);
            *first = at < o.n * parts;
            if (*first) return {o.first[at / parts], (int) (at / parts), (int) (at % parts)};
        } else if (look(&q->finished) == (unsigned) o.n) {
            return {PHASE_END, 0, 0};
        } else {
            __nanosleep(50);
        }
    }
}

// What the block's threads wrote before the last barrier is seen by who takes the parts.
static __device__ void publish(const struct order &o, int i, enum phase phase)
{
    __threadfence();
    unsigned slot = atomicAdd(&o.queue->published, 1);
    *(volatile unsigned *) &o.queue->slots[slot] = (unsigned) (i * PHASE_END + phase);
}

static __device__ __noinline__ void finish(const struct order &o, int i, enum sampler_head head,
                                           uint64_t entry)
{
    struct sampler_choice *c = &o.choices[i];
    c->head = head;
    c->n_tests = head == HEAD_GOOD ? o.records[i].n_tests : 0;
    c->searched = head == HEAD_GOOD && o.records[i].searched;
    c->id = (int32_t) (uint32_t) entry;
    c->logit = entry_logit_on(entry);
    c->raw_total = head == HEAD_GOOD ? o.records[i].raw_total : 0;
    atomicAdd(&o.queue->finished, 1);
}

// Whether this was the last part of the phase. By all threads; thread 0 has passed its sums on.
static __device__ bool ends_phase(const struct order &o, struct room *room, int i)
{
    if (threadIdx.x == 0) {
        __threadfence();
        unsigned last = o.parts - 1;
        room->last = atomicInc(&o.queue->done[i], last) == last;
        if (room->last) __threadfence();
    }
    __syncthreads();
    return room->last;
}

#endif
