#include "common/sampler_sizes.h"

static int ceil_div(int a, int b) { return (a + b - 1) / b; }

static int batch_of(const struct sampler_shape *s)
{
    // Alone a rank takes row by row, which keeps a row in its cache from one pass to the next.
    if (s->tp == 1) return 1;
    return s->max_out < SAMPLER_BATCH_MAX ? s->max_out : SAMPLER_BATCH_MAX;
}

int sampler_select_words(int n, int want)
{
    int blocks = ceil_div(n, SAMPLER_BLOCK);
    return blocks > SAMPLER_SLACK * want ? blocks : SAMPLER_SLACK * want;
}

void sampler_carve(struct sampler_parts *p, const struct sampler_shape *s, struct carve *c)
{
    uint64_t slots = (uint64_t) s->slots, batch = (uint64_t) batch_of(s), tp = (uint64_t) s->tp;
    uint64_t vocab_n = (uint64_t) s->vocab_n, word = sizeof(uint64_t);
    p->batch = (int) batch;
    p->n_chunks = ceil_div(s->vocab_n, SAMPLER_CHUNK);
    p->work_stride = ceil_div(s->vocab_n, 64) * 64; // rows begin a cache line each
    carve_line(c, LEDGER_HISTORY);
    p->history = carve_take(c, slots * (uint64_t) s->max_context * sizeof *p->history);
    p->sequences = carve_take(c, slots * SAMPLER_SEQUENCE_BYTES);
    carve_line(c, LEDGER_SAMPLER);
    p->state = carve_take(c, SAMPLER_STATE_BYTES);
    p->rows = carve_take(c, batch * SAMPLER_ROW_BYTES);
    p->work = carve_take(c, batch * (uint64_t) p->work_stride * sizeof *p->work);
    p->maxima = carve_take(c, (uint64_t) ceil_div(s->vocab_n, SAMPLER_BLOCK) * sizeof *p->maxima);
    p->seen = carve_take(c, vocab_n * sizeof *p->seen);
    int select = sampler_select_words(s->vocab_n, SAMPLER_CANDIDATES_MAX);
    p->select = carve_take(c, (uint64_t) select * word);
    p->kept = carve_take(c, tp * SAMPLER_CANDIDATES_MAX * word);
    p->chunk_mass = carve_take(c, batch * (uint64_t) p->n_chunks * word);
    p->lists = carve_take(c, tp * batch * SAMPLER_HEAD_WORDS * word);
    p->send = carve_take(c, batch * SAMPLER_ROW_WORDS * word);
    p->receive = carve_take(c, tp * batch * SAMPLER_ROW_WORDS * word);
}

uint64_t sampler_bytes(const struct sampler_shape *s)
{
    struct carve count = {0};
    struct sampler_parts parts;
    sampler_carve(&parts, s, &count);
    return count.used;
}

size_t sampler_gather_max(const struct sampler_shape *s)
{
    return (size_t) batch_of(s) * SAMPLER_ROW_WORDS * sizeof(uint64_t);
}
