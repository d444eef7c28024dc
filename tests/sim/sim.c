#include "tests/sim/sim.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define SWITCH_BEGINS(save, bottom, size) __sanitizer_start_switch_fiber(save, bottom, size)
#define SWITCH_ENDS(save, bottom, size) __sanitizer_finish_switch_fiber(save, bottom, size)
#else
#define SWITCH_BEGINS(save, bottom, size) ((void) 0)
#define SWITCH_ENDS(save, bottom, size) ((void) 0)
#endif

enum { PROCS_MAX = 4096, STACK_BYTES = 1 << 20, CHUNK_BYTES = 1 << 20, TEXT_MAX = 1024 };

#define WALL_BASE_MS 1767225600000ll // 2026-01-01, Unix time

struct entry {
    int64_t ns;
    uint64_t order; // of what is due at the same time the first that was asked for
    sim_fn *fn;
    void *arg;
};

struct sim_proc {
    char name[SIM_NAME_MAX];
    sim_fn *main;
    void *arg;
    ucontext_t context;
    void *stack, *fake_stack;
    bool alive, runs, woken;
    int64_t stopped_ns; // no turn earlier
    int64_t alarm_ns;   // of its sleep; the agenda may hold earlier ones that are void
};

struct chunk {
    struct chunk *next;
    size_t used;
    _Alignas(16) char bytes[];
};

static struct {
    uint64_t seed, random;
    bool trace;
    int64_t now_ns, wake_ns;
    int64_t spent_ns; // by `self` in this turn
    uint64_t order;
    struct entry *heap; // kept over seeds
    size_t n_heap, heap_room;
    struct sim_proc *procs[PROCS_MAX];
    int n_procs;
    struct sim_proc *self;
    ucontext_t agenda;
    const void *agenda_stack;
    size_t agenda_bytes;
    void *stacks[PROCS_MAX]; // free ones, kept over seeds
    int n_stacks;
    struct chunk *chunks;
    void (*slept)(struct sim_proc *p);
    void (*died)(struct sim_proc *p);
} sim;

// --- memory

void *sim_alloc(size_t n)
{
    n = (n + 15) / 16 * 16;
    struct chunk *c = sim.chunks;
    if (c == NULL || c->used + n > CHUNK_BYTES) {
        size_t room = n > CHUNK_BYTES ? n : CHUNK_BYTES;
        c = calloc(1, sizeof *c + room);
        if (c == NULL) sim_fail("no memory for the simulation");
        c->next = sim.chunks;
        sim.chunks = c;
        if (n > CHUNK_BYTES) c->used = CHUNK_BYTES; // it is full
        else c->used = n;
        return c->bytes;
    }
    void *at = c->bytes + c->used;
    c->used += n;
    return at;
}

// --- words

static void tell(const char *kind, const char *format, va_list args)
{
    char text[TEXT_MAX];
    vsnprintf(text, sizeof text, format, args);
    printf("%12.6f %-8s %s%s\n", (double) sim.now_ns / 1e9,
           sim.self != NULL ? sim.self->name : "-", kind, text);
}

void sim_say(const char *format, ...)
{
    va_list args;
    if (!sim.trace) return;
    va_start(args, format);
    tell("", format, args);
    va_end(args);
}

bool sim_traced(void) { return sim.trace; }

void sim_fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    printf("seed %llu:\n", (unsigned long long) sim.seed);
    tell("BROKEN: ", format, args);
    va_end(args);
    fflush(stdout);
    _exit(1);
}

// --- clock, chance, agenda

int64_t sim_now(void) { return sim.now_ns + sim.spent_ns; }

void sim_spend(int64_t ns) { sim.spent_ns += ns; }

bool sim_spent(void) { return sim.spent_ns > 0; }

int64_t sim_wall_ms(int64_t ns) { return WALL_BASE_MS + ns / SIM_MS; }

// Splitmix64 (Steele, Lea, Flood 2014).
uint64_t sim_random(void)
{
    uint64_t z = sim.random += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

int64_t sim_between(int64_t least, int64_t most)
{
    if (most <= least) return least;
    return least + (int64_t) (sim_random() % (uint64_t) (most - least + 1));
}

bool sim_chance(int percent) { return sim_between(0, 99) < percent; }

void sim_set_wake_ns(int64_t most) { sim.wake_ns = most; }

static bool before(const struct entry *a, const struct entry *b)
{
    return a->ns < b->ns || (a->ns == b->ns && a->order < b->order);
}

void sim_at(int64_t ns, sim_fn *fn, void *arg)
{
    if (sim.n_heap == sim.heap_room) {
        sim.heap_room = sim.heap_room > 0 ? 2 * sim.heap_room : 1024;
        sim.heap = realloc(sim.heap, sim.heap_room * sizeof *sim.heap);
        if (sim.heap == NULL) sim_fail("no memory for the agenda");
    }
    struct entry e = {ns > sim.now_ns ? ns : sim.now_ns, sim.order++, fn, arg};
    size_t i = sim.n_heap++;
    for (; i > 0 && before(&e, &sim.heap[(i - 1) / 2]); i = (i - 1) / 2) {
        sim.heap[i] = sim.heap[(i - 1) / 2];
    }
    sim.heap[i] = e;
}

static struct entry take_next(void)
{
    struct entry first = sim.heap[0], last = sim.heap[--sim.n_heap];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= sim.n_heap) break;
        if (child + 1 < sim.n_heap && before(&sim.heap[child + 1], &sim.heap[child])) child++;
        if (!before(&sim.heap[child], &last)) break;
        sim.heap[i] = sim.heap[child];
        i = child;
    }
    if (sim.n_heap > 0) sim.heap[i] = last;
    return first;
}

