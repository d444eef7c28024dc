#include "kernels/devices.h"

#include "common/limits.h"

#include <stdlib.h>
#include <string.h>

static enum status bad(const char *text, struct error *e)
{
    return error_set(e, ERR_INPUT, "bad_usage",
                     "devices are cpu:N, cuda:N or cuda:N/M with N and M from 1 to %d, not \"%s\"",
                     TP_MAX, text);
}

// A number from 1 to TP_MAX; NULL if there is none, else what comes after it.
static const char *parse_number(const char *text, int *n)
{
    char *end;
    if (*text < '0' || *text > '9') return NULL;
    long value = strtol(text, &end, 10);
    *n = (int) value;
    return value >= 1 && value <= TP_MAX ? end : NULL;
}

enum status devices_parse(const char *text, struct devices *d, struct error *e)
{
    size_t n_kind = strcspn(text, ":/");
    bool cpu = n_kind == 3 && memcmp(text, "cpu", 3) == 0;
    bool cuda = n_kind == 4 && memcmp(text, "cuda", 4) == 0;
    if (!cpu && !cuda) return bad(text, e);
    const char *at = text + n_kind;
    *d = (struct devices){.backend = cpu ? backend_cpu() : backend_cuda(), .n = 1};
    if (*at == ':') at = parse_number(at + 1, &d->n);
    if (at != NULL && *at == '/' && cuda) at = parse_number(at + 1, &d->n_gpus);
    if (at == NULL || *at != 0) return bad(text, e);
    if (d->backend != NULL) return OK;
    return error_set(e, ERR_UNSUPPORTED, "no_cuda",
                     "%s: this program was built without CUDA; build it where nvcc is, or take cpu",
                     text);
}

enum status devices_memory(const struct devices *d, uint64_t *bytes, struct error *e)
{
    bool shared = d->n_gpus > 0 && d->n_gpus < d->n;
    try(d->backend->memory(shared ? d->n_gpus : d->n, bytes, e));
    if (shared) *bytes /= (uint64_t) ((d->n + d->n_gpus - 1) / d->n_gpus);
    return OK;
}

uint64_t devices_context(enum device_kind kind)
{
    const struct backend *b = kind == DEVICE_CUDA ? backend_cuda() : NULL;
    struct device_options options = {.precision = PRECISION_BF16};
    struct device_usage usage = {0};
    struct device *d;
    if (b == NULL || b->open(&d, &options, NULL) != OK) return 0;
    b->usage(d, &usage);
    b->close(&d);
    return usage.alone ? usage.context : 0;
}
