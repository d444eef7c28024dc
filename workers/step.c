#include "workers/step.h"

#include "common/carve.h"

#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "frames are little-endian as stored");
_Static_assert(sizeof(struct step_open) == 16 + sizeof(struct sampling), "no padding on the wire");
_Static_assert(sizeof(struct sampling) == 40, "no padding on the wire");
_Static_assert(sizeof(struct step_run) == 16, "no padding on the wire");

enum { STEP_MAGIC = 0x31505350, TOKENS_MAGIC = 0x31545350 }; // "PSP1", "PST1"

struct step_header {
    uint32_t magic;
    uint32_t n_opens, n_blocks, n_runs, n_closes, n_rows;
    uint64_t pipeline, epoch, number;
    uint8_t token[LINK_TOKEN_BYTES];
};

// A token entry is followed by its n_top (id, logprob) pairs.
struct token_entry {
    int32_t slot, pos, id;
    float logprob;
    int32_t n_top;
};

struct tokens_header {
    uint32_t magic, n;
    uint64_t pipeline, epoch, number;
    uint8_t token[LINK_TOKEN_BYTES];
};

static void carve_step(struct step *s, const struct step_limits *l, struct carve *c)
{
    size_t slots = (size_t) l->slots, rows = (size_t) l->max_rows;
    s->opens = carve_take(c, slots * sizeof *s->opens);
    s->blocks = carve_take(c, slots * (size_t) l->max_blocks * sizeof *s->blocks);
    s->runs = carve_take(c, slots * sizeof *s->runs);
    s->closes = carve_take(c, slots * sizeof *s->closes);
    s->ids = carve_take(c, rows * sizeof *s->ids);
    s->pos = carve_take(c, rows * sizeof *s->pos);
    s->slot = carve_take(c, rows * sizeof *s->slot);
    s->out_rows = carve_take(c, rows * sizeof *s->out_rows);
}

size_t step_bytes(const struct step_limits *l)
{
    struct step s;
    struct carve c = {0};
    carve_step(&s, l, &c);
    return c.used;
}

void step_init(struct step *s, const struct step_limits *l, void *memory)
{
    struct carve c = {.base = memory, .size = step_bytes(l)};
    check(l->slots <= SLOTS_MAX, "%d slots", l->slots);
    *s = (struct step){0};
    carve_step(s, l, &c);
}

void step_reset(struct step *s, uint64_t number)
{
    s->number = number;
    s->n_opens = s->n_blocks = s->n_runs = s->n_closes = s->n_rows = s->n_out = 0;
}

void step_expand(struct step *s)
{
    int row = 0;
    s->n_out = 0;
    for (int r = 0; r < s->n_runs; r++) {
        const struct step_run *run = &s->runs[r];
        for (int i = 0; i < run->n; i++, row++) {
            s->pos[row] = run->pos + i;
            s->slot[row] = run->slot;
            bool last = i == run->n - 1;
            if (run->logits == RUN_ALL_ROWS || (run->logits == RUN_LAST_ROW && last)) {
                s->out_rows[s->n_out++] = row;
            }
        }
    }
    check(row == s->n_rows, "runs hold %d rows, the step %d", row, s->n_rows);
}

size_t step_frame_max(const struct step_limits *l)
{
    return sizeof(struct step_header) +
           (size_t) l->slots * (sizeof(struct step_open) + sizeof(struct step_run) + 4) +
           (size_t) l->slots * (size_t) l->max_blocks * 4 + (size_t) l->max_rows * 4;
}

size_t step_tokens_frame_max(const struct step_limits *l)
{
    return sizeof(struct tokens_header) +
           (size_t) l->max_out * (sizeof(struct token_entry) + LOGPROBS_MAX * 8);
}

size_t step_frame_padded(size_t n)
{
    size_t size = STEP_FRAME_UNIT;
    while (size < n) size *= 2;
    return size;
}

static void put(char **to, const void *from, size_t n)
{
    memcpy(*to, from, n);
    *to += n;
}

size_t step_encode(const struct step *s, const struct link_id *link, void *to)
{
    struct step_header h = {.magic = STEP_MAGIC,
                            .n_opens = (uint32_t) s->n_opens,
                            .n_blocks = (uint32_t) s->n_blocks,
                            .n_runs = (uint32_t) s->n_runs,
                            .n_closes = (uint32_t) s->n_closes,
                            .n_rows = (uint32_t) s->n_rows,
                            .pipeline = link->pipeline,
                            .epoch = link->epoch,
                            .number = s->number};
    memcpy(h.token, link->token, sizeof h.token);
    char *p = to;
    put(&p, &h, sizeof h);
    put(&p, s->opens, (size_t) s->n_opens * sizeof *s->opens);
    put(&p, s->blocks, (size_t) s->n_blocks * 4);
    put(&p, s->runs, (size_t) s->n_runs * sizeof *s->runs);
    put(&p, s->closes, (size_t) s->n_closes * 4);
    put(&p, s->ids, (size_t) s->n_rows * 4);
    return (size_t) (p - (char *) to);
}

