// The log lines of collectives on GPUs. The log's macros are C, so these functions are. Any thread.
#ifndef PENSTOCK_KERNELS_CUDA_COMM_LOG_H
#define PENSTOCK_KERNELS_CUDA_COMM_LOG_H

#ifdef __cplusplus
extern "C" {
#endif

// event=collectives: which way a group takes, how data goes between its GPUs, and why not better.
void comm_log_way(int ranks, const char *way, const char *links, const char *note);

// event=nccl: what NCCL says of a failure.
void comm_log_nccl(int rank, const char *in, const char *error, const char *note);

#ifdef __cplusplus
}
#endif

#endif
