#include "common/sampling.h"

#include "common/philox.h"

#include <stddef.h>

struct sampling sampling_default(void)
{
    return (struct sampling){.top_p = 1.0f, .repetition_penalty = 1.0f, .n_logprobs = -1};
}

static enum status bad(struct error *e, const char *field, double value, const char *bounds)
{
    return error_set(e, ERR_INPUT, "bad_sampling", "%s is %g but must be %s", field, value, bounds);
}

enum status sampling_check(const struct sampling *s, struct error *e)
{
    // Each bound is written so that a NaN fails it.
    if (!(s->temperature >= 0 && s->temperature <= 100)) {
        return bad(e, "temperature", (double) s->temperature, "from 0 to 100");
    }
    if (!(s->top_p > 0 && s->top_p <= 1)) {
        return bad(e, "top_p", (double) s->top_p, "above 0 and at most 1");
    }
    if (!(s->min_p >= 0 && s->min_p <= 1)) {
        return bad(e, "min_p", (double) s->min_p, "from 0 to 1");
    }
    if (!(s->repetition_penalty > 0 && s->repetition_penalty <= 10)) {
        return bad(e, "repetition_penalty", (double) s->repetition_penalty,
                   "above 0 and at most 10");
    }
    if (!(s->presence_penalty >= -2 && s->presence_penalty <= 2)) {
        return bad(e, "presence_penalty", (double) s->presence_penalty, "from -2 to 2");
    }
    if (!(s->frequency_penalty >= -2 && s->frequency_penalty <= 2)) {
        return bad(e, "frequency_penalty", (double) s->frequency_penalty, "from -2 to 2");
    }
    if (s->top_k < 0 || s->top_k > TOP_K_MAX) {
        return error_set(e, ERR_INPUT, "bad_sampling", "top_k is %d but must be from 0 to %d",
                         s->top_k, TOP_K_MAX);
    }
    if (s->n_logprobs < -1 || s->n_logprobs > LOGPROBS_MAX) {
        return error_set(e, ERR_INPUT, "bad_sampling", "n_logprobs is %d but must be from -1 to %d",
                         s->n_logprobs, LOGPROBS_MAX);
    }
    return OK;
}

uint64_t sampling_random(uint64_t seed, uint64_t position) { return philox(seed, position); }
