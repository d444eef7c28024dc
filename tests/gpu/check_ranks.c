// Collectives between ranks on GPUs: sums of random payloads against serial ones, the other
// collectives, aborts, deadlines, the check of the links. On one GPU ranks share it.
#include "tests/gpu/check.h"
#include "tests/gpu/ranks.h"

#include "common/clock.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ARENA = 96 * 1024 * 1024, ELEMENTS_MAX = 4 * 1024 * 1024 + 3, GATHER = 70001 };

static const struct backend *b(void) { return backend_cuda(); }

// One value of the pseudo-random payload.
static float payload(int round, int rank, size_t i)
{
    uint32_t x = (uint32_t) (round * 7919 + rank * 104729) + (uint32_t) i * 2654435761u;
    x ^= x >> 15;
    x *= 0x2c1b3c6du;
    x ^= x >> 12;
    return (float) (int32_t) x * 0x1p-24f;
}

static enum status sync_of(struct rank_thread *r) { return b()->sync(r->device, &r->error); }

static void mix(struct rank_thread *r, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        r->hash = (r->hash ^ bits) * 0x100000001b3u;
    }
}

static void note(struct rank_thread *r, enum status status)
{
    if (r->status == OK) r->status = status;
}

// |have - sum| / |sum|, and infinite if one bit differs where the order is the ranks'.
static double sum_error(const struct rank_thread *r, int round, const float *have, size_t n)
{
    enum { FEW = 1000 }; // values, of which a rounded one may count
    double off = 0, all = 0;
    if (r->what->comm.coarse_least > 0 && n < FEW) return 0;
    bool exact = r->what->comm.coarse_least == 0 &&
                 (r->what->comm.way == COMM_PEER || r->what->comm.without_nccl ||
                  (r->what->comm.way == COMM_DIRECT && r->what->comm.staged));
    for (size_t i = 0; i < n; i++) {
        float sum = payload(round, 0, i);
        for (int k = 1; k < r->comm->tp; k++) sum += payload(round, k, i);
        if (exact && memcmp(&sum, &have[i], sizeof sum) != 0) return INFINITY;
        off += ((double) have[i] - sum) * ((double) have[i] - sum);
        all += (double) sum * sum;
    }
    return all > 0 ? sqrt(off / all) : off;
}

static void sum_rounds(struct rank_thread *r)
{
    static const size_t sizes[] = {1, 3, 4, 5, 127, 1024, 7168, 7168 * 3 + 1, 16385, 65536,
                                   (1 << 20) + 3, ELEMENTS_MAX, 2, 7168};
    float *x = malloc(ELEMENTS_MAX * sizeof *x);
    check(x != NULL);
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        size_t n = sizes[k];
        int round = (int) k;
        for (size_t i = 0; i < n; i++) x[i] = payload(round, r->comm->rank, i);
        b()->upload(r->device, r->arena, x, n * sizeof *x);
        note(r, r->comm->ops->all_reduce(r->comm, (float *) r->arena, n));
        memset(x, 0xff, n * sizeof *x);
        b()->download(r->device, x, r->arena, n * sizeof *x);
        note(r, sync_of(r));
        r->wrong = fmax(r->wrong, sum_error(r, round, x, n));
        mix(r, x, n);
    }
    free(x);
}

static void gather_rounds(struct rank_thread *r)
{
    struct comm *c = r->comm;
    char *bytes = malloc((size_t) GATHER * (size_t) c->tp), *out = r->arena + 2 * GATHER + 1;
    check(bytes != NULL);
    for (int round = 0; round < 6; round++) {
        size_t n = round == 0 ? 1 : (size_t) GATHER / (size_t) round;
        for (size_t i = 0; i < n; i++) bytes[i] = (char) ((int) i * 31 + c->rank + round);
        b()->upload(r->device, r->arena, bytes, n);
        note(r, c->ops->all_gather(c, r->arena, out, n));
        b()->download(r->device, bytes, out, n * (size_t) c->tp);
        for (size_t i = 0; i < n * (size_t) c->tp; i++) {
            char want = (char) ((int) (i % n) * 31 + (int) (i / n) + round);
            if (bytes[i] != want) r->wrong = INFINITY;
        }
        int root = round % c->tp;
        for (size_t i = 0; i < n; i++) bytes[i] = (char) ((int) i * 13 + c->rank - round);
        b()->upload(r->device, r->arena, bytes, n);
        note(r, c->ops->broadcast(c, r->arena, n, root));
        b()->download(r->device, bytes, r->arena, n);
        for (size_t i = 0; i < n; i++) {
            if (bytes[i] != (char) ((int) i * 13 + root - round)) r->wrong = INFINITY;
        }
        note(r, sync_of(r));
    }
    free(bytes);
}

