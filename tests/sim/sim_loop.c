// CZMQ's zloop, as far as the broker uses it.
#include "broker/loop.h"
#include "tests/sim/sim_parts.h"

#include <string.h>

enum { PARTS_MAX = 64 };

struct poller {
    zmq_pollitem_t item;
    zloop_fn *fn; // NULL: a free place
    void *arg;
};

struct timer {
    int id;
    int64_t due_ns, every_ns;
    size_t times; // 0: for ever
    zloop_timer_fn *fn; // NULL: a free place
    void *arg;
};

struct _zloop_t {
    struct poller pollers[PARTS_MAX];
    struct timer timers[PARTS_MAX];
    int n_pollers, n_timers, ids;
};

zloop_t *zloop_new(void) { return sim_alloc(sizeof(zloop_t)); }
void zloop_destroy(zloop_t **loop) { *loop = NULL; }
void zloop_set_nonstop(zloop_t *loop, bool nonstop) { (void) loop, (void) nonstop; }
void zloop_poller_set_tolerant(zloop_t *loop, zmq_pollitem_t *item) { (void) loop, (void) item; }

int zloop_poller(zloop_t *loop, zmq_pollitem_t *item, zloop_fn fn, void *arg)
{
    int i = 0;
    while (i < loop->n_pollers && loop->pollers[i].fn != NULL) i++;
    if (i == PARTS_MAX) return -1;
    if (i == loop->n_pollers) loop->n_pollers++;
    loop->pollers[i] = (struct poller){*item, fn, arg};
    return 0;
}

void zloop_poller_end(zloop_t *loop, zmq_pollitem_t *item)
{
    for (int i = 0; i < loop->n_pollers; i++) {
        struct poller *p = &loop->pollers[i];
        bool same = item->socket != NULL ? p->item.socket == item->socket
                                         : p->item.socket == NULL && p->item.fd == item->fd;
        if (same) p->fn = NULL;
    }
}

int zloop_timer(zloop_t *loop, size_t delay, size_t times, zloop_timer_fn fn, void *arg)
{
    int i = 0;
    while (i < loop->n_timers && loop->timers[i].fn != NULL) i++;
    if (i == PARTS_MAX) return -1;
    if (i == loop->n_timers) loop->n_timers++;
    int64_t every = (int64_t) delay * SIM_MS;
    loop->timers[i] = (struct timer){++loop->ids, sim_now() + every, every, times, fn, arg};
    return loop->ids;
}

int zloop_timer_end(zloop_t *loop, int id)
{
    for (int i = 0; i < loop->n_timers; i++) {
        if (loop->timers[i].id == id) loop->timers[i].fn = NULL;
    }
    return 0;
}

// False: a handler wants the end.
static bool fire_timers(zloop_t *loop)
{
    for (int i = 0; i < loop->n_timers; i++) {
        struct timer *t = &loop->timers[i];
        if (t->fn == NULL || t->due_ns > sim_now()) continue;
        zloop_timer_fn *fn = t->fn;
        t->due_ns = sim_now() + t->every_ns;
        if (t->times > 0 && --t->times == 0) t->fn = NULL;
        if (fn(loop, t->id, t->arg) != 0) return false;
    }
    return true;
}

static bool is_ready(const struct poller *p)
{
    if (p->fn == NULL) return false;
    return p->item.socket != NULL ? sim_zmq_readable(p->item.socket) : sim_fd_readable(p->item.fd);
}

static int64_t next_due(const zloop_t *loop)
{
    int64_t next = INT64_MAX;
    for (int i = 0; i < loop->n_timers; i++) {
        const struct timer *t = &loop->timers[i];
        if (t->fn != NULL && t->due_ns < next) next = t->due_ns;
    }
    return next;
}

int zloop_start(zloop_t *loop)
{
    for (;;) {
        if (!fire_timers(loop)) return -1;
        bool any = false;
        for (int i = 0; i < loop->n_pollers; i++) {
            struct poller *p = &loop->pollers[i];
            if (!is_ready(p)) continue;
            any = true;
            if (p->fn(loop, &p->item, p->arg) != 0) return -1;
        }
        if (!any) sim_sleep(next_due(loop));
        else sim_sleep(sim_now()); // others have their turns, too
    }
}

void zsys_handler_set(zsys_handler_fn *handler) { (void) handler; }
