// The broker's pool of threads: an item's work is done at once, in no time, and is seen to be done
// a while later, in order.
#include "broker/pool.h"
#include "tests/sim/sim_parts.h"

#include <unistd.h>

enum { WORK_LEAST_US = 20, WORK_MOST_US = 3000 };

static bool quick;

void sim_pool_begin(bool at_once) { quick = at_once; }

struct item {
    struct item *next;
    struct pool *pool;
    void *work;
    bool done;
};

struct pool {
    pool_work *work;
    void *arg;
    int fd, n_threads, n_items, max_items;
    uint64_t given;
    struct item *first, **last;
    bool closed;
};

enum status pool_create(struct pool **pool, int n_threads, int max_items, pool_work *work,
                        void *arg, struct error *e)
{
    struct pool *p = *pool = sim_alloc(sizeof *p);
    (void) e;
    *p = (struct pool){.work = work, .arg = arg, .n_threads = n_threads, .max_items = max_items};
    p->fd = sim_fd(sim_self());
    p->last = &p->first;
    return OK;
}

void pool_destroy(struct pool **pool, void (*drop)(void *item))
{
    struct pool *p = *pool;
    if (p == NULL) return;
    *pool = NULL;
    p->closed = true;
    for (struct item *i = p->first; drop != NULL && i != NULL; i = i->next) drop(i->work);
}

static void on_done(void *arg)
{
    struct item *i = arg;
    i->done = true;
    if (!i->pool->closed) sim_fd_write(i->pool->fd, 1);
}

bool pool_submit(struct pool *p, void *work)
{
    if (p->n_items == p->max_items) return false;
    struct item *i = sim_alloc(sizeof *i);
    *i = (struct item){.pool = p, .work = work};
    *p->last = i;
    p->last = &i->next;
    p->n_items++;
    p->work(p->arg, work, (int) (p->given++ % (uint64_t) p->n_threads));
    int64_t takes = quick ? 0 : sim_between(WORK_LEAST_US, WORK_MOST_US) * 1000;
    sim_at(sim_now() + takes, on_done, i);
    return true;
}

int pool_room(const struct pool *p) { return p->max_items - p->n_items; }
int pool_fd(const struct pool *p) { return p->fd; }

void *pool_done(struct pool *p)
{
    uint64_t times;
    ssize_t ignored = read(p->fd, &times, sizeof times);
    (void) ignored;
    struct item *i = p->first;
    if (i == NULL || !i->done) return NULL;
    p->first = i->next;
    if (p->first == NULL) p->last = &p->first;
    p->n_items--;
    return i->work;
}
