// The work of sampler_choose.cu: what is kept of each row, and the order in which blocks take parts
// of the rows' phases.
#ifndef PENSTOCK_KERNELS_CUDA_SAMPLER_ORDER_CUH
#define PENSTOCK_KERNELS_CUDA_SAMPLER_ORDER_CUH

#include "kernels/cuda/sampler_lists.cuh"

enum {
    // Of a row are published at most: lists, masses, four tests; two searches, ties, masses.
    SLOTS = SAMPLER_CHOOSE_BATCH * SAMPLER_PHASES,
    TRIALS = SAMPLER_TRIALS,
    LIST = SAMPLER_CANDIDATES_MAX, LANE_ENTRIES = LIST / WARP,
};

static const unsigned NOTHING = ~0u;

// Blocks of logits of a warp in a part: where rows are few, and where they are many.
enum { PART_LEAST = 2, PART_MOST = 8, CHUNKS_MOST = PART_MOST * WARPS / BLOCKS };

enum phase {
    PHASE_PENALTIES, // in place; the first phase of rows that have them
    PHASE_LISTS,     // maxima of blocks; in the end the best tokens, and what those decide
    PHASE_MASSES,    // of all logits; in the end draws among them
    PHASE_TESTS,     // the mass before drawn tokens
    PHASE_SEARCH,    // a round of the search of a cut-off: before the masses, or trials are out
    PHASE_TIES,      // which of the logits equal to the cut-off are kept
    PHASE_END,       // no phase: all rows have chosen
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
    uint64_t total, raw_total; // masses: of the draw's logits, of the raw ones
    // Trials: the list's tokens up to `sure` are kept; if `closed`, no others.
    uint64_t sure, need, tested; // tested: the token whose mass before it is summed
    bool closed;
    int trial, n_tests;
    unsigned long long raw_sum, before; // in progress
    uint64_t entries[LIST];
};

struct count {
    unsigned n, apart[31]; // in a line of its own: many look, and add
};

// Which parts of which phases are to be done. First phases come in the order of rows, others in the
// order in which they are published.
struct queue {
    struct count begun;     // parts of first phases that were taken
    struct count taken;     // parts of published phases that were taken, or are waited for
    struct count published; // phases
    struct count finished;  // rows
    unsigned slots[SLOTS]; // row * PHASE_END + phase; 0: not published yet
    unsigned done[SAMPLER_CHOOSE_BATCH]; // parts that have ended of the row's phase
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
    uint8_t row[SAMPLER_CHOOSE_BATCH];   // of the view
    uint8_t first[SAMPLER_CHOOSE_BATCH]; // the row's first phase
};

static_assert(SAMPLER_CHOOSE_BATCH <= UINT8_MAX + 1, "rows are bytes");

struct task {
    int phase, i, part;
};

struct room {
    struct task task;
    bool last;
    float table[8];
    unsigned long long sums[WARPS], chunks[CHUNKS_MOST];
    uint64_t draw, chosen;
    int n_kept, chunk;
    struct sampler_wish wish; // of penalties
    struct selection s;
};

// --- the queue. By thread 0 of a block.

static __device__ unsigned look(const unsigned *at) { return *(const volatile unsigned *) at; }

// Orders what the block wrote before what comes, for all blocks, and forgets what it has cached.
static __device__ void fence_on() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// What a block has at hand: its next part of a first phase, its part of a published one or NOTHING,
// and what it saw of the queue when it took its last.
struct hand {
    unsigned first, taken, published, asked;
};

// A block that waits has taken a part that nobody else will do; those of first phases, which wait
// for nothing, are done meanwhile. So every part that is waited for is reached. Parts are asked for
// one ahead, since an answer takes as long as reading logits does.
static __device__ struct task next_task(const struct order &o, struct hand *h)
{
    struct queue *q = o.queue;
    unsigned parts = o.parts;
    struct task t = {PHASE_END, 0, 0};
    for (;;) {
        bool first = h->first < o.n * parts;
        if (h->taken == NOTHING && (!first || h->published * parts > h->asked)) {
            h->taken = atomicAdd(&q->taken.n, 1);
        }
        if (h->taken != NOTHING) {
            unsigned slot = h->taken / parts, part = h->taken % parts;
            unsigned what = slot < SLOTS ? look(&q->slots[slot]) : 0;
            if (what != 0) {
                h->taken = NOTHING;
                fence_on();
                t = {(int) (what % PHASE_END), (int) (what / PHASE_END), (int) part};
            }
        }
        if (first) {
            if (t.phase == PHASE_END) {
                t = {o.first[h->first / parts], (int) (h->first / parts), (int) (h->first % parts)};
                h->first = atomicAdd(&q->begun.n, 1);
            }
            h->published = look(&q->published.n);
            h->asked = look(&q->taken.n);
        }
        if (t.phase != PHASE_END || look(&q->finished.n) == (unsigned) o.n) return t;
        __nanosleep(200);
    }
}

// What the block's threads wrote before the last barrier is seen by who takes the parts.
static __device__ void publish(const struct order &o, int i, enum phase phase)
{
    fence_on();
    unsigned slot = atomicAdd(&o.queue->published.n, 1);
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
    atomicAdd(&o.queue->finished.n, 1);
}

// Whether this was the last part of the phase. By all threads; thread 0 has passed its sums on.
static __device__ bool ends_phase(const struct order &o, struct room *room, int i)
{
    if (threadIdx.x == 0) {
        fence_on();
        unsigned last = o.parts - 1;
        room->last = atomicInc(&o.queue->done[i], last) == last;
        if (room->last) fence_on();
    }
    __syncthreads();
    return room->last;
}

#endif