static enum status bad(struct error *e, const char *what)
{
    return error_set(e, ERR_INPUT, "bad_step", "a step frame is malformed: %s", what);
}

static bool in_range(int64_t value, int64_t end) { return value >= 0 && value < end; }

// Which slots were named so far; false the second time.
struct slot_set {
    uint64_t bits[SLOTS_MAX / 64];
};

static bool first_time(struct slot_set *set, int32_t slot)
{
    uint64_t bit = 1ull << slot % 64, *word = &set->bits[slot / 64];
    bool first = (*word & bit) == 0;
    *word |= bit;
    return first;
}

static enum status check_opens(const struct step *s, const struct step_limits *l, struct error *e)
{
    struct slot_set set = {0};
    for (int i = 0; i < s->n_opens; i++) {
        const struct step_open *o = &s->opens[i];
        if (!in_range(o->slot, l->slots)) return bad(e, "OPEN names a slot out of range");
        if (!first_time(&set, o->slot)) return bad(e, "OPEN names a slot twice");
        if (o->n_blocks < 1 || o->n_blocks > l->max_blocks || o->first_block < 0 ||
            o->first_block > s->n_blocks - o->n_blocks) {
            return bad(e, "OPEN has a block list out of range");
        }
        if (!in_range(o->n_prompt, (int64_t) o->n_blocks * KV_BLOCK_ROWS + 1)) {
            return bad(e, "OPEN has a prompt beyond its blocks");
        }
        try(sampling_check(&o->sampling, e));
    }
    for (int i = 0; i < s->n_blocks; i++) {
        if (!in_range(s->blocks[i], l->n_blocks)) return bad(e, "a block id is out of range");
    }
    return OK;
}

static enum status check_runs(const struct step *s, const struct step_limits *l, struct error *e)
{
    int64_t rows = 0, outs = 0;
    struct slot_set set = {0};
    for (int i = 0; i < s->n_runs; i++) {
        const struct step_run *r = &s->runs[i];
        if (!in_range(r->slot, l->slots)) return bad(e, "ROWS names a slot out of range");
        if (!first_time(&set, r->slot)) return bad(e, "ROWS names a slot twice");
        if (r->n < 1 || r->pos < 0 || r->n > l->max_rows ||
            (int64_t) r->pos + r->n > (int64_t) l->max_blocks * KV_BLOCK_ROWS) {
            return bad(e, "ROWS has positions out of range");
        }
        if (r->logits < RUN_NO_LOGITS || r->logits > RUN_ALL_ROWS) return bad(e, "ROWS' logits");
        rows += r->n;
        outs += r->logits == RUN_ALL_ROWS ? r->n : r->logits == RUN_LAST_ROW;
    }
    if (rows != s->n_rows) return bad(e, "the runs' rows do not add up");
    if (outs > l->max_out) return bad(e, "more rows with logits than the epoch allows");
    for (int i = 0; i < s->n_rows; i++) {
        if (!in_range(s->ids[i], l->vocab_size)) return bad(e, "a token id is out of range");
    }
    for (int i = 0; i < s->n_closes; i++) {
        if (!in_range(s->closes[i], l->slots)) return bad(e, "CLOSE names a slot out of range");
    }
    return OK;
}

static enum status check_link(const struct link_id *link, uint64_t pipeline, uint64_t epoch,
                              const uint8_t *token, struct error *e)
{
    if (pipeline != link->pipeline || epoch != link->epoch ||
        memcmp(token, link->token, LINK_TOKEN_BYTES) != 0) {
        return error_set(e, ERR_STATE, "stale", "a frame of another epoch or link");
    }
    return OK;
}

enum status step_decode(struct step *s, const struct step_limits *l, const struct link_id *link,
                        const void *frame, size_t n, struct error *e)
{
    struct step_header h;
    step_reset(s, 0);
    if (n < sizeof h) return bad(e, "it is too short");
    memcpy(&h, frame, sizeof h);
    if (h.magic != STEP_MAGIC) return bad(e, "it has another magic number");
    try(check_link(link, h.pipeline, h.epoch, h.token, e));
    uint32_t slots = (uint32_t) l->slots;
    if (h.n_opens > slots || h.n_runs > slots || h.n_closes > slots ||
        h.n_rows > (uint32_t) l->max_rows ||
        h.n_blocks > (uint64_t) slots * (uint32_t) l->max_blocks) {
        return bad(e, "a count is out of range");
    }
    size_t want = sizeof h + h.n_opens * sizeof *s->opens + h.n_blocks * 4ull +
                  h.n_runs * sizeof *s->runs + h.n_closes * 4ull + h.n_rows * 4ull;
    if (n != want && n != step_frame_padded(want)) {
        return bad(e, "its size does not match its counts");
    }
    const char *p = (const char *) frame + sizeof h;
    struct { void *to; size_t n; } parts[] = {
        {s->opens, h.n_opens * sizeof *s->opens}, {s->blocks, h.n_blocks * 4ull},
        {s->runs, h.n_runs * sizeof *s->runs},    {s->closes, h.n_closes * 4ull},
        {s->ids, h.n_rows * 4ull},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        memcpy(parts[i].to, p, parts[i].n);
        p += parts[i].n;
    }
    s->number = h.number;
    s->n_opens = (int) h.n_opens;
    s->n_blocks = (int) h.n_blocks;
    s->n_runs = (int) h.n_runs;
    s->n_closes = (int) h.n_closes;
    s->n_rows = (int) h.n_rows;
    enum status status = check_opens(s, l, e);
    if (status == OK) status = check_runs(s, l, e);
    if (status != OK) {
        step_reset(s, 0);
        return status;
    }
    step_expand(s);
    return OK;
}

