#include "common/kv_block.h"

#include "common/limits.h"

#include <string.h>

enum { ROPE_BYTES = 2, SCALE_BYTES = 4 };

struct kv_block kv_block_fp8(int kv_lora, int rope)
{
    struct kv_block b = {.n_scales = (kv_lora + KV_SCALE_VALUES - 1) / KV_SCALE_VALUES};
    b.rope = (uint64_t) KV_BLOCK_ROWS * (uint64_t) kv_lora;
    b.scales = b.rope + (uint64_t) KV_BLOCK_ROWS * (uint64_t) rope * ROPE_BYTES;
    b.bytes = b.scales + (uint64_t) KV_BLOCK_ROWS * (uint64_t) b.n_scales * SCALE_BYTES;
    return b;
}

uint64_t kv_block_bytes(int kv_lora, int rope, bool f32, bool fp8)
{
    if (fp8) return kv_block_fp8(kv_lora, rope).bytes;
    return (uint64_t) KV_BLOCK_ROWS * (uint64_t) (kv_lora + rope) * (f32 ? 4 : 2);
}

enum status kv_parse(const char *text, bool *fp8, struct error *e)
{
    *fp8 = strcmp(text, "fp8") == 0;
    if (*fp8 || strcmp(text, "bf16") == 0) return OK;
    return error_set(e, ERR_INPUT, "bad_usage", "--kv wants bf16 or fp8, not \"%s\"", text);
}

const char *kv_name(bool f32, bool fp8) { return fp8 ? "fp8" : f32 ? "f32" : "bf16"; }
