#include "kernels/precision.h"

#include <string.h>

enum status precision_parse(const char *text, const struct backend *b, enum precision *p,
                            struct error *e)
{
    if (strcmp(text, "auto") == 0) {
        *p = b->kind == DEVICE_CPU ? precision_auto() : PRECISION_BF16;
    } else if (strcmp(text, "f32") == 0) {
        *p = PRECISION_F32;
    } else if (strcmp(text, "bf16") == 0) {
        *p = PRECISION_BF16;
    } else {
        return error_set(e, ERR_INPUT, "bad_usage",
                         "--precision wants auto, f32 or bf16, not \"%s\"", text);
    }
    return OK;
}
