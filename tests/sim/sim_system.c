// What the programs ask of the C library and the kernel: clocks, random numbers, eventfd, signalfd,
// log lines. The linker turns their calls to these (--wrap).
#include "common/arena.h"
#include "common/log.h"
#include "tests/sim/sim_parts.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/types.h>

enum { FD_BASE = 1 << 20, FDS_MAX = 1 << 16 }; // no descriptor of the true kernel's

struct descriptor {
    struct sim_proc *owner; // NULL: free
    bool signals;
    uint64_t n; // eventfd: its count; signalfd: the signal that waits
};

static struct {
    struct descriptor *at; // (FDS_MAX) of the seed
    int n;
} fds;

void sim_system_begin(void)
{
    fds.at = sim_alloc(FDS_MAX * sizeof *fds.at);
    fds.n = 0;
}

// --- clocks

int64_t __wrap_clock_ms(void);
int64_t __wrap_clock_ns(void);
int64_t __wrap_clock_wall_ms(void);

// A clock of a machine that has been up for a while: 0 means "never" in many places.
int64_t __wrap_clock_ns(void) { return sim_now() + 1000 * SIM_S; }
int64_t __wrap_clock_ms(void) { return __wrap_clock_ns() / SIM_MS; }
int64_t __wrap_clock_wall_ms(void) { return sim_wall_ms(sim_now()); }

// --- random numbers

ssize_t __wrap_getrandom(void *to, size_t n, unsigned flags);

ssize_t __wrap_getrandom(void *to, size_t n, unsigned flags)
{
    (void) flags;
    for (size_t i = 0; i < n; i++) ((uint8_t *) to)[i] = (uint8_t) sim_random();
    return (ssize_t) n;
}

// --- descriptors

static struct descriptor *of(int fd)
{
    if (fd < FD_BASE || fd >= FD_BASE + fds.n) return NULL;
    return &fds.at[fd - FD_BASE];
}

int sim_fd(struct sim_proc *owner)
{
    if (fds.n == FDS_MAX) sim_fail("more than %d descriptors", FDS_MAX);
    fds.at[fds.n] = (struct descriptor){.owner = owner};
    return FD_BASE + fds.n++;
}

void sim_fd_own(int fd, struct sim_proc *owner) { of(fd)->owner = owner; }

bool sim_fd_readable(int fd)
{
    const struct descriptor *d = of(fd);
    return d != NULL && d->n > 0;
}

void sim_fd_write(int fd, uint64_t n)
{
    struct descriptor *d = of(fd);
    if (d == NULL) return;
    d->n += n;
    sim_wake(d->owner);
}

void sim_signal(struct sim_proc *p, int signal)
{
    for (int i = 0; i < fds.n; i++) {
        struct descriptor *d = &fds.at[i];
        if (d->owner != p || !d->signals) continue;
        d->n = (uint64_t) signal;
        sim_wake(p);
    }
}

int __wrap_eventfd(unsigned count, int flags);
int __wrap_signalfd(int fd, const sigset_t *set, int flags);
ssize_t __wrap_read(int fd, void *to, size_t n);
ssize_t __wrap_write(int fd, const void *from, size_t n);
int __wrap_close(int fd);
ssize_t __real_read(int fd, void *to, size_t n);
ssize_t __real_write(int fd, const void *from, size_t n);
int __real_close(int fd);
int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *old);

int __wrap_eventfd(unsigned count, int flags)
{
    (void) flags;
    int fd = sim_fd(sim_self());
    of(fd)->n = count;
    return fd;
}

int __wrap_signalfd(int fd, const sigset_t *set, int flags)
{
    (void) fd, (void) set, (void) flags;
    int made = sim_fd(sim_self());
    of(made)->signals = true;
    return made;
}

ssize_t __wrap_read(int fd, void *to, size_t n)
{
    struct descriptor *d = of(fd);
    if (d == NULL) return __real_read(fd, to, n);
    if (d->n == 0) {
        errno = EAGAIN;
        return -1;
    }
    if (d->signals) {
        struct signalfd_siginfo info = {.ssi_signo = (uint32_t) d->n};
        memcpy(to, &info, n < sizeof info ? n : sizeof info);
    } else {
        memcpy(to, &d->n, n < sizeof d->n ? n : sizeof d->n);
    }
    d->n = 0;
    return (ssize_t) n;
}

ssize_t __wrap_write(int fd, const void *from, size_t n)
{
    uint64_t more;
    if (of(fd) == NULL) return __real_write(fd, from, n);
    memcpy(&more, from, sizeof more);
    sim_fd_write(fd, more);
    return (ssize_t) n;
}

int __wrap_close(int fd) { return of(fd) == NULL ? __real_close(fd) : 0; }

// The simulation's own process keeps its signals.
int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
    (void) how, (void) set, (void) old;
    return 0;
}

// --- the log is the trace

void __wrap_log_write(enum log_level level, const char *event, const struct log_field *fields);
bool __wrap_log_enabled(enum log_level level);

bool __wrap_log_enabled(enum log_level level)
{
    (void) level;
    return sim_traced();
}

void __wrap_log_write(enum log_level level, const char *event, const struct log_field *fields)
{
    char line[1024];
    size_t n = 0;
    (void) level;
    if (!sim_traced()) return;
    for (const struct log_field *f = fields; f->kind != LOG_END && n < sizeof line; f++) {
        char *at = line + n;
        size_t room = sizeof line - n;
        int more = f->kind == LOG_STR ? snprintf(at, room, " %s=%s", f->key, f->str ? f->str : "")
                   : f->kind == LOG_INT
                       ? snprintf(at, room, " %s=%lld", f->key, (long long) f->num)
                       : snprintf(at, room, " %s=%g", f->key, f->real);
        n += more > 0 ? (size_t) more : 0;
    }
    sim_say("%s%s", event, n > 0 ? line : "");
}

// --- memory

// What takes memory here under a program's seal is the kernel's part, or libzmq's.
bool __wrap_seal_set(bool sealed);

bool __wrap_seal_set(bool sealed)
{
    (void) sealed;
    return false;
}

enum status arena_create(struct arena **arena, uint64_t bytes, const char *what, struct error *e)
{
    struct arena *a = *arena = sim_alloc(sizeof *a);
    (void) what, (void) e;
    *a = (struct arena){.bytes = bytes, .mapped = bytes, .holders = 1};
    a->base = sim_alloc((size_t) bytes + 16);
    return OK;
}

void arena_hold(struct arena *a) { a->holders++; }

void arena_release(struct arena *a)
{
    if (a != NULL) a->holders--;
}

const char *arena_pages_name(enum arena_pages pages)
{
    (void) pages;
    return "simulated";
}
