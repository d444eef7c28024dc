#include "kernels/comm_hub.h"

#include "common/clock.h"

#include <linux/futex.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    LINE_BYTES = 64,
    SPINS = 100, // a few microseconds, then a rank gives its core away
};

struct hub {
    int tp, spins;
    int64_t deadline_ms;
    _Atomic int n_left;                            // ranks that have not left
    _Alignas(LINE_BYTES) _Atomic int ended;        // OK, or why all collectives end
    _Alignas(LINE_BYTES) _Atomic uint32_t arrived; // ranks at the present meeting
    _Alignas(LINE_BYTES) _Atomic uint32_t meeting; // counts meetings; the futex
    _Atomic uint32_t sleepers;
};

static inline void pause_core(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static long futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *timeout)
{
    return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, timeout, NULL, 0);
}

struct hub *hub_create(int tp, int64_t deadline_ms)
{
    struct hub *h = aligned_alloc(LINE_BYTES, sizeof *h);
    if (h == NULL) return NULL;
    *h = (struct hub) {.tp = tp, .n_left = tp, .deadline_ms = deadline_ms};
    h->spins = sysconf(_SC_NPROCESSORS_ONLN) < tp ? 0 : SPINS;
    return h;
}

static void release(struct hub *h)
{
    atomic_fetch_add(&h->meeting, 1);
    if (atomic_load(&h->sleepers) > 0) futex(&h->meeting, FUTEX_WAKE, INT32_MAX, NULL);
}

void hub_end(struct hub *h, enum status why)
{
    int open = OK;
    if (atomic_compare_exchange_strong(&h->ended, &open, (int) why)) release(h);
}

enum status hub_status(struct hub *h) { return (enum status) atomic_load(&h->ended); }

// Blocks until the meeting after `meeting` begins; at the deadline ends everything.
static void wait_asleep(struct hub *h, uint32_t meeting)
{
    int64_t until = clock_ms() + h->deadline_ms;
    atomic_fetch_add(&h->sleepers, 1);
    while (atomic_load(&h->meeting) == meeting) {
        struct timespec left, *timeout = NULL;
        if (h->deadline_ms > 0) {
            int64_t ms = until - clock_ms();
            if (ms <= 0) {
                hub_end(h, ERR_TIMEOUT);
                break;
            }
            left = (struct timespec) {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
            timeout = &left;
        }
        futex(&h->meeting, FUTEX_WAIT, meeting, timeout);
    }
    atomic_fetch_sub(&h->sleepers, 1);
}

enum status hub_meet(struct hub *h)
{
    // In this order: an end that `ended` does not show yet changes `meeting` after it was read.
    uint32_t meeting = atomic_load(&h->meeting);
    int ended = atomic_load(&h->ended);
    if (ended != OK) return (enum status) ended;
    if (atomic_fetch_add(&h->arrived, 1) + 1 == (uint32_t) h->tp) {
        atomic_store(&h->arrived, 0);
        release(h);
    } else {
        for (int i = 0; i < h->spins && atomic_load(&h->meeting) == meeting; i++) pause_core();
        if (atomic_load(&h->meeting) == meeting) wait_asleep(h, meeting);
    }
    return hub_status(h);
}

bool hub_leave(struct hub *h)
{
    if (atomic_fetch_sub(&h->n_left, 1) > 1) return false;
    free(h);
    return true;
}
