#include "kernels/cuda/comm_log.h"

#include "common/log.h"

void comm_log_way(int ranks, const char *way, const char *links, const char *note)
{
    log_line(LOG_INFO, "collectives", log_int("ranks", ranks), log_str("way", way),
             log_str("links", links), log_str("note", note));
}

void comm_log_nccl(int rank, const char *in, const char *error, const char *note)
{
    log_line(LOG_ERROR, "nccl", log_int("rank", rank), log_str("in", in), log_str("error", error),
             log_str("note", note));
}
