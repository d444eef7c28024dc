// Ops run at once on the CPU: places on its stream are readings of the clock.
#include "kernels/measures.h"

#include "common/clock.h"

#include <stdlib.h>
#include <string.h>

struct marks {
    int64_t *at_ns; // (n)
};

static void marks_destroy(struct marks **marks)
{
    if (*marks == NULL) return;
    free((*marks)->at_ns);
    free(*marks);
    *marks = NULL;
}

static enum status marks_create(struct marks **marks, struct device *d, int n, struct error *e)
{
    (void) d;
    struct marks *m = *marks = calloc(1, sizeof *m);
    if (m != NULL) m->at_ns = malloc((size_t) n * sizeof *m->at_ns);
    if (m == NULL || m->at_ns == NULL) {
        marks_destroy(marks);
        return error_set(e, ERR_NOMEM, NULL, "no memory for %d marks", n);
    }
    for (int i = 0; i < n; i++) m->at_ns[i] = clock_ns();
    return OK;
}

static void mark(struct marks *m, int i) { m->at_ns[i] = clock_ns(); }

static double between(struct marks *m, int from, int to)
{
    return (double) (m->at_ns[to] - m->at_ns[from]) * 1e-9;
}

static void hold(struct device *d, double seconds)
{
    (void) d;
    (void) seconds;
}

static void copy(struct device *d, void *to, const void *from, size_t n)
{
    (void) d;
    memcpy(to, from, n);
}

static enum status memory(struct device *d, uint64_t *free_bytes, uint64_t *total, struct error *e)
{
    (void) d;
    (void) e;
    *free_bytes = *total = 0;
    return OK;
}

static const struct measures cpu = {.marks_create = marks_create,
                                    .marks_destroy = marks_destroy,
                                    .mark = mark,
                                    .between = between,
                                    .hold = hold,
                                    .copy = copy,
                                    .memory = memory};

const struct measures *measures_cpu(void) { return &cpu; }
