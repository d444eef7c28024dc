// Running stages, for tests of what their ranks load and carve.
#ifndef PENSTOCK_TESTS_UNIT_STAGE_CASE_H
#define PENSTOCK_TESTS_UNIT_STAGE_CASE_H

#include "workers/stage.h"

#include <poll.h>
#include <unistd.h>

// Waits until all ranks have loaded, or one could not.
static inline enum stage_state stage_case_wait(struct stage *stage, struct error *e)
{
    enum stage_state state;
    while ((state = stage_state(stage, e)) == STAGE_LOADING) {
        struct pollfd fd = {.fd = stage_fd(stage), .events = POLLIN};
        uint64_t n;
        assert_true(poll(&fd, 1, -1) == 1);
        assert_int_equal(read(fd.fd, &n, sizeof n), sizeof n);
    }
    return state;
}

#endif
