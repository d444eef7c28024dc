#include "common/sampler_sizes.h"

static int ceil_div(int a, int b) { return (a + b - 1) / b; }

// The same on every rank, so from no rank's own slice.
static int batch_of(const struct sampler_shape *s)
{
    int batch = SAMPLER_BATCH_MAX;
    // A device takes them at once; the host, for what is left, row by row.
    if (s->on_device) {
        // Half of the scratch for what the ranks tell.
        int told = 2 * SAMPLER_HEAD_WORDS * (int) sizeof(uint64_t) * s->tp;
        batch = SAMPLER_SCRATCH_MAX / 2 / told;
        batch = batch < SAMPLER_DEVICE_BATCH ? batch : SAMPLER_DEVICE_BATCH;
        batch = batch < s->max_out ? batch : s->max_out;
        return batch > 0 ? batch : 1;
    }
    // Alone a rank takes row by row, which keeps a row in its cache from one pass to the next.
    if (s->tp == 1) return 1;
    int slice = ceil_div(s->vocab_size, s->tp);
    int patches = (s->max_context < slice ? s->max_context : slice) + 1;
    // Half of the scratch for patches of a row's logits; what is gathered grows with the ranks.
    int by_patches = (int) (SAMPLER_SCRATCH_MAX / 2 / sizeof(struct sampler_patch)) / patches;
    int by_ranks = ceil_div(8 * SAMPLER_BATCH_MAX, s->tp);
    batch = batch < by_patches ? batch : by_patches;
    batch = batch < by_ranks ? batch : by_ranks;
    batch = batch < s->max_out ? batch : s->max_out;
    return batch > 0 ? batch : 1;
}

// That a rank tells in one round. Of a device's batch the first has the most; cut-offs are searched
// for one row at a time.
static uint64_t words_of(const struct sampler_shape *s)
{
    uint64_t batch = (uint64_t) batch_of(s), heads = batch * SAMPLER_HEAD_WORDS;
    if (!s->on_device) return batch * SAMPLER_ROW_WORDS;
    return heads > SAMPLER_ROW_WORDS ? heads : SAMPLER_ROW_WORDS;
}

void sampler_carve(struct sampler_parts *p, const struct sampler_shape *s, struct carve *c)
{
    uint64_t slots = (uint64_t) s->slots, batch = (uint64_t) batch_of(s), tp = (uint64_t) s->tp;
    uint64_t vocab_n = (uint64_t) s->vocab_n, word = sizeof(uint64_t);
    p->batch = (int) batch;
    p->n_chunks = ceil_div(s->vocab_n, SAMPLER_CHUNK);
    p->n_patches = (s->max_context < s->vocab_n ? s->max_context : s->vocab_n) + 1;
    carve_line(c, LEDGER_HISTORY);
    p->history = carve_take(c, slots * (uint64_t) s->max_context * sizeof *p->history);
    p->sequences = carve_take(c, slots * SAMPLER_SEQUENCE_BYTES);
    carve_line(c, LEDGER_SAMPLER);
    p->state = carve_take(c, SAMPLER_STATE_BYTES);
    p->rows = carve_take(c, batch * SAMPLER_ROW_BYTES);
    uint64_t host_rows = s->on_device ? 1 : batch;
    p->patches = carve_take(c, host_rows * (uint64_t) p->n_patches * sizeof *p->patches);
    p->maxima = carve_take(c, (uint64_t) ceil_div(s->vocab_n, SAMPLER_BLOCK) * sizeof *p->maxima);
    p->seen = carve_take(c, (uint64_t) ceil_div(s->vocab_n, 64) * sizeof *p->seen);
    p->counts = carve_take(c, vocab_n * sizeof *p->counts);
    p->select = carve_take(c, SAMPLER_SLACK * SAMPLER_CANDIDATES_MAX * word);
    p->kept = carve_take(c, tp * SAMPLER_CANDIDATES_MAX * word);
    p->chunks = carve_take(c, host_rows * (uint64_t) p->n_chunks * sizeof *p->chunks);
    p->lists = carve_take(c, tp * batch * SAMPLER_HEAD_WORDS * word);
    p->send = carve_take(c, words_of(s) * word);
    p->receive = carve_take(c, tp * words_of(s) * word);
    p->row = carve_take(c, s->on_device ? vocab_n * sizeof *p->row : 0);
}

void sampler_device_carve(struct sampler_device_parts *p, const struct sampler_shape *s,
                          struct carve *c)
{
    uint64_t batch = s->on_device ? (uint64_t) batch_of(s) : 0;
    uint64_t n_blocks = (uint64_t) ceil_div(s->vocab_n, SAMPLER_BLOCK);
    uint64_t n_chunks = (uint64_t) ceil_div(s->vocab_n, SAMPLER_CHUNK);
    p->batch = (int) batch;
    carve_line(c, LEDGER_SAMPLER);
    p->maxima = carve_take(c, batch * n_blocks * sizeof *p->maxima);
    p->chunks = carve_take(c, batch * n_chunks * sizeof *p->chunks);
    p->totals = carve_take(c, batch * sizeof *p->totals);
    p->done = carve_take(c, batch * sizeof *p->done);
    bool alone = s->on_device && s->tp == 1;
    p->records = carve_take(c, alone ? batch * SAMPLER_RECORD_BYTES : 0);
    p->queues = carve_take(c, alone ? 2 * SAMPLER_QUEUE_BYTES : 0);
    p->bins = carve_take(c, alone ? batch * SAMPLER_NARROW_WORDS * sizeof(uint64_t) : 0);
}

uint64_t sampler_bytes(const struct sampler_shape *s)
{
    struct carve count = {0};
    struct sampler_parts parts;
    sampler_carve(&parts, s, &count);
    return count.used;
}

uint64_t sampler_device_bytes(const struct sampler_shape *s)
{
    struct carve count = {0};
    struct sampler_device_parts parts;
    sampler_device_carve(&parts, s, &count);
    return count.used;
}

size_t sampler_gather_max(const struct sampler_shape *s)
{
    return (size_t) words_of(s) * sizeof(uint64_t);
}
