#include "kernels/devices.h"

#include "common/limits.h"

#include <stdlib.h>
#include <string.h>

static enum status bad(const char *text, struct error *e)
{
    return error_set(e, ERR_INPUT, "bad_usage",
                     "devices are cpu:N or cuda:N with N from 1 to %d, not \"%s\"", TP_MAX, text);
}

enum status devices_parse(const char *text, struct devices *d, struct error *e)
{
    size_t n_kind = strcspn(text, ":");
    bool cpu = n_kind == 3 && memcmp(text, "cpu", 3) == 0;
    bool cuda = n_kind == 4 && memcmp(text, "cuda", 4) == 0;
    if (!cpu && !cuda) return bad(text, e);
    long n = 1;
    if (text[n_kind] == ':') {
        const char *digits = text + n_kind + 1;
        char *end;
        if (*digits < '0' || *digits > '9') return bad(text, e);
        n = strtol(digits, &end, 10);
        if (*end != 0 || n < 1 || n > TP_MAX) return bad(text, e);
    }
    *d = (struct devices){cpu ? backend_cpu() : backend_cuda(), (int) n};
    if (d->backend != NULL) return OK;
    return error_set(e, ERR_UNSUPPORTED, "no_cuda",
                     "%s: this program was built without CUDA; build it where nvcc is, or take cpu",
                     text);
}

enum status devices_memory(const struct devices *d, uint64_t *bytes, struct error *e)
{
    return d->backend->memory(d->n, bytes, e);
}
