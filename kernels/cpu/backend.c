// The CPU's table of the device seam.
#include "kernels/backend.h"

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/life.h"
#include "kernels/cpu/ops.h"

static const struct backend cpu = {
    .name = "cpu",
    .kind = DEVICE_CPU,
    .memory = cpu_memory,
    .open = cpu_open,
    .close = cpu_close,
    .arena = cpu_arena,
    .set_scratch = cpu_set_scratch,
    .matrix_pack = cpu_matrix_pack,
    .upload = cpu_upload,
    .download = cpu_download,
    .sync = cpu_sync,
    .graph_begin = cpu_graph_begin,
    .graph_end = cpu_graph_end,
    .graph_launch = cpu_graph_end,
    .embed = cpu_embed,
    .rmsnorm = cpu_rmsnorm,
    .add_rmsnorm = cpu_add_rmsnorm,
    .gemm = cpu_gemm,
    .gemm_pair = cpu_gemm_pair,
    .gemm_heads = cpu_gemm_heads,
    .rope_angles = cpu_rope_angles,
    .rope = cpu_rope,
    .kv_write = cpu_kv_write,
    .latents = cpu_latents,
    .mla = cpu_mla,
    .route = cpu_route,
    .moe = cpu_moe,
    .swiglu = cpu_swiglu,
    .add = cpu_add,
    .import_act = cpu_import_act,
    .export_act = cpu_export_act,
    .gather = cpu_gather,
};

const struct backend *backend_cpu(void) { return &cpu; }

enum precision precision_auto(void)
{
    return isa_best() == ISA_AVX512BF16 ? PRECISION_BF16 : PRECISION_F32;
}

const char *precision_name(enum precision p) { return p == PRECISION_F32 ? "f32" : "bf16"; }
