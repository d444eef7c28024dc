// A room of machines in one thread: one clock, one source of chance, an agenda of what happens
// when, and processes, which are coroutines that run the real programs. Everything that these ask
// of the operating system (clock, descriptors, threads, sockets, Redis) is answered by this folder,
// so that a seed decides all that happens. It knows neither jobs nor models.
#ifndef PENSTOCK_TESTS_SIM_SIM_H
#define PENSTOCK_TESTS_SIM_SIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIM_MS 1000000ll // nanoseconds
#define SIM_S (1000 * SIM_MS)

enum { SIM_NAME_MAX = 32 };

struct sim_proc;
typedef void sim_fn(void *arg);

// --- a seed's life

// Everything begins anew; nothing of an earlier seed is left. trace: stdout tells what happens.
void sim_begin(uint64_t seed, bool trace);
void sim_end(void);

// Does what is due next. False: nothing is left to happen before `until_ns`.
bool sim_step(int64_t until_ns);

// An invariant is broken: says what and when, and ends the program with status 1.
void sim_fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

// A line of the trace, if there is one.
void sim_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
bool sim_traced(void);

// --- clock, chance, agenda

int64_t sim_now(void);                     // ns since the seed began, as the process has it
void sim_spend(int64_t ns);                // the process works so long: what it does is later
bool sim_spent(void);                      // it has, in this turn
int64_t sim_wall_ms(int64_t ns);           // the same as Unix time
void sim_at(int64_t ns, sim_fn *fn, void *arg);
uint64_t sim_random(void);
int64_t sim_between(int64_t least, int64_t most); // inclusive
bool sim_chance(int percent);

// How long a process that is woken takes to run at most (chosen at random each time).
void sim_set_wake_ns(int64_t most);

// --- processes

// It runs from now on; the structure is kept until the seed ends.
struct sim_proc *sim_spawn(const char *name, sim_fn *main, void *arg);
void sim_kill(struct sim_proc *p);                 // kill -9: nothing of it runs any more
void sim_stop(struct sim_proc *p, int64_t for_ns); // SIGSTOP, then SIGCONT
bool sim_alive(const struct sim_proc *p);
struct sim_proc *sim_self(void); // NULL: the agenda

// Returns when the process is woken, or at `until_ns`.
void sim_sleep(int64_t until_ns);
void sim_wake(struct sim_proc *p);

// Called once a turn of every process, before it sleeps, and when one is killed.
void sim_watch(void (*slept)(struct sim_proc *p), void (*died)(struct sim_proc *p));

// --- descriptors of the simulated kernel: eventfd and signalfd

int sim_fd(struct sim_proc *owner); // an eventfd; the owner is woken by a write
void sim_fd_own(int fd, struct sim_proc *owner);
bool sim_fd_readable(int fd);
void sim_fd_write(int fd, uint64_t n);
void sim_signal(struct sim_proc *p, int signal); // to its signalfd

// --- memory that lasts until the seed ends, zeroed

void *sim_alloc(size_t n);

#endif
