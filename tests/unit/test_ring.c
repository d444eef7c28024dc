// Steps between a leader and its ranks: places, order, what a failed rank leaves, the end.
#include "workers/ring.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

enum { STEPS = 3, RANKS = 2, MANY = 1000 };

static struct ring ring;

static int setup(void **state)
{
    struct error e;
    (void) state;
    return ring_init(&ring, STEPS, RANKS, &e) == OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void) state;
    ring_deinit(&ring);
    return 0;
}

static int oldest(void)
{
    enum status status;
    int place = ring_oldest(&ring, &status, NULL);
    assert_int_equal(status, OK);
    return place;
}

static bool woken(void)
{
    uint64_t times;
    return read(ring.fd, &times, sizeof times) == sizeof times;
}

static void a_step_passes_all_ranks(void **state)
{
    (void) state;
    assert_int_equal(ring_next(&ring), 0);
    ring_submit(&ring);
    assert_true(ring_wait(&ring, 0)); // it is there
    ring_finish(&ring, 1, OK, NULL);
    assert_false(woken());
    assert_int_equal(oldest(), -1);
    assert_false(ring_idle(&ring));
    ring_finish(&ring, 0, OK, NULL);
    assert_true(woken());
    assert_int_equal(oldest(), 0);
    assert_true(ring_idle(&ring));
    ring_release(&ring);
    assert_int_equal(oldest(), -1);
    assert_int_equal(ring_next(&ring), 1);
}

static void places_go_round_and_run_out(void **state)
{
    (void) state;
    for (int i = 0; i < STEPS; i++) {
        assert_int_equal(ring_next(&ring), i);
        ring_submit(&ring);
    }
    assert_int_equal(ring_next(&ring), -1);
    for (int r = 0; r < RANKS; r++) ring_finish(&ring, r, OK, NULL);
    assert_int_equal(ring_next(&ring), -1); // done, but the leader has not looked at it
    ring_release(&ring);
    assert_int_equal(ring_next(&ring), 0);
}

static void a_failed_rank_ends_it(void **state)
{
    struct error first = {0}, second = {0}, e = {0};
    enum status status;
    (void) state;
    error_set(&first, ERR_IO, NULL, "a device");
    error_set(&second, ERR_ABORTED, NULL, "another rank");
    ring_submit(&ring);
    ring_finish(&ring, 1, ERR_IO, &first);
    assert_true(woken()); // though the other rank is not done
    ring_finish(&ring, 0, ERR_ABORTED, &second);
    assert_int_equal(ring_oldest(&ring, &status, &e), -1);
    assert_int_equal(status, ERR_IO);
    assert_string_equal(e.text, "a device");
    ring_leave(&ring, 1);
    ring_leave(&ring, 0);
    ring_reset(&ring); // does not wait
}

// The one that failed may leave while another still reads the step, and the next one.
static void a_failed_rank_leaves_others_behind(void **state)
{
    struct error e = {0};
    (void) state;
    error_set(&e, ERR_IO, NULL, "a device");
    ring_submit(&ring);
    ring_submit(&ring);
    ring_finish(&ring, 1, ERR_IO, &e);
    assert_false(ring_idle(&ring));
    assert_true(woken());
    ring_leave(&ring, 1);
    assert_true(woken());
    assert_false(ring_idle(&ring)); // rank 0 has the first step
    ring_finish(&ring, 0, OK, NULL);
    assert_false(ring_idle(&ring)); // and the second
    ring_finish(&ring, 0, ERR_ABORTED, &e);
    assert_true(ring_idle(&ring));
    ring_reset(&ring); // does not wait
    ring_submit(&ring);
    assert_false(ring_idle(&ring)); // rank 0 has not left yet
    ring_leave(&ring, 0);
    assert_true(ring_idle(&ring));
}

static void *run_rank(void *arg)
{
    int rank = (int) (intptr_t) arg;
    for (uint64_t n = 0; ring_wait(&ring, n); n++) ring_finish(&ring, rank, OK, NULL);
    return NULL;
}

// Each comes out once, in order; then what is still in the ring is waited for and forgotten.
static void ranks_of_their_own(void **state)
{
    pthread_t ranks[RANKS];
    int n_in = 0, n_out = 0;
    (void) state;
    for (int r = 0; r < RANKS; r++) {
        assert_int_equal(pthread_create(&ranks[r], NULL, run_rank, (void *) (intptr_t) r), 0);
    }
    while (n_out < MANY) {
        int place;
        for (; n_in < MANY + STEPS && (place = ring_next(&ring)) >= 0; n_in++) {
            assert_int_equal(place, n_in % STEPS);
            ring_submit(&ring);
        }
        struct pollfd fd = {.fd = ring.fd, .events = POLLIN};
        assert_int_equal(poll(&fd, 1, -1), 1);
        assert_true(woken());
        for (; (place = oldest()) >= 0; n_out++) {
            assert_int_equal(place, n_out % STEPS);
            ring_release(&ring);
        }
    }
    ring_reset(&ring);
    assert_true(ring_idle(&ring) && oldest() == -1);
    ring_stop(&ring);
    for (int r = 0; r < RANKS; r++) pthread_join(ranks[r], NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_step_passes_all_ranks, setup, teardown),
        cmocka_unit_test_setup_teardown(places_go_round_and_run_out, setup, teardown),
        cmocka_unit_test_setup_teardown(a_failed_rank_ends_it, setup, teardown),
        cmocka_unit_test_setup_teardown(a_failed_rank_leaves_others_behind, setup, teardown),
        cmocka_unit_test_setup_teardown(ranks_of_their_own, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
