#include "kernels/comm.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { RANKS_MAX = 16, ELEMENTS = 5003, ROUNDS = 40 };

struct rank {
    struct comm *comm;
    pthread_t thread;
    int wrong;
    enum status status;
};

// One value of the pseudo-random payload.
static float payload(int round, int rank, size_t i)
{
    uint32_t x = (uint32_t) (round * 7919 + rank * 104729) + (uint32_t) i * 2654435761u;
    x ^= x >> 15;
    x *= 0x2c1b3c6du;
    x ^= x >> 12;
    return (float) (int32_t) x * 0x1p-24f;
}

static void ranks_run(struct comm **comms, int tp, struct rank *ranks, void *(*body)(void *))
{
    for (int i = 0; i < tp; i++) {
        ranks[i] = (struct rank) {.comm = comms[i]};
        assert_int_equal(pthread_create(&ranks[i].thread, NULL, body, &ranks[i]), 0);
    }
    for (int i = 0; i < tp; i++) pthread_join(ranks[i].thread, NULL);
}

static void *sum_once(void *arg)
{
    struct rank *r = arg;
    float x[3] = {(float) r->comm->rank, 1, 0.5f};
    r->status = r->comm->ops->all_reduce(r->comm, x, 3);
    r->wrong = !(x[0] == 1 && x[1] == 2 && x[2] == 1);
    return NULL;
}

static void test_two_ranks_add(void **state)
{
    (void) state;
    struct comm *comms[2];
    struct rank ranks[2];
    struct error e = {0};
    assert_int_equal(comm_local_create(comms, 2, 3, 0, 0, NULL, &e), OK);
    ranks_run(comms, 2, ranks, sum_once);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(ranks[i].status, OK);
        assert_false(ranks[i].wrong);
        comms[i]->ops->destroy(&comms[i]);
        assert_null(comms[i]);
    }
}

static void *random_rounds(void *arg)
{
    struct rank *r = arg;
    struct comm *c = r->comm;
    float *x = malloc(ELEMENTS * sizeof *x);
    float *all = malloc(sizeof *all * 100 * RANKS_MAX);
    for (int round = 0; round < ROUNDS; round++) {
        size_t n = (size_t) (round * 701) % ELEMENTS + (round % 3 == 0 ? 0 : 1);
        for (size_t i = 0; i < n; i++) x[i] = payload(round, c->rank, i);
        if (c->ops->all_reduce(c, x, n) != OK) r->wrong++;
        for (size_t i = 0; i < n; i++) {
            float sum = payload(round, 0, i);
            for (int k = 1; k < c->tp; k++) sum += payload(round, k, i);
            if (memcmp(&sum, &x[i], sizeof sum) != 0) r->wrong++;
        }

        float part[100];
        size_t m = (size_t) (1 + round * 13 % 100);
        for (size_t i = 0; i < m; i++) part[i] = payload(round + 1, c->rank, i);
        if (c->ops->all_gather(c, part, all, m * sizeof *part) != OK) r->wrong++;
        for (size_t i = 0; i < m * c->tp; i++) {
            if (all[i] != payload(round + 1, (int) (i / m), i % m)) r->wrong++;
        }

        int root = round % c->tp;
        for (size_t i = 0; i < ELEMENTS; i++) x[i] = payload(round + 2, c->rank, i);
        if (c->ops->broadcast(c, x, ELEMENTS * sizeof *x, root) != OK) r->wrong++;
        for (size_t i = 0; i < ELEMENTS; i++) r->wrong += x[i] != payload(round + 2, root, i);
    }
    free(x);
    free(all);
    return NULL;
}

static void test_random_payloads_match_a_serial_sum(void **state)
{
    (void) state;
    static const int tps[] = {1, 2, 4, 16};
    for (size_t k = 0; k < sizeof tps / sizeof *tps; k++) {
        struct comm *comms[RANKS_MAX];
        struct rank ranks[RANKS_MAX];
        struct error e = {0};
        assert_int_equal(comm_local_create(comms, tps[k], ELEMENTS, 400, 60000, NULL, &e), OK);
        ranks_run(comms, tps[k], ranks, random_rounds);
        for (int i = 0; i < tps[k]; i++) {
            assert_int_equal(ranks[i].wrong, 0);
            comms[i]->ops->destroy(&comms[i]);
        }
    }
}

// More bytes than the shared area has: pieces.
enum { LARGE = 300001 };

static void *broadcast_large(void *arg)
{
    struct rank *r = arg;
    unsigned char *data = calloc(LARGE, 1);
    for (int i = 0; r->comm->rank == 1 && i < LARGE; i++) data[i] = (unsigned char) (i * 31);
    r->status = r->comm->ops->broadcast(r->comm, data, LARGE, 1);
    for (int i = 0; i < LARGE; i++) r->wrong += data[i] != (unsigned char) (i * 31);
    free(data);
    return NULL;
}

