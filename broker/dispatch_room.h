// The room of a model's pipelines during one choice, and who holds them (dispatch.h). Pure, as
// dispatch is; inside of dispatch only. Knows neither tenants nor turns.
#ifndef PENSTOCK_BROKER_DISPATCH_ROOM_H
#define PENSTOCK_BROKER_DISPATCH_ROOM_H

#include "broker/dispatch.h"

// A job that looks for room.
struct room_job {
    const struct ready_job *job;
    int class, level;
};

struct room {
    struct dispatch_pipeline now;
    struct dispatch_hold *hold; // NULL: none
    struct room_job holder; // level: as age has it now
    uint64_t steps;         // after which the holder fits at the latest; 0: not known
    struct dispatch_pipeline then; // what is there at that time
};

struct rooms {
    int urgent_percent;
    int n;
    // Of all of them, so that most jobs that find no room are seen at a glance:
    uint64_t most_blocks; // free in one
    int worst;            // level that holds; DISPATCH_LEVELS: one has no hold
    struct room at[PIPELINES_MAX];
};

void rooms_init(struct rooms *r, const struct dispatch_view *v, int urgent_percent);

// Where a job can start now, delaying nobody that holds: the least loaded pipeline, or -1.
int rooms_place(const struct rooms *r, const struct room_job *j);

// Whether it can start or hold somewhere.
bool rooms_take_or_hold(const struct rooms *r, const struct room_job *j);

// Which pipeline a job that can't start may hold: the one with most room, or -1. What holds it
// already is of a worse level.
int rooms_holdable(const struct rooms *r, const struct room_job *j);

// The job holds the pipeline from here on.
void rooms_hold(struct rooms *r, int pipeline, struct dispatch_hold *hold,
                const struct room_job *j);
void rooms_release(struct rooms *r, int pipeline);

// Where the job that holds this one can start now: there, or elsewhere; or -1.
int rooms_place_holder(const struct rooms *r, int pipeline);

// The job starts there; a holder has been released before.
void rooms_take(struct rooms *r, int pipeline, const struct room_job *j);

bool rooms_any_free(const struct rooms *r); // a slot

#endif
