#include "broker/dispatch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

static void takes_jobs_in_order_while_credit_lasts(void **state)
{
    (void) state;
    struct credit c = {0};
    struct ready_job jobs[] = {{3, false}, {4, false}, {9, false}, {1, false}};
    assert_int_equal(dispatch_choose(&c, jobs, 4, 0, false), 0);
    credit_grant(&c, 8, 10);
    assert_int_equal(dispatch_choose(&c, jobs, 4, 0, false),
                     2); // the third waits, so does the last
    credit_take(&c, 3);
    credit_take(&c, 4);
    assert_int_equal(credit_slots(&c), 6);
    assert_int_equal(credit_blocks(&c), 3);
    credit_grant(&c, 7, 6); // late: ignored
    assert_int_equal(credit_blocks(&c), 3);
    credit_grant(&c, 9, 13); // one ended
    assert_int_equal(credit_blocks(&c), 6);
    credit_give_back(&c, 4);
    assert_int_equal(credit_blocks(&c), 10);
}

static void poison_runs_alone(void **state)
{
    (void) state;
    struct credit c = {0};
    struct ready_job first[] = {{1, true}, {1, false}}, second[] = {{1, false}, {1, true}};
    credit_grant(&c, 8, 10);
    assert_int_equal(dispatch_choose(&c, first, 2, 0, false), 1);
    assert_int_equal(dispatch_choose(&c, first, 2, 1, false), 0);
    assert_int_equal(dispatch_choose(&c, second, 2, 0, false), 1);
    assert_int_equal(dispatch_choose(&c, second, 2, 0, true), 0);
}

static void an_adopted_head_keeps_its_books(void **state)
{
    (void) state;
    struct credit c = {0};
    credit_grant(&c, 8 + 20, 100 + 60); // 20 jobs of 3 blocks have come and gone
    credit_adopt(&c, 8, 100, 2, 7);
    assert_int_equal(credit_slots(&c), 6);
    assert_int_equal(credit_blocks(&c), 93);
    credit_grant(&c, 8 + 21, 100 + 64);
    assert_int_equal(credit_slots(&c), 7);
    assert_int_equal(credit_blocks(&c), 97);
}

// Never more at the head than it has, whatever is lost, repeated or late.
static void never_over_the_limit(void **state)
{
    (void) state;
    enum { SLOTS = 5, BLOCKS = 40 };
    srand(1);
    struct credit c = {0};
    uint64_t head_slots = SLOTS, head_blocks = BLOCKS, granted_slots = SLOTS,
             granted_blocks = BLOCKS, running[SLOTS];
    int n_running = 0;
    for (int i = 0; i < 100000; i++) {
        if (rand() % 3 == 0) credit_grant(&c, granted_slots, granted_blocks); // else lost
        if (rand() % 9 == 0 && granted_slots > SLOTS)
            credit_grant(&c, granted_slots - 1, 0); // late
        struct ready_job job = {1 + (uint64_t) rand() % 20, false};
        if (dispatch_choose(&c, &job, 1, n_running, false) == 1) {
            credit_take(&c, job.need_blocks);
            assert_true(head_slots >= 1 && head_blocks >= job.need_blocks);
            head_slots--;
            head_blocks -= job.need_blocks;
            running[n_running++] = job.need_blocks;
        } else if (n_running > 0) {
            int k = rand() % n_running;
            head_slots++, granted_slots++;
            head_blocks += running[k], granted_blocks += running[k];
            running[k] = running[--n_running];
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(takes_jobs_in_order_while_credit_lasts),
        cmocka_unit_test(poison_runs_alone),
        cmocka_unit_test(an_adopted_head_keeps_its_books),
        cmocka_unit_test(never_over_the_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
