// In place of kernels/cuda where there is no CUDA compiler.
#include "kernels/backend.h"
#include "kernels/comm.h"
#include "kernels/measures.h"

const struct backend *backend_cuda(void) { return NULL; }

const struct measures *measures_cuda(void) { return NULL; }

enum status comm_cuda_create(struct comm **comms, const struct comm_cuda_options *o,
                             struct error *e)
{
    (void) comms;
    return error_set(e, ERR_UNSUPPORTED, "no_cuda", "%d ranks on GPUs: this program was built "
                     "without CUDA", o->tp);
}
