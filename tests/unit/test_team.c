#include "kernels/cpu/team.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct team *create(int n_threads)
{
    struct team *t;
    struct error e = {0};
    assert_int_equal(team_create(&t, n_threads, &e), OK);
    assert_int_equal(team_threads(t), n_threads);
    return t;
}

static void square(void *arg, int begin, int end, int thread)
{
    (void) thread;
    int *values = arg;
    for (int i = begin; i < end; i++) values[i] = i * i;
}

static void test_squares_by_a_team(void **state)
{
    (void) state;
    struct team *t = create(2);
    int values[100];
    team_run(t, square, values, 100, 8);
    for (int i = 0; i < 100; i++) assert_int_equal(values[i], i * i);
    team_destroy(&t);
    assert_null(t);
}

enum { ITEMS_MAX = 1000, THREADS_MAX = 9 };

struct tally {
    int n, grain, n_threads;
    atomic_int done[ITEMS_MAX], inside[THREADS_MAX], wrong;
};

static void count(void *arg, int begin, int end, int thread)
{
    struct tally *t = arg;
    bool whole = t->n_threads == 1 || t->n <= t->grain;
    bool right = thread >= 0 && thread < t->n_threads && begin < end && end <= t->n &&
                 (whole || (begin % t->grain == 0 && end - begin <= t->grain));
    if (!right || atomic_fetch_add(&t->inside[thread], 1) != 0) atomic_fetch_add(&t->wrong, 1);
    for (int i = begin; i < end; i++) atomic_fetch_add(&t->done[i], 1);
    if (right) atomic_fetch_sub(&t->inside[thread], 1);
}

// Every item once, in pieces of the grain, and no two pieces at a time under one thread's number.
static void test_each_item_is_done_once(void **state)
{
    (void) state;
    static const int counts[] = {0, 1, 2, 7, 64, ITEMS_MAX}, grains[] = {1, 3, 64, 5000};
    struct tally *tally = malloc(sizeof *tally);
    for (int n_threads = 1; n_threads <= THREADS_MAX; n_threads += 2) {
        struct team *t = create(n_threads);
        for (int k = 0; k < 6 * 4 * 20; k++) {
            memset(tally, 0, sizeof *tally);
            tally->n = counts[k % 6];
            tally->grain = grains[k / 6 % 4];
            tally->n_threads = n_threads;
            team_run(t, count, tally, tally->n, tally->grain);
            assert_int_equal(tally->wrong, 0);
            for (int i = 0; i < ITEMS_MAX; i++) assert_int_equal(tally->done[i], i < tally->n);
        }
        team_destroy(&t);
    }
    free(tally);
}

struct meeting {
    pthread_mutex_t mutex;
    pthread_cond_t all;
    int n_threads, present;
};

static void meet(void *arg, int begin, int end, int thread)
{
    (void) begin;
    (void) end;
    (void) thread;
    struct meeting *m = arg;
    pthread_mutex_lock(&m->mutex);
    if (++m->present == m->n_threads) pthread_cond_broadcast(&m->all);
    while (m->present < m->n_threads) pthread_cond_wait(&m->all, &m->mutex);
    pthread_mutex_unlock(&m->mutex);
}

// Helpers come even if they sleep: as many pieces as threads, each of which waits for all others.
static void test_all_threads_take_part(void **state)
{
    (void) state;
    struct team *t = create(6);
    for (int round = 0; round < 200; round++) {
        struct meeting m = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 6, 0};
        team_run(t, meet, &m, 6, 1);
        assert_int_equal(m.present, 6);
    }
    team_destroy(&t);
}

static void *own_team(void *arg)
{
    int n = *(int *) arg, values[300];
    struct team *t = create(n);
    for (int round = 0; round < 300; round++) {
        memset(values, 0, sizeof values);
        team_run(t, square, values, 300, 16);
        for (int i = 0; i < 300; i++) assert_true(values[i] == i * i);
    }
    team_destroy(&t);
    return NULL;
}

// Eight ranks with teams of their own on however few cores.
static void test_ranks_outnumber_cores(void **state)
{
    (void) state;
    pthread_t ranks[8];
    int n = 4;
    for (int i = 0; i < 8; i++) assert_int_equal(pthread_create(&ranks[i], NULL, own_team, &n), 0);
    for (int i = 0; i < 8; i++) pthread_join(ranks[i], NULL);
}

static void test_ends_without_work(void **state)
{
    (void) state;
    for (int i = 0; i < 50; i++) {
        struct team *t = create(4);
        team_destroy(&t);
    }
    struct team *none = NULL;
    team_destroy(&none);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_squares_by_a_team),
        cmocka_unit_test(test_each_item_is_done_once),
        cmocka_unit_test(test_all_threads_take_part),
        cmocka_unit_test(test_ranks_outnumber_cores),
        cmocka_unit_test(test_ends_without_work),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