bool sim_step(int64_t until_ns)
{
    if (sim.n_heap == 0 || sim.heap[0].ns > until_ns) {
        if (until_ns > sim.now_ns) sim.now_ns = until_ns;
        return false;
    }
    struct entry e = take_next();
    sim.now_ns = e.ns;
    e.fn(e.arg);
    return true;
}

// --- processes

static void on_first_turn(void)
{
    struct sim_proc *p = sim.self;
    SWITCH_ENDS(NULL, &sim.agenda_stack, &sim.agenda_bytes);
    p->main(p->arg);
    p->alive = false;
    sim.self = NULL;
    SWITCH_BEGINS(NULL, sim.agenda_stack, sim.agenda_bytes);
    setcontext(&sim.agenda);
}

static void free_stack(struct sim_proc *p)
{
    if (p->stack != NULL && sim.n_stacks < PROCS_MAX) sim.stacks[sim.n_stacks++] = p->stack;
    p->stack = NULL;
}

static void give_turn(void *arg)
{
    struct sim_proc *p = arg;
    p->woken = false;
    if (!p->alive) return;
    if (sim.now_ns < p->stopped_ns) {
        p->woken = true;
        sim_at(p->stopped_ns, give_turn, p);
        return;
    }
    sim.self = p;
    void *save = NULL;
    (void) save;
    SWITCH_BEGINS(&save, p->stack, STACK_BYTES);
    swapcontext(&sim.agenda, &p->context);
    SWITCH_ENDS(save, NULL, NULL);
    sim.self = NULL;
    if (sim.spent_ns > 0) p->stopped_ns = sim.now_ns + sim.spent_ns;
    sim.spent_ns = 0;
    if (!p->alive) {
        free_stack(p);
        if (sim.died != NULL) sim.died(p);
    } else if (sim.slept != NULL) {
        sim.slept(p);
    }
}

static void *new_stack(void)
{
    if (sim.n_stacks > 0) return sim.stacks[--sim.n_stacks];
    void *s = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s == MAP_FAILED) sim_fail("no memory for a stack");
    return s;
}

// Apart from all else, since compilers take getcontext for a function that returns twice.
__attribute__((noinline)) static void make_context(struct sim_proc *p)
{
    getcontext(&p->context);
    p->context.uc_stack.ss_sp = p->stack;
    p->context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&p->context, on_first_turn, 0);
}

struct sim_proc *sim_spawn(const char *name, sim_fn *main, void *arg)
{
    struct sim_proc *p = sim_alloc(sizeof *p);
    if (sim.n_procs == PROCS_MAX) sim_fail("more than %d processes", PROCS_MAX);
    sim.procs[sim.n_procs++] = p;
    snprintf(p->name, sizeof p->name, "%s", name);
    p->main = main;
    p->arg = arg;
    p->alive = true;
    p->stack = new_stack();
    make_context(p);
    sim_wake(p);
    return p;
}

void sim_kill(struct sim_proc *p)
{
    if (!p->alive) return;
    p->alive = false;
    free_stack(p);
    if (sim.died != NULL) sim.died(p);
}

void sim_stop(struct sim_proc *p, int64_t for_ns) { p->stopped_ns = sim.now_ns + for_ns; }

bool sim_alive(const struct sim_proc *p) { return p->alive; }

struct sim_proc *sim_self(void) { return sim.self; }

void sim_wake(struct sim_proc *p)
{
    if (p == NULL || p->woken || !p->alive) return;
    p->woken = true;
    sim_at(sim.now_ns + (sim.wake_ns > 0 ? sim_between(0, sim.wake_ns) : 0), give_turn, p);
}

static void on_alarm(void *arg)
{
    struct sim_proc *p = arg;
    if (p->alive && !p->woken && sim.now_ns >= p->alarm_ns) give_turn(p);
}

void sim_sleep(int64_t until_ns)
{
    struct sim_proc *p = sim.self;
    if (until_ns < sim_now()) until_ns = sim_now();
    p->alarm_ns = until_ns;
    if (until_ns < INT64_MAX) sim_at(until_ns, on_alarm, p);
    SWITCH_BEGINS(&p->fake_stack, sim.agenda_stack, sim.agenda_bytes);
    swapcontext(&p->context, &sim.agenda);
    SWITCH_ENDS(p->fake_stack, NULL, NULL);
    p->alarm_ns = INT64_MAX;
}

void sim_watch(void (*slept)(struct sim_proc *p), void (*died)(struct sim_proc *p))
{
    sim.slept = slept;
    sim.died = died;
}

// --- a seed's life

void sim_begin(uint64_t seed, bool trace)
{
    sim.seed = sim.random = seed;
    sim.trace = trace;
    sim.now_ns = 0;
    sim.wake_ns = sim.spent_ns = 0;
    sim.order = 0;
    sim.n_heap = 0;
    sim.n_procs = 0;
    sim.self = NULL;
    for (int i = 0; i < 4; i++) sim_random(); // small seeds are alike at first
}

void sim_end(void)
{
    for (int i = 0; i < sim.n_procs; i++) {
        if (sim.procs[i]->stack != NULL) free_stack(sim.procs[i]);
    }
    while (sim.chunks != NULL) {
        struct chunk *c = sim.chunks;
        sim.chunks = c->next;
        free(c);
    }
}
