#include "broker/pool.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct entry {
    void *item;
    bool done;
};

struct worker {
    struct pool *pool;
    int index;
    pthread_t thread;
};

struct pool {
    pool_work *work;
    void *arg;
    int fd;
    struct worker *workers;
    int n_workers;
    int max_items;
    struct entry *ring; // (max_items)
    // Guarded by mutex; counted from the beginning of time, taken modulo max_items.
    pthread_mutex_t mutex;
    pthread_cond_t more;
    uint64_t given, begun, taken;
    bool stop;
};

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct pool *p = w->pool;
    pthread_mutex_lock(&p->mutex);
    for (;;) {
        while (!p->stop && p->begun == p->given) pthread_cond_wait(&p->more, &p->mutex);
        if (p->stop) break;
        struct entry *entry = &p->ring[p->begun++ % (uint64_t) p->max_items];
        pthread_mutex_unlock(&p->mutex);
        p->work(p->arg, entry->item, w->index);
        pthread_mutex_lock(&p->mutex);
        entry->done = true;
        uint64_t one = 1;
        ssize_t n = write(p->fd, &one, sizeof one);
        check(n == sizeof one || errno == EAGAIN, "eventfd: %s", strerror(errno));
    }
    pthread_mutex_unlock(&p->mutex);
    return NULL;
}

enum status pool_create(struct pool **pool, int n_threads, int max_items, pool_work *work,
                        void *arg, struct error *e)
{
    struct pool *p = calloc(1, sizeof *p);
    *pool = p;
    if (p == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a pool");
    p->work = work;
    p->arg = arg;
    p->max_items = max_items;
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->more, NULL);
    p->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    p->ring = calloc((size_t) max_items, sizeof *p->ring);
    p->workers = calloc((size_t) n_threads, sizeof *p->workers);
    enum status status = OK;
    if (p->fd < 0 || p->ring == NULL || p->workers == NULL) {
        status = error_set(e, ERR_NOMEM, NULL, "no memory or descriptor for a pool");
    }
    for (int i = 0; status == OK && i < n_threads; i++) {
        p->workers[i] = (struct worker){.pool = p, .index = i};
        int failed = pthread_create(&p->workers[i].thread, NULL, worker_main, &p->workers[i]);
        if (failed != 0) {
            status = error_set(e, ERR_IO, NULL, "cannot start a thread: %s", strerror(failed));
        } else {
            p->n_workers++;
        }
    }
    if (status != OK) pool_destroy(pool, NULL);
    return status;
}

void pool_destroy(struct pool **pool, void (*drop)(void *item))
{
    struct pool *p = *pool;
    if (p == NULL) return;
    *pool = NULL;
    pthread_mutex_lock(&p->mutex);
    p->stop = true;
    pthread_cond_broadcast(&p->more);
    pthread_mutex_unlock(&p->mutex);
    for (int i = 0; i < p->n_workers; i++) pthread_join(p->workers[i].thread, NULL);
    for (; drop != NULL && p->taken < p->given; p->taken++) {
        drop(p->ring[p->taken % (uint64_t) p->max_items].item);
    }
    if (p->fd >= 0) close(p->fd);
    pthread_cond_destroy(&p->more);
    pthread_mutex_destroy(&p->mutex);
    free(p->workers);
    free(p->ring);
    free(p);
}

bool pool_submit(struct pool *p, void *item)
{
    if (pool_room(p) == 0) return false;
    pthread_mutex_lock(&p->mutex);
    p->ring[p->given++ % (uint64_t) p->max_items] = (struct entry){item, false};
    pthread_cond_signal(&p->more);
    pthread_mutex_unlock(&p->mutex);
    return true;
}

int pool_room(const struct pool *p)
{
    return p->max_items - (int) (p->given - p->taken); // both change in the loop's thread only
}

int pool_fd(const struct pool *p) { return p->fd; }

void *pool_done(struct pool *p)
{
    uint64_t count;
    if (read(p->fd, &count, sizeof count) < 0)
        check(errno == EAGAIN, "eventfd: %s", strerror(errno));
    void *item = NULL;
    pthread_mutex_lock(&p->mutex);
    struct entry *oldest = &p->ring[p->taken % (uint64_t) p->max_items];
    if (p->taken < p->given && oldest->done) {
        item = oldest->item;
        p->taken++;
    }
    pthread_mutex_unlock(&p->mutex);
    return item;
}
