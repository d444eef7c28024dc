#include "broker/door.h"

#include "common/curve.h"
#include "common/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

static bool begins(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

enum status door_check(const struct door_options *o, struct error *e)
{
    const char *endpoint = o->listen;
    if ((o->key != NULL) != (o->allow != NULL)) {
        return error_set(e, ERR_INPUT, "bad_usage", "--key and --allow belong together");
    }
    if (begins(endpoint, "ipc://")) return OK;
    if (!begins(endpoint, "tcp://") || strchr(endpoint + 6, ':') == NULL) {
        return error_set(e, ERR_INPUT, "bad_usage", "--listen wants tcp://ADDRESS:PORT, not \"%s\"",
                         endpoint);
    }
    if (curve_is_local(endpoint) || o->key != NULL || o->insecure) return OK;
    return error_set(e, ERR_INPUT, "not_loopback",
                     "%s can be reached from other machines: give --key and --allow (penstock "
                     "keygen makes keys), or --insecure to do without encryption", endpoint);
}

static enum status secure(struct door *d, const struct door_options *o, struct error *e)
{
    if (o->key == NULL) {
        if (curve_is_local(o->listen)) return OK;
        log_line(LOG_WARN, "insecure",
                 log_str("note", "no encryption and no keys: whoever reaches this port can pose as "
                                 "a group, is given jobs and may answer them; whoever sees the "
                                 "traffic reads prompts and outputs"));
        return OK;
    }
    struct curve_pair pair;
    try(curve_read_secret(&pair, o->key, e));
    try(allow_init(&d->allow, o->allow, e));
    d->zap = zmq_socket(d->zmq, ZMQ_REP);
    if (d->zap == NULL || zmq_bind(d->zap, ALLOW_ENDPOINT) != 0) {
        return error_set(e, ERR_IO, NULL, "no socket to judge keys: %s", strerror(errno));
    }
    enum status status = curve_apply(d->socket, &pair, NULL, e);
    zmq_setsockopt(d->socket, ZMQ_ZAP_DOMAIN, "penstock", strlen("penstock"));
    log_line(LOG_INFO, "encrypted", log_str("key", pair.public_key));
    explicit_bzero(&pair, sizeof pair);
    return status;
}

enum status door_init(struct door *d, const struct door_options *o, struct error *e)
{
    d->zmq = zmq_ctx_new();
    d->socket = d->zmq != NULL ? zmq_socket(d->zmq, ZMQ_ROUTER) : NULL;
    if (d->socket != NULL) return secure(d, o, e);
    return error_set(e, ERR_IO, NULL, "no sockets: %s", strerror(errno));
}

enum status door_listen(struct door *d, const struct door_options *o, struct error *e)
{
    char text[ENDPOINT_MAX + 1];
    size_t n = sizeof d->endpoint;
    snprintf(text, sizeof text, "%s", o->listen);
    size_t length = strlen(text);
    if (begins(text, "tcp://") && length > 2 && strcmp(text + length - 2, ":0") == 0) {
        text[length - 1] = '*'; // as libzmq writes any port
    }
    if (zmq_bind(d->socket, text) != 0) {
        if (errno == EADDRINUSE) {
            return error_set(e, ERR_IO, "port_taken",
                             "%s is taken: does another broker run? Choose another port with "
                             "--listen", text);
        }
        return error_set(e, ERR_IO, "cannot_listen", "cannot listen on %s: %s", text,
                         zmq_strerror(errno));
    }
    zmq_getsockopt(d->socket, ZMQ_LAST_ENDPOINT, d->endpoint, &n);
    log_line(LOG_INFO, "listening", log_str("endpoint", d->endpoint));
    return OK;
}

const struct allow *door_allow(const struct door *d) { return d->zap != NULL ? &d->allow : NULL; }

void door_deinit(struct door *d)
{
    if (d->socket != NULL) zmq_close(d->socket);
    if (d->zap != NULL) zmq_close(d->zap);
    if (d->zmq != NULL) zmq_ctx_term(d->zmq);
}
