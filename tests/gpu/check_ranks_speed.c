// Times of sums between ranks that have a GPU each, by every way, in one run.
#include "tests/gpu/check.h"
#include "tests/gpu/ranks.h"

#include "common/clock.h"

#include <math.h>
#include <stdio.h>

enum {
    ARENA = 80 * 1024 * 1024,
    SUMS = 20,     // of a recorded step
    REPEATS = 15,  // of which the median counts
};

static const size_t SIZES[] = {14 << 10, 28 << 10, 64 << 10, 224 << 10, 1 << 20, 4 << 20, 16 << 20};

enum { N_SIZES = sizeof SIZES / sizeof *SIZES };

struct times {
    double us[N_SIZES];
    bool eager; // not recorded
};

static const struct backend *b(void) { return backend_cuda(); }

static void sums(struct rank_thread *r, size_t bytes)
{
    for (int i = 0; i < SUMS && r->status == OK; i++) {
        r->status = r->comm->ops->all_reduce(r->comm, (float *) r->arena, bytes / sizeof(float));
    }
}

static void time_sums(struct rank_thread *r)
{
    struct times *times = r->what->body_arg;
    bool recorded = r->comm->ops->recordable && !times->eager;
    for (int k = 0; k < N_SIZES && r->status == OK; k++) {
        double us[REPEATS];
        for (int i = 0; i <= REPEATS && r->status == OK; i++) {
            if (i == 0 && recorded && b()->graph_begin(r->device, k + 1)) {
                sums(r, SIZES[k]);
                b()->graph_end(r->device, k + 1);
            }
            r->status = r->comm->ops->all_reduce(r->comm, (float *) r->arena, 256); // all are here
            if (r->status == OK) r->status = b()->sync(r->device, &r->error);
            int64_t begun_ns = clock_ns();
            if (recorded) b()->graph_launch(r->device, k + 1);
            else sums(r, SIZES[k]);
            if (r->status == OK) r->status = b()->sync(r->device, &r->error);
            if (i > 0) us[i - 1] = (double) (clock_ns() - begun_ns) * 1e-3 / SUMS;
        }
        if (r->comm->rank == 0) times->us[k] = median(us, REPEATS);
    }
}

static struct times time_way(struct result *to, const char *name, struct ranks_case c, bool eager)
{
    struct rank_thread ranks[TP_MAX];
    struct times times = {.eager = eager};
    int tp = c.comm.tp;
    c.body_arg = &times;
    ranks_run(ranks, &c, time_sums);
    if (ranks_wrong(ranks, tp) == INFINITY) printf("# %s\n", ranks[0].error.text);
    printf("# %s took %.1f MiB of GPU 0\n", name, (double) ranks[0].attach_bytes / 1048576.0);
    for (int k = 0; k < N_SIZES; k++) {
        double bus = 2.0 * (tp - 1) / tp * (double) SIZES[k] / times.us[k] * 1e-3;
        char line[96];
        snprintf(line, sizeof line, "%d ranks, %s: sum of %zu KiB", tp, name, SIZES[k] >> 10);
        result_figure(to, line, times.us[k], "us", 0);
        printf("#      %.1f GB/s of the bus\n", bus);
    }
    return times;
}

static struct times time_staged(struct result *r, struct ranks_case c, const struct times *nccl)
{
    char line[96];
    c.comm.way = COMM_DIRECT;
    struct times direct = time_way(r, "direct over the host", c, false);
    c.comm.coarse_least = 1;
    struct times coarse = time_way(r, "coarse over the host", c, false);
    if (nccl == NULL) return direct;
    for (int k = N_SIZES - 1; k < N_SIZES; k++) {
        snprintf(line, sizeof line, "%d ranks over the host: nccl / coarse, sum of %zu KiB",
                 c.comm.tp, SIZES[k] >> 10);
        result_figure(r, line, nccl->us[k] / coarse.us[k], "", 1.5);
    }
    return direct;
}

static struct times time_peers(struct result *r, struct ranks_case c)
{
    c.comm.way = COMM_DIRECT;
    c.comm.without_nccl = true;
    struct times direct = time_way(r, "direct", c, false);
    c.comm.way = COMM_PEER;
    time_way(r, "peer, not recorded", c, true);
    c.comm.way = COMM_NCCL;
    c.comm.without_nccl = false;
    time_way(r, "nccl, not recorded", c, true);
    return direct;
}

void check_ranks_speed(struct result *r, int n_gpus, bool staged)
{
    if (staged && n_gpus == 1) { // the copies of two ranks share the one's bus
        time_staged(r, (struct ranks_case){.comm = {.tp = 2, .deadline_ms = 30000, .staged = true,
                                                    .crowded = true},
                                           .n_gpus = 1, .arena_bytes = ARENA}, NULL);
    }
    for (int tp = 2; tp <= n_gpus; tp *= 2) {
        struct ranks_case c = {.comm = {.tp = tp, .way = COMM_NCCL, .deadline_ms = 30000,
                                        .staged = staged},
                               .n_gpus = tp, .arena_bytes = ARENA};
        struct times nccl = time_way(r, staged ? "nccl over the host" : "nccl", c, false);
        struct times direct = staged ? time_staged(r, c, &nccl) : time_peers(r, c);
        char line[96];
        for (int k = 0; SIZES[k] <= 64 << 10; k++) {
            snprintf(line, sizeof line, "%d ranks%s: direct / nccl, sum of %zu KiB", tp,
                     staged ? " over the host" : "", SIZES[k] >> 10);
            result_error(r, line, direct.us[k] / nccl.us[k], 0.5);
        }
    }
}