static void test_a_broadcast_may_be_larger_than_the_area(void **state)
{
    (void) state;
    struct comm *comms[3];
    struct rank ranks[3];
    struct error e = {0};
    assert_int_equal(comm_local_create(comms, 3, 10, 10, 0, NULL, &e), OK);
    ranks_run(comms, 3, ranks, broadcast_large);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(ranks[i].status, OK);
        assert_int_equal(ranks[i].wrong, 0);
        comms[i]->ops->destroy(&comms[i]);
    }
}

static void *reduce_forever(void *arg)
{
    struct rank *r = arg;
    float x[64] = {0};
    // The last rank stops coming after a while: the others wait in the middle of a collective.
    for (int round = 0; r->comm->rank < r->comm->tp - 1 || round < 25; round++) {
        r->status = r->comm->ops->all_reduce(r->comm, x, 64);
        if (r->status != OK) return NULL;
    }
    return NULL;
}

static void test_an_abort_ends_waiting_and_later_collectives(void **state)
{
    (void) state;
    static const int tps[] = {2, 4, 16};
    for (size_t k = 0; k < sizeof tps / sizeof *tps; k++) {
        int tp = tps[k];
        struct comm *comms[RANKS_MAX];
        struct rank ranks[RANKS_MAX];
        struct error e = {0};
        assert_int_equal(comm_local_create(comms, tp, 64, 8, 0, NULL, &e), OK);
        for (int i = 0; i < tp; i++) {
            ranks[i] = (struct rank) {.comm = comms[i]};
            assert_int_equal(pthread_create(&ranks[i].thread, NULL, reduce_forever, &ranks[i]), 0);
        }
        pthread_join(ranks[tp - 1].thread, NULL); // the others are waiting, or about to
        comms[0]->ops->abort(comms[0]);
        for (int i = 0; i < tp - 1; i++) {
            pthread_join(ranks[i].thread, NULL);
            assert_int_equal(ranks[i].status, ERR_ABORTED);
        }
        char byte = 0, all[RANKS_MAX];
        for (int i = 0; i < tp; i++) {
            assert_int_equal(comms[i]->ops->broadcast(comms[i], &byte, 1, 0), ERR_ABORTED);
            assert_int_equal(comms[i]->ops->all_gather(comms[i], &byte, all, 1), ERR_ABORTED);
            comms[i]->ops->destroy(&comms[i]);
        }
    }
}

static void test_a_missing_rank_is_a_timeout_for_all(void **state)
{
    (void) state;
    struct comm *comms[4];
    struct rank ranks[4];
    struct error e = {0};
    assert_int_equal(comm_local_create(comms, 4, 64, 8, 200, NULL, &e), OK);
    ranks_run(comms, 4, ranks, reduce_forever);
    for (int i = 0; i < 3; i++) assert_int_equal(ranks[i].status, ERR_TIMEOUT);
    float x[64] = {0};
    assert_int_equal(comms[3]->ops->all_reduce(comms[3], x, 64), ERR_TIMEOUT);
    comms[3]->ops->abort(comms[3]); // the first reason stays
    assert_int_equal(comms[3]->ops->all_reduce(comms[3], x, 64), ERR_TIMEOUT);
    for (int i = 0; i < 4; i++) comms[i]->ops->destroy(&comms[i]);
}

static void test_one_rank_copies(void **state)
{
    (void) state;
    struct comm *comm;
    struct error e = {0};
    assert_int_equal(comm_local_create(&comm, 1, 4, 4, 100, NULL, &e), OK);
    float x[4] = {1, 2, 3, 4};
    char in[4] = "abc", out[4] = "";
    assert_int_equal(comm->ops->all_reduce(comm, x, 4), OK);
    assert_true(x[0] == 1 && x[3] == 4);
    assert_int_equal(comm->ops->all_gather(comm, in, out, 4), OK);
    assert_string_equal(out, "abc");
    assert_int_equal(comm->ops->broadcast(comm, in, 4, 0), OK);
    comm->ops->abort(comm);
    assert_int_equal(comm->ops->all_reduce(comm, x, 4), ERR_ABORTED);
    comm->ops->destroy(&comm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_ranks_add),
        cmocka_unit_test(test_random_payloads_match_a_serial_sum),
        cmocka_unit_test(test_a_broadcast_may_be_larger_than_the_area),
        cmocka_unit_test(test_an_abort_ends_waiting_and_later_collectives),
        cmocka_unit_test(test_a_missing_rank_is_a_timeout_for_all),
        cmocka_unit_test(test_one_rank_copies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