enum status step_follow(int32_t *open_rows, const struct step *s, struct error *e)
{
    for (int i = 0; i < s->n_closes; i++) open_rows[s->closes[i]] = 0;
    for (int i = 0; i < s->n_opens; i++) {
        const struct step_open *o = &s->opens[i];
        if (open_rows[o->slot] != 0) return bad(e, "OPEN names a slot that is open");
        open_rows[o->slot] = o->n_blocks * KV_BLOCK_ROWS;
    }
    for (int i = 0; i < s->n_runs; i++) {
        const struct step_run *r = &s->runs[i];
        if (r->pos > open_rows[r->slot] - r->n) {
            return bad(e, "ROWS reaches beyond the blocks of its slot");
        }
    }
    return OK;
}

size_t step_tokens_encode(const struct step_token *tokens, int n, uint64_t number,
                          const struct link_id *link, void *to)
{
    struct tokens_header h = {.magic = TOKENS_MAGIC,
                              .n = (uint32_t) n,
                              .pipeline = link->pipeline,
                              .epoch = link->epoch,
                              .number = number};
    memcpy(h.token, link->token, sizeof h.token);
    char *p = to;
    put(&p, &h, sizeof h);
    for (int i = 0; i < n; i++) {
        const struct step_token *t = &tokens[i];
        struct token_entry entry = {t->slot, t->pos, t->id, t->logprob, t->n_top};
        put(&p, &entry, sizeof entry);
        put(&p, t->top_id, (size_t) t->n_top * 4);
        put(&p, t->top_logprob, (size_t) t->n_top * 4);
    }
    return (size_t) (p - (char *) to);
}

enum status step_tokens_decode(struct step_token *tokens, int *n, uint64_t *number,
                               const struct step_limits *l, const struct link_id *link,
                               const void *frame, size_t size, struct error *e)
{
    struct tokens_header h;
    *n = 0;
    if (size < sizeof h) return bad(e, "tokens: it is too short");
    memcpy(&h, frame, sizeof h);
    if (h.magic != TOKENS_MAGIC) return bad(e, "tokens: it has another magic number");
    try(check_link(link, h.pipeline, h.epoch, h.token, e));
    if (h.n > (uint32_t) l->max_out) return bad(e, "tokens: too many");
    const char *p = (const char *) frame + sizeof h, *end = (const char *) frame + size;
    const char *begin = frame;
    for (uint32_t i = 0; i < h.n; i++) {
        struct token_entry entry;
        struct step_token *t = &tokens[i];
        if ((size_t) (end - p) < sizeof entry) return bad(e, "tokens: it is too short");
        memcpy(&entry, p, sizeof entry);
        p += sizeof entry;
        if (!in_range(entry.slot, l->slots) || !in_range(entry.id, l->vocab_size) ||
            !in_range(entry.pos, (int64_t) l->max_blocks * KV_BLOCK_ROWS) ||
            !in_range(entry.n_top, LOGPROBS_MAX + 1) ||
            (size_t) (end - p) < (size_t) entry.n_top * 8) {
            return bad(e, "tokens: a value is out of range");
        }
        *t = (struct step_token){.slot = entry.slot,
                                 .pos = entry.pos,
                                 .id = entry.id,
                                 .logprob = entry.logprob,
                                 .n_top = entry.n_top};
        memcpy(t->top_id, p, (size_t) entry.n_top * 4);
        memcpy(t->top_logprob, p + (size_t) entry.n_top * 4, (size_t) entry.n_top * 4);
        p += (size_t) entry.n_top * 8;
        for (int k = 0; k < t->n_top; k++) {
            if (!in_range(t->top_id[k], l->vocab_size)) return bad(e, "tokens: a rival's id");
        }
    }
    if (p != end && size != step_frame_padded((size_t) (p - begin))) {
        return bad(e, "tokens: bytes are left over");
    }
    *n = (int) h.n;
    *number = h.number;
    return OK;
}
