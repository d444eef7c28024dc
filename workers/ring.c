#include "workers/ring.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum status ring_init(struct ring *r, int n_steps, int tp, struct error *e)
{
    *r = (struct ring){.n_steps = n_steps, .tp = tp};
    pthread_mutex_init(&r->mutex, NULL);
    pthread_cond_init(&r->moved, NULL);
    r->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (r->fd < 0) return error_set(e, ERR_NOMEM, NULL, "no descriptor for a stage's events");
    return OK;
}

void ring_deinit(struct ring *r)
{
    if (r->fd >= 0) close(r->fd);
    pthread_cond_destroy(&r->moved);
    pthread_mutex_destroy(&r->mutex);
}

void ring_notify(struct ring *r)
{
    uint64_t one = 1;
    ssize_t n = write(r->fd, &one, sizeof one);
    check(n == sizeof one || errno == EAGAIN, "eventfd: %s", strerror(errno));
}

static int place_of(const struct ring *r, uint64_t number)
{
    return (int) (number % (uint64_t) r->n_steps);
}

// --- the leader's side

int ring_next(struct ring *r)
{
    pthread_mutex_lock(&r->mutex);
    uint64_t used = r->submitted - r->released, next = r->submitted;
    pthread_mutex_unlock(&r->mutex);
    return used < (uint64_t) r->n_steps ? place_of(r, next) : -1;
}

void ring_submit(struct ring *r)
{
    pthread_mutex_lock(&r->mutex);
    r->submitted++;
    pthread_cond_broadcast(&r->moved);
    pthread_mutex_unlock(&r->mutex);
}

int ring_oldest(struct ring *r, enum status *status, struct error *e)
{
    int place = -1;
    pthread_mutex_lock(&r->mutex);
    *status = r->status;
    if (r->status != OK && e != NULL) *e = r->error;
    if (r->status == OK && r->released < r->submitted) {
        bool done = true;
        for (int i = 0; i < r->tp; i++) done = done && r->done[i] > r->released;
        if (done) place = place_of(r, r->released);
    }
    pthread_mutex_unlock(&r->mutex);
    return place;
}

void ring_release(struct ring *r)
{
    pthread_mutex_lock(&r->mutex);
    r->released++;
    pthread_mutex_unlock(&r->mutex);
}

// The mutex is held.
static bool is_idle(const struct ring *r, int rank)
{
    return r->done[rank] == r->submitted || r->left[rank];
}

bool ring_idle(struct ring *r)
{
    pthread_mutex_lock(&r->mutex);
    bool idle = true;
    for (int i = 0; i < r->tp; i++) idle = idle && is_idle(r, i);
    pthread_mutex_unlock(&r->mutex);
    return idle;
}

void ring_reset(struct ring *r)
{
    pthread_mutex_lock(&r->mutex);
    for (int i = 0; i < r->tp; i++) {
        while (!is_idle(r, i)) pthread_cond_wait(&r->moved, &r->mutex);
    }
    r->released = r->submitted;
    pthread_mutex_unlock(&r->mutex);
}

void ring_stop(struct ring *r)
{
    pthread_mutex_lock(&r->mutex);
    atomic_store(&r->stop, true);
    pthread_cond_broadcast(&r->moved);
    pthread_mutex_unlock(&r->mutex);
}

// --- a rank's

bool ring_wait(struct ring *r, uint64_t number)
{
    pthread_mutex_lock(&r->mutex);
    while (r->submitted <= number && !atomic_load(&r->stop)) {
        pthread_cond_wait(&r->moved, &r->mutex);
    }
    bool go = !atomic_load(&r->stop);
    pthread_mutex_unlock(&r->mutex);
    return go;
}

void ring_finish(struct ring *r, int rank, enum status status, const struct error *error)
{
    pthread_mutex_lock(&r->mutex);
    if (status != OK && r->status == OK) {
        r->status = status;
        r->error = *error;
    }
    uint64_t mine = ++r->done[rank], least = mine;
    for (int i = 0; i < r->tp; i++) {
        if (r->done[i] < least) least = r->done[i];
    }
    bool last = least == mine; // nobody is behind: this rank finished the step
    if (last || status != OK) pthread_cond_broadcast(&r->moved); // ring_reset may wait
    pthread_mutex_unlock(&r->mutex);
    if (last || status != OK) ring_notify(r);
}

void ring_leave(struct ring *r, int rank)
{
    pthread_mutex_lock(&r->mutex);
    r->left[rank] = true;
    pthread_cond_broadcast(&r->moved);
    pthread_mutex_unlock(&r->mutex);
    ring_notify(r);
}
