// Clocks. Decisions take `now` as an argument; only the code that does I/O reads a clock. Any
// thread.
#ifndef PENSTOCK_COMMON_CLOCK_H
#define PENSTOCK_COMMON_CLOCK_H

#include <stdint.h>

// Milliseconds and nanoseconds of the monotonic clock (CLOCK_MONOTONIC).
int64_t clock_ms(void);
int64_t clock_ns(void);

// Milliseconds since 1970-01-01 UTC, for people and logs; never for decisions (Redis TIME decides).
int64_t clock_wall_ms(void);

#endif
