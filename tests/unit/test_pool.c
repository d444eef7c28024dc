#include "broker/pool.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <poll.h>

static void square(void *arg, void *item, int thread)
{
    (void) arg;
    assert_true(thread >= 0 && thread < 3);
    int *n = item;
    volatile int spin = (*n % 7) * 10000; // uneven, so that items overtake each other
    while (spin > 0) spin--;
    *n *= *n;
}

static void hands_items_back_in_order(void **state)
{
    (void) state;
    enum { N = 1000 };
    struct pool *p;
    struct error e;
    int items[N], given = 0, taken = 0;
    assert_int_equal(pool_create(&p, 3, 16, square, NULL, &e), OK);
    while (taken < N) {
        while (given < N) {
            items[given] = given;
            if (!pool_submit(p, &items[given])) break;
            given++;
        }
        struct pollfd fd = {.fd = pool_fd(p), .events = POLLIN};
        assert_int_equal(poll(&fd, 1, 10000), 1);
        for (int *done; (done = pool_done(p)) != NULL; taken++) {
            assert_ptr_equal(done, &items[taken]);
            assert_int_equal(*done, taken * taken);
        }
    }
    assert_int_equal(pool_room(p), 16);
    pool_destroy(&p, NULL);
}

static int n_dropped;
static void drop(void *item)
{
    (void) item;
    n_dropped++;
}

static void drops_what_nobody_took(void **state)
{
    (void) state;
    struct pool *p;
    struct error e;
    int items[8] = {0};
    assert_int_equal(pool_create(&p, 1, 8, square, NULL, &e), OK);
    for (int i = 0; i < 8; i++) assert_true(pool_submit(p, &items[i]));
    assert_false(pool_submit(p, &items[0]));
    pool_destroy(&p, drop);
    assert_int_equal(n_dropped, 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hands_items_back_in_order),
        cmocka_unit_test(drops_what_nobody_took),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
