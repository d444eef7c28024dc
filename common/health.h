// The health of a daemon: what a broker or a group writes about itself into a small file once a
// second, and whether that is well. Supervisors of containers ask by `penstock health`. Writing
// takes no heap and is of the daemon's loop alone: a loop that hangs is seen by the file's age.
// Times are of clock_ms, which all programs of one machine share.
#ifndef PENSTOCK_COMMON_HEALTH_H
#define PENSTOCK_COMMON_HEALTH_H

#include "common/limits.h"
#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

enum health_state {
    HEALTH_WAITING,  // broker: Redis has not been reached yet
    HEALTH_STANDBY,  // broker: another one leads
    HEALTH_LEADING,  // broker
    HEALTH_IDLE,     // group: without a stage
    HEALTH_LOADING,  // group
    HEALTH_LOADED,   // group: waits for its neighbours
    HEALTH_SERVING,  // group
    HEALTH_STATES,
};

struct health {
    enum health_state state;
    int64_t written_ms;
    bool redis;           // broker: it is reached
    bool heard;           // group: the broker speaks
    int stage;            // group; -1: none
    bool work;            // group: sequences or steps are in it
    uint64_t steps;       // group: through it, ever
    int64_t moved_ms;     // group: when there was no work, or a step moved
    int64_t patience_ms;  // group: work that has not moved for so long is stuck
    uint64_t loaded_bytes, load_bytes; // group, while loading
    struct error trouble; // group: why it has no stage, as far as it knows
};

// Writes to `path` about once a HEALTH_MS.
struct health_writer {
    const char *path; // NULL: nothing is written
    int64_t due_ms, moved_ms;
    uint64_t steps;
    bool told; // in the log, that it can't be written
};

// Whether it is time to fill a struct health and pass it to health_write.
bool health_due(const struct health_writer *w, int64_t now_ms);

// Replaces the file as a whole; sets written_ms and moved_ms. That it can't be is logged once.
void health_write(struct health_writer *w, struct health *h, int64_t now_ms);

// The daemon ends: so does the file.
void health_end(const struct health_writer *w);

// ERR_UNAVAILABLE not_running: there is no such file; ERR_INPUT bad_status; ERR_IO.
enum status health_read(struct health *h, const char *path, struct error *e);

// OK: `text` says what it does. Else ERR_STATE, and e says what is wrong: hung, no_redis, no_stage
// (unless idle_ok: a spare is well without one), no_broker, loading, stuck, or the trouble's code.
enum { HEALTH_TEXT_SIZE = 160 };
enum status health_judge(const struct health *h, int64_t now_ms, bool idle_ok,
                         char text[HEALTH_TEXT_SIZE], struct error *e);

#endif
