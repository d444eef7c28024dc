#include "tests/sim/sim_cores.h"

#include <math.h>
#include <stdint.h>

static struct {
    int n_cores;
    int n_taken;             // by leaders
    int n_threads;           // of the ranks that compute
    struct sim_work *works;
    int64_t counted_ns;      // until then all work is counted
    uintptr_t plan;          // number of the last look ahead
} room;

void sim_cores_begin(int n_cores)
{
    room.n_cores = n_cores;
    room.n_taken = room.n_threads = 0;
    room.works = NULL;
    room.counted_ns = 0;
}

// Of a core, for each thread of a rank.
static double share(const struct sim_work *w)
{
    int left = room.n_cores - room.n_taken;
    if (w->width == 0) return 1;
    if (left <= 0) return 0;
    return room.n_threads <= left ? 1 : (double) left / room.n_threads;
}

static void count(void)
{
    double ns = (double) (sim_now() - room.counted_ns);
    for (struct sim_work *w = room.works; w != NULL; w = w->next) w->left_ns -= share(w) * ns;
    room.counted_ns = sim_now();
}

static void look_ahead(void);

static void on_due(void *arg)
{
    if ((uintptr_t) arg != room.plan) return; // there has been a change since
    count();
    struct sim_work *ended = NULL;
    for (struct sim_work **at = &room.works, *w; (w = *at) != NULL;) {
        if (w->left_ns >= 1) {
            at = &w->next;
            continue;
        }
        *at = w->next;
        w->next = ended;
        ended = w;
        room.n_threads -= w->width;
    }
    while (ended != NULL) {
        struct sim_work *w = ended;
        ended = w->next;
        w->fn(w->arg); // may begin the next one
    }
    look_ahead();
}

// The next time at which work ends, if nothing changes before.
static void look_ahead(void)
{
    double least = INFINITY;
    for (const struct sim_work *w = room.works; w != NULL; w = w->next) {
        if (share(w) > 0) least = fmin(least, w->left_ns / share(w));
    }
    room.plan++;
    if (least < INFINITY) sim_at(sim_now() + (int64_t) ceil(least), on_due, (void *) room.plan);
}

void sim_cores_compute(struct sim_work *w, int64_t ns, int width, sim_fn *fn, void *arg)
{
    count();
    *w = (struct sim_work){(double) ns, width, fn, arg, room.works};
    room.works = w;
    room.n_threads += width;
    look_ahead();
}

static void on_taken(void *arg)
{
    (void) arg;
    count();
    room.n_taken++;
    look_ahead();
}

static void on_free(void *arg)
{
    (void) arg;
    count();
    room.n_taken--;
    look_ahead();
}

void sim_cores_take(int64_t from_ns, int64_t ns)
{
    sim_at(from_ns, on_taken, NULL);
    sim_at(from_ns + ns, on_free, NULL);
}
