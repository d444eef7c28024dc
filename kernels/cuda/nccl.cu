#include "kernels/cuda/nccl.cuh"

#include "kernels/cuda/comm.cuh"

#include <stdlib.h>

#if PENSTOCK_HAS_NCCL

#include <dlfcn.h>
#include <pthread.h>

enum { VERSION_LEAST = 21400 }; // communicators that do not block

static struct nccl library;
static struct error missing; // why there is none
static pthread_once_t once = PTHREAD_ONCE_INIT;

static bool find(void *handle, const char *name, void *to)
{
    *(void **) to = dlsym(handle, name);
    if (*(void **) to != NULL) return true;
    error_set(&missing, ERR_UNAVAILABLE, "no_nccl", "libnccl.so.2 has no %s", name);
    return false;
}

static void load(void)
{
    // Sums in the switch are one more use of memory, and not for machines that share it.
    setenv("NCCL_NVLS_ENABLE", "0", 0);
    void *handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) {
        error_set(&missing, ERR_UNAVAILABLE, "no_nccl", "NCCL is not there: %s; install libnccl2, "
                  "or let LD_LIBRARY_PATH name its folder", dlerror());
        return;
    }
    struct nccl *l = &library;
    int version = 0;
    bool whole = find(handle, "ncclGetVersion", &l->get_version) &&
                 find(handle, "ncclGetUniqueId", &l->get_id) &&
                 find(handle, "ncclCommInitRankConfig", &l->init) &&
                 find(handle, "ncclCommGetAsyncError", &l->async_error) &&
                 find(handle, "ncclCommAbort", &l->abort) &&
                 find(handle, "ncclAllReduce", &l->all_reduce) &&
                 find(handle, "ncclAllGather", &l->all_gather) &&
                 find(handle, "ncclBroadcast", &l->broadcast) &&
                 find(handle, "ncclGetErrorString", &l->error_string) &&
                 find(handle, "ncclGetLastError", &l->last_error);
    if (!whole) return;
    if (l->get_version(&version) == ncclSuccess && version >= VERSION_LEAST) return;
    error_set(&missing, ERR_UNAVAILABLE, "no_nccl", "NCCL is of version %d, %d is needed", version,
              VERSION_LEAST);
}

const struct nccl *nccl_library(struct error *e)
{
    pthread_once(&once, load);
    if (missing.status == OK) return &library;
    if (e != NULL) *e = missing;
    return NULL;
}

enum status cuda_nccl_check(struct error *e) { return nccl_library(e) != NULL ? OK : e->status; }

#else

enum status cuda_nccl_check(struct error *e)
{
    return error_set(e, ERR_UNAVAILABLE, "no_nccl", "this program was built without NCCL's header");
}

#endif
