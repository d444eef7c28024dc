// The CUDA backend's table of the device seam.
#include "kernels/backend.h"

#include "kernels/cuda/ops.h"
#include "kernels/cuda/sampler.h"

static const struct backend cuda = {
    .name = "cuda",
    .kind = DEVICE_CUDA,
    .records = true,
    .memory = cuda_memory,
    .open = cuda_open,
    .close = cuda_close,
    .arena = cuda_arena,
    .host_memory = cuda_host_memory,
    .usage = cuda_usage,
    .pin = cuda_pin,
    .set_scratch = cuda_set_scratch,
    .matrix_pack = cuda_matrix_pack,
    .upload = cuda_upload,
    .download = cuda_download,
    .sync = cuda_sync,
    .step_end = cuda_step_end,
    .step_passed = cuda_step_passed,
    .step_wait = cuda_step_wait,
    .graph_begin = cuda_graph_begin,
    .graph_end = cuda_graph_end,
    .graph_launch = cuda_graph_launch,
    .branch = cuda_branch,
    .resume = cuda_resume,
    .join = cuda_join,
    .embed = cuda_embed,
    .rmsnorm = cuda_rmsnorm,
    .add_rmsnorm = cuda_add_rmsnorm,
    .gemm = cuda_gemm,
    .gemm_heads = cuda_gemm_heads,
    .rope_angles = cuda_rope_angles,
    .rope = cuda_rope,
    .kv_write = cuda_kv_write,
    .mla = cuda_mla,
    .mla_run = cuda_mla_run,
    .run_least = cuda_run_least,
    .route = cuda_route,
    .moe = cuda_moe,
    .swiglu = cuda_swiglu,
    .add = cuda_add,
    .import_act = cuda_import_act,
    .export_act = cuda_export_act,
    .gather = cuda_gather,
    .sampler = &cuda_sampler,
};

const struct backend *backend_cuda(void) { return &cuda; }
