// Which collectives ranks on GPUs take.
#include "kernels/cuda/comm_peer.cuh"

extern "C" enum status comm_cuda_create(struct comm **comms, const struct comm_cuda_options *o,
                                        struct error *e)
{
    check(o->tp >= 1 && o->tp <= TP_MAX, "tp %d", o->tp);
    return comm_peer_create(comms, o, e);
}
