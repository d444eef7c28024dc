#include "broker/redis_loop.h"

#include "broker/redis_tls.h"

#include <czmq.h>
#include <hiredis/async.h>
#include <hiredis/hiredis.h>
#include <hiredis/sds.h>

// --- the loop's side

// hiredis may end the connection inside its handlers: link->ac is NULL then, until a later turn.
static void flush(struct redis_link *link)
{
    link->flushing = true;
    redisAsyncHandleWrite(link->ac);
    link->flushing = false;
}

static int on_ready(zloop_t *loop, zmq_pollitem_t *item, void *arg)
{
    struct redis_link *link = arg;
    (void) loop;
    // An event of a connection that another handler ended in this turn.
    if (link->ac == NULL || item->fd != link->fd) return 0;
    if ((item->revents & ZMQ_POLLOUT) != 0) flush(link);
    if (link->ac != NULL && (item->revents & (ZMQ_POLLIN | ZMQ_POLLERR)) != 0) {
        redisAsyncHandleRead(link->ac);
    }
    return 0;
}

// A poller's events cannot be changed, so it is ended and begun again.
static void poll_for(struct redis_link *link, bool out)
{
    zmq_pollitem_t item = {.fd = link->fd, .events = ZMQ_POLLIN};
    if (out) item.events |= ZMQ_POLLOUT;
    zloop_poller_end(link->loop, &item);
    check(zloop_poller(link->loop, &item, on_ready, link) == 0);
    zloop_poller_set_tolerant(link->loop, &item);
    link->polls_out = out;
}

static int on_flush(zloop_t *loop, int timer, void *arg)
{
    struct redis_link *link = arg;
    (void) loop, (void) timer;
    link->flush_timer = 0;
    if (link->ac != NULL) flush(link);
    return 0;
}

// --- hiredis' side

static void add_read(void *data) { (void) data; } // POLLIN is always on

static void del_read(void *data) { (void) data; }

// There is something to write. A timer of no delay lets the commands of one turn go out together;
// what a flush leaves over, and a connection under way, wait for POLLOUT.
static void add_write(void *data)
{
    struct redis_link *link = data;
    if (link->polls_out) return;
    if (link->flushing || (link->ac->c.flags & REDIS_CONNECTED) == 0) {
        poll_for(link, true);
    } else if (link->flush_timer == 0) {
        link->flush_timer = zloop_timer(link->loop, 0, 1, on_flush, link);
        check(link->flush_timer > 0);
    }
}

static void del_write(void *data)
{
    struct redis_link *link = data;
    if (link->polls_out) poll_for(link, false);
}

static void cleanup(void *data)
{
    struct redis_link *link = data;
    zmq_pollitem_t item = {.fd = link->fd};
    zloop_poller_end(link->loop, &item);
    if (link->flush_timer != 0) zloop_timer_end(link->loop, link->flush_timer);
    *link = (struct redis_link){.loop = link->loop, .fd = -1};
}

enum status redis_link_connect(struct redis_link *link, zloop_t *loop, const struct redis_url *url,
                               struct error *e)
{
    check(link->ac == NULL);
    redisAsyncContext *ac = url->host[0] != '\0' ? redisAsyncConnect(url->host, url->port)
                                                 : redisAsyncConnectUnix(url->path);
    if (ac == NULL) return redis_connection_error(NULL, url, e);
    if (ac->err != 0) {
        enum status status = redis_connection_error(&ac->c, url, e);
        redisAsyncFree(ac);
        return status;
    }
    enum status status = redis_tls_start(&ac->c, url, e);
    if (status != OK) {
        redisAsyncFree(ac);
        return status;
    }
    redis_reader_limit(&ac->c);
    *link = (struct redis_link){.ac = ac, .loop = loop, .fd = ac->c.fd};
    ac->ev.data = link;
    ac->ev.addRead = add_read;
    ac->ev.delRead = del_read;
    ac->ev.addWrite = add_write;
    ac->ev.delWrite = del_write;
    ac->ev.cleanup = cleanup;
    poll_for(link, true); // writable: connected, or failed
    return OK;
}

void redis_link_cut(struct redis_link *link)
{
    if (link->ac != NULL) redisAsyncFree(link->ac);
}

size_t redis_link_unsent(const struct redis_link *link)
{
    return link->ac != NULL ? sdslen(link->ac->c.obuf) : 0;
}