// Steps recorded once and replayed, each with two sums.
static void recorded_rounds(struct rank_thread *r)
{
    enum { N = 7168, REPLAYS = 9 };
    float *x = (float *) r->arena, *y = x + N, *host = malloc(N * sizeof *host);
    check(host != NULL && r->comm->ops->recordable);
    check(b()->graph_begin(r->device, N));
    note(r, r->comm->ops->all_reduce(r->comm, x, N));
    b()->add(r->device, y, x, N);
    note(r, r->comm->ops->all_reduce(r->comm, y, N / 7 + 1));
    b()->graph_end(r->device, N);
    for (int round = 0; round < REPLAYS; round++) {
        for (int i = 0; i < N; i++) host[i] = payload(round, r->comm->rank, (size_t) i);
        b()->upload(r->device, x, host, N * sizeof *host);
        memset(host, 0, N * sizeof *host);
        b()->upload(r->device, y, host, N * sizeof *host);
        b()->graph_launch(r->device, N);
        b()->download(r->device, host, x, N * sizeof *host);
        note(r, sync_of(r));
        r->wrong = fmax(r->wrong, sum_error(r, round, host, N));
    }
    free(host);
}

// The last rank stops coming after a while.
static void reduce_until_alone(struct rank_thread *r)
{
    int64_t begun_ms = clock_ms();
    bool last = r->comm->rank == r->comm->tp - 1;
    enum status status = OK;
    for (int round = 0; (!last || round < 25) && status == OK; round++) {
        status = r->comm->ops->all_reduce(r->comm, (float *) r->arena, 7168);
        enum status synced = sync_of(r);
        if (status == OK) status = synced;
    }
    const int *wants = r->what->body_arg;
    if (last && *wants == ERR_ABORTED) r->comm->ops->abort(r->comm);
    r->wrong = last || (int) status == *wants ? 0 : INFINITY;
    r->seconds = (double) (clock_ms() - begun_ms) * 1e-3;
}

// Sums and other ops are put on the stream as fast as they go, and nothing waits for them; the last
// rank stops coming after a while.
static void run_ahead_of_one(struct rank_thread *r)
{
    enum { ROUNDS = 400, OPS = 12, ALONE = 20 };
    int64_t begun_ms = clock_ms();
    bool last = r->comm->rank == r->comm->tp - 1;
    float *x = (float *) r->arena;
    enum status status = OK;
    for (int round = 0; round < (last ? ALONE : ROUNDS) && status == OK; round++) {
        for (int i = 0; i < OPS; i++) b()->add(r->device, x + 7168, x, 7168);
        status = r->comm->ops->all_reduce(r->comm, x, 7168);
    }
    const int *wants = r->what->body_arg;
    if (last && *wants == ERR_ABORTED) r->comm->ops->abort(r->comm);
    r->wrong = last || (int) status == *wants ? 0 : INFINITY;
    r->seconds = (double) (clock_ms() - begun_ms) * 1e-3;
    sync_of(r); // tells of the end
}

// A value that is no number arrives on all ranks, and those that travel with it are right.
static void coarse_rounds(struct rank_thread *r)
{
    enum { N = 1024 * 1024, AT = 700001 };
    float *x = calloc(N, sizeof *x);
    check(x != NULL);
    for (size_t i = 0; i < N; i++) x[i] = payload(1, r->comm->rank, i) * (i % 1000 == 0 ? 20 : 1);
    if (r->comm->rank == 0) x[AT] = NAN;
    b()->upload(r->device, r->arena, x, N * sizeof *x);
    note(r, r->comm->ops->all_reduce(r->comm, (float *) r->arena, N));
    b()->download(r->device, x, r->arena, N * sizeof *x);
    note(r, sync_of(r));
    double off = 0, all = 0;
    for (size_t i = 0; i < N; i++) {
        double sum = 0;
        for (int k = 0; k < r->comm->tp; k++) sum += payload(1, k, i) * (i % 1000 == 0 ? 20 : 1);
        if (isnan(x[i]) != (i == AT)) r->wrong = INFINITY;
        if (isnan(x[i])) continue;
        off += (x[i] - sum) * (x[i] - sum);
        all += sum * sum;
    }
    r->wrong = fmax(r->wrong, sqrt(off / all));
    mix(r, x, N);
    free(x);
}

static void nothing(struct rank_thread *r) { (void) r; }

static const char *way_name(const struct ranks_case *c)
{
    static const char *const names[] = {"auto", "peer", "nccl", "direct"};
    return names[c->comm.way];
}

static void line(struct result *to, const struct ranks_case *c, const char *what, double off,
                 double bar)
{
    char name[128];
    snprintf(name, sizeof name, "%d ranks on %d GPUs, %s%s%s%s: %s", c->comm.tp, c->n_gpus,
             way_name(c), c->comm.blocking ? " blocking" : "", c->comm.staged ? " staged" : "",
             c->comm.coarse_least > 0 ? " coarse" : c->comm.without_nccl ? " alone" : "", what);
    result_error(to, name, off, bar);
}

static void say_errors(const struct rank_thread *ranks, int tp)
{
    for (int i = 0; i < tp; i++) {
        if (ranks[i].status != OK) printf("# rank %d: %s\n", i, ranks[i].error.text);
    }
}

