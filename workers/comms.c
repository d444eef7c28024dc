#include "workers/comms.h"

#include "common/rank_layout.h"

#include <string.h>

static bool host_reads(const struct stage_options *o)
{
    return device_sizes(o->backend->kind)->host_reads;
}

// What a collective in host memory holds at most; rank 0 has the largest slice of the vocabulary.
static void sizes(const struct stage_options *o, size_t *elements, size_t *gather)
{
    struct rank_shape first = {.config = o->config,
                               .place = {.tp = o->tp},
                               .device = o->backend->kind,
                               .slots = o->limits.slots,
                               .max_blocks = o->limits.max_blocks,
                               .max_out = o->limits.max_out};
    struct sampler_shape widest = rank_sampler_shape(&first);
    *elements = host_reads(o) ? (size_t) o->limits.max_rows * (size_t) o->config->hidden_size : 0;
    *gather = sampler_gather_max(&widest);
}

uint64_t comms_bytes(const struct stage_options *o)
{
    size_t elements, gather;
    sizes(o, &elements, &gather);
    return comm_local_bytes(o->tp, elements, gather);
}

// With one rank no collective touches what it is given, so that one kind does.
enum status comms_create(struct comms *c, const struct stage_options *o, struct error *e)
{
    size_t elements, gather;
    c->tp = o->tp;
    sizes(o, &elements, &gather);
    try(comm_local_create(c->host, o->tp, elements, gather, o->collective_deadline_ms, o->comm, e));
    if (host_reads(o) || o->tp == 1) {
        memcpy(c->device, c->host, sizeof c->device);
        return OK;
    }
    struct comm_cuda_options options = o->sums;
    options.tp = o->tp;
    options.deadline_ms = o->collective_deadline_ms;
    return comm_cuda_create(c->device, &options, e);
}

void comms_abort(struct comms *c)
{
    if (c->device[0] == NULL) return;
    c->device[0]->ops->abort(c->device[0]);
    c->host[0]->ops->abort(c->host[0]);
}

void comms_destroy(struct comms *c)
{
    for (int i = 0; i < c->tp; i++) {
        if (c->device[i] != NULL && c->device[i] != c->host[i]) {
            c->device[i]->ops->destroy(&c->device[i]);
        }
        if (c->host[i] != NULL) c->host[i]->ops->destroy(&c->host[i]);
    }
}
