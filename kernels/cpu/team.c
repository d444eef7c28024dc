// A round of work: the owner opens the gate, helpers enter and claim pieces, the owner closes the
// gate when no piece is left and waits until everybody is out. A helper that wakes too late finds
// the gate closed and is not waited for: what matters where threads outnumber cores.
#include "kernels/cpu/team.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    LINE_BYTES = 64,
    SPINS = 4000, // some tens of microseconds, about the time between two ops of a step
};

#define GATE_OPEN 0x80000000u // beside the number of helpers inside

struct team {
    int n_threads, n_started, cores;
    struct helper *helpers; // (n_threads - 1)
    // The round's work; written while the gate is closed and nobody is inside.
    team_work *work;
    void *arg;
    int n, grain, n_pieces;
    _Alignas(LINE_BYTES) _Atomic int next; // piece
    _Alignas(LINE_BYTES) _Atomic uint32_t gate;  // the owner's futex
    _Alignas(LINE_BYTES) _Atomic uint32_t round; // the helpers' futex
    _Atomic uint32_t sleepers;
    atomic_bool stop;
};

struct helper {
    struct team *team;
    int thread;
    pthread_t id;
};

// Threads of all teams of this process: where they outnumber the cores nobody spins.
static _Atomic int threads_alive;

static inline void pause_core(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static int spins(const struct team *t)
{
    return atomic_load(&threads_alive) > t->cores ? 0 : SPINS;
}

static void do_pieces(struct team *t, int thread)
{
    for (;;) {
        int piece = atomic_fetch_add(&t->next, 1);
        if (piece >= t->n_pieces) return;
        int begin = piece * t->grain, end = t->n - begin < t->grain ? t->n : begin + t->grain;
        t->work(t->arg, begin, end, thread);
    }
}

static bool enter(struct team *t)
{
    uint32_t gate = atomic_load(&t->gate);
    while (gate & GATE_OPEN) {
        if (atomic_compare_exchange_weak(&t->gate, &gate, gate + 1)) return true;
    }
    return false;
}

static void leave(struct team *t)
{
    if (atomic_fetch_sub(&t->gate, 1) == 1) futex_wake(&t->gate, 1); // closed, and nobody is inside
}

// Returns when `round` is no longer `seen`.
static uint32_t next_round(struct team *t, uint32_t seen)
{
    for (int i = spins(t); i > 0 && atomic_load(&t->round) == seen; i--) pause_core();
    if (atomic_load(&t->round) == seen) {
        atomic_fetch_add(&t->sleepers, 1);
        while (atomic_load(&t->round) == seen) futex_wait(&t->round, seen);
        atomic_fetch_sub(&t->sleepers, 1);
    }
    return atomic_load(&t->round);
}

static void *helper_main(void *arg)
{
    struct helper *h = arg;
    struct team *t = h->team;
    uint32_t seen = 0;
    for (;;) {
        seen = next_round(t, seen);
        if (atomic_load(&t->stop)) return NULL;
        if (!enter(t)) continue;
        do_pieces(t, h->thread);
        leave(t);
    }
}

enum status team_create(struct team **team, int n_threads, struct error *e)
{
    check(n_threads >= 1, "%d threads", n_threads);
    struct team *t = aligned_alloc(LINE_BYTES, sizeof *t);
    struct helper *helpers = calloc((size_t) n_threads, sizeof *helpers);
    if (t == NULL || helpers == NULL) {
        free(t);
        free(helpers);
        return error_set(e, ERR_NOMEM, NULL, "no memory for a team of %d threads", n_threads);
    }
    memset(t, 0, sizeof *t);
    t->n_threads = n_threads;
    t->cores = (int) sysconf(_SC_NPROCESSORS_ONLN);
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) t->cores = CPU_COUNT(&set);
    t->helpers = helpers;
    atomic_fetch_add(&threads_alive, n_threads);
    for (; t->n_started < n_threads - 1; t->n_started++) {
        struct helper *h = &helpers[t->n_started];
        *h = (struct helper) {.team = t, .thread = t->n_started + 1};
        int failed = pthread_create(&h->id, NULL, helper_main, h);
        if (failed != 0) {
            team_destroy(&t);
            return error_set(e, ERR_NOMEM, "no_threads", "cannot start thread %d of %d: %s",
                             h->thread + 1, n_threads, strerror(failed));
        }
    }
    *team = t;
    return OK;
}

void team_destroy(struct team **team)
{
    struct team *t = *team;
    if (t == NULL) return;
    atomic_store(&t->stop, true);
    atomic_fetch_add(&t->round, 1);
    futex_wake(&t->round, INT_MAX);
    for (int i = 0; i < t->n_started; i++) pthread_join(t->helpers[i].id, NULL);
    atomic_fetch_sub(&threads_alive, t->n_threads);
    free(t->helpers);
    free(t);
    *team = NULL;
}

int team_threads(const struct team *t) { return t->n_threads; }

void team_run(struct team *t, team_work *work, void *arg, int n, int grain)
{
    check(grain >= 1, "pieces of %d items", grain);
    if (n <= 0) return;
    int n_pieces = (n - 1) / grain + 1;
    if (n_pieces == 1 || t->n_threads == 1) {
        work(arg, 0, n, 0);
        return;
    }
    t->work = work;
    t->arg = arg;
    t->n = n;
    t->grain = grain;
    t->n_pieces = n_pieces;
    atomic_store(&t->next, 0);
    atomic_store(&t->gate, GATE_OPEN);
    atomic_fetch_add(&t->round, 1);
    if (atomic_load(&t->sleepers) > 0) futex_wake(&t->round, n_pieces - 1);
    do_pieces(t, 0);
    atomic_fetch_and(&t->gate, ~GATE_OPEN);
    uint32_t inside;
    for (int i = spins(t); i > 0 && atomic_load(&t->gate) != 0; i--) pause_core();
    while ((inside = atomic_load(&t->gate)) != 0) futex_wait(&t->gate, inside);
}