// `faults`: aborts and deadlines, too, which take seconds.
static void check_way(struct result *to, struct ranks_case c, bool recorded, bool faults)
{
    struct rank_thread ranks[TP_MAX];
    int tp = c.comm.tp;
    double bar = c.comm.coarse_least > 0 ? 1e-2 : 1e-6;
    ranks_run(ranks, &c, sum_rounds);
    say_errors(ranks, tp);
    line(to, &c, "sums", ranks_wrong(ranks, tp), bar);
    line(to, &c, "all ranks have the same bits", ranks_agree(ranks, tp) ? 0 : INFINITY, 0);
    if (ranks_wrong(ranks, tp) == INFINITY) return; // the others may take minutes
    ranks_run(ranks, &c, gather_rounds);
    say_errors(ranks, tp);
    line(to, &c, "gathers and broadcasts", ranks_wrong(ranks, tp), 0);
    if (recorded) {
        ranks_run(ranks, &c, recorded_rounds);
        say_errors(ranks, tp);
        line(to, &c, "recorded steps", ranks_wrong(ranks, tp), bar);
    }
    if (c.comm.coarse_least > 0) {
        ranks_run(ranks, &c, coarse_rounds);
        say_errors(ranks, tp);
        line(to, &c, "sums with large values and one that is none", ranks_wrong(ranks, tp), 1e-2);
        line(to, &c, "all ranks have the same bits", ranks_agree(ranks, tp) ? 0 : INFINITY, 0);
    }
    if (tp == 1 || !faults) return;
    int aborted = ERR_ABORTED, timeout = ERR_TIMEOUT;
    c.body_arg = &aborted;
    ranks_run(ranks, &c, reduce_until_alone);
    line(to, &c, "an abort ends the others", ranks_wrong(ranks, tp), 0);
    ranks_run(ranks, &c, run_ahead_of_one);
    line(to, &c, "an abort ends those that ran ahead", ranks_wrong(ranks, tp), 0);
    line(to, &c, "seconds until then", ranks[0].seconds, 2);
    bool quick = c.comm.way == COMM_PEER; // NCCL's start has the same deadline
    c.comm.deadline_ms = quick ? 300 : 4000;
    c.body_arg = &timeout;
    ranks_run(ranks, &c, reduce_until_alone);
    line(to, &c, "so does the deadline", ranks_wrong(ranks, tp), 0);
    line(to, &c, "seconds until then", ranks[0].seconds, quick ? 2 : 6);
    ranks_run(ranks, &c, run_ahead_of_one);
    line(to, &c, "and those that ran ahead", ranks_wrong(ranks, tp), 0);
    line(to, &c, "seconds until then", ranks[0].seconds, quick ? 2 : 6);
}

// A link that does not bring what was sent is found and named.
static void check_damage(struct result *to, int tp, int n_gpus)
{
    struct ranks_case c = {.comm = {.tp = tp, .way = COMM_PEER, .deadline_ms = 30000,
                                    .damaged = tp},
                           .n_gpus = n_gpus, .arena_bytes = ARENA};
    struct rank_thread ranks[TP_MAX];
    ranks_run(ranks, &c, nothing);
    bool found = false;
    for (int i = 0; i < tp; i++) {
        found = found || (strcmp(ranks[i].error.code, "no_peer") == 0 &&
                          strstr(ranks[i].error.text, "not what was sent") != NULL);
    }
    line(to, &c, "a planted corruption is found", found ? 0 : INFINITY, 0);
    printf("# %s\n", ranks[tp - 1].error.text);
}

void check_ranks(struct result *r, int n_gpus)
{
    struct ranks_case c = {.comm = {.deadline_ms = 30000}, .arena_bytes = ARENA};
    for (int tp = 2; tp <= 4; tp *= 2) {
        c.comm.tp = tp;
        c.comm.way = COMM_PEER;
        c.n_gpus = n_gpus < tp ? n_gpus : tp;
        check_way(r, c, false, true);
        check_damage(r, tp, c.n_gpus);
    }
    for (int tp = 1; tp <= n_gpus; tp *= 2) {
        c.comm = (struct comm_cuda_options){.tp = tp, .way = COMM_NCCL, .deadline_ms = 30000};
        c.n_gpus = tp;
        check_way(r, c, true, true);
        c.comm.way = COMM_DIRECT;
        check_way(r, c, true, false);
        c.comm.without_nccl = true;
        check_way(r, c, true, true);
    }
}

void check_ranks_staged(struct result *r, int n_gpus)
{
    for (int tp = 2; tp <= 4 || tp <= n_gpus; tp *= 2) {
        struct ranks_case c = {.comm = {.tp = tp, .way = COMM_DIRECT, .deadline_ms = 30000,
                                        .staged = true},
                               .n_gpus = n_gpus < tp ? n_gpus : tp, .arena_bytes = ARENA};
        c.comm.crowded = n_gpus < tp;
        check_way(r, c, true, true);
        c.comm.coarse_least = 1; // sums of all sizes
        check_way(r, c, true, false);
    }
}
