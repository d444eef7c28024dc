// The simulated Redis: the broker's function library, run by Lua over sim_keys, behind hiredis'
// asynchronous interface. What it answered is never lost, as with appendfsync always; connections
// break, and the outcome of what was on its way is then unknown, as is what the programs were not
// told. It knows the queue only by its keys.
#ifndef PENSTOCK_TESTS_SIM_SIM_REDIS_H
#define PENSTOCK_TESTS_SIM_SIM_REDIS_H

#include "tests/sim/sim.h"
#include "tests/sim/sim_keys.h"

void sim_redis_begin(void); // empty
void sim_redis_end(void);

bool sim_redis_up(void);

// It is killed, and back after so long.
void sim_redis_crash(int64_t for_ns);

// It hangs: what comes meanwhile is answered later.
void sim_redis_hang(int64_t for_ns);

// The connections of a process break.
void sim_redis_break(const struct sim_proc *p);

// A command of someone else's, at once.
struct answer sim_redis_run(const struct bytes *argv, int argc);

// As a producer does it, when it is up: subscribers are told, mostly.
void sim_redis_push(const char *queue, const char *tenant, const void *message, size_t n);

// Called after each function that was called: its name, arguments (behind the key) and whether it
// was an error.
void sim_redis_watch(void (*called)(const char *function, const struct bytes *args, int n,
                                    bool failed));

#endif
