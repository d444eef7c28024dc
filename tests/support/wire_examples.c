#include "tests/support/wire_examples.h"

#include <string.h>

#define TEXT_INTO(to, text)                                                                        \
    (check(sizeof(text) <= sizeof(to)), (void) memcpy(to, text, sizeof(text)))

static const int32_t some_ids[] = {0, 1, 100000, 128799};
static const float some_logits[] = {0.5f, -1, 2, 0, 1.5f, -0.25f};

static void set_key(struct job_key *key)
{
    TEXT_INTO(key->tenant, "default");
    TEXT_INTO(key->id, "job-1");
    key->attempt = 42;
}

static struct wire_bytes bytes_of(const void *at, size_t n)
{
    return (struct wire_bytes){at, n};
}

static void hello(struct wire_hello *h, bool full)
{
    static struct wire_device devices[] = {{"cpu", 8ull << 30},
                                           {"cuda:0 NVIDIA L4", 23034ull << 20}};
    static struct wire_running running[1];
    static struct job_key finished[1];
    TEXT_INTO(h->version, "0.1.0");
    TEXT_INTO(h->node, "node-a");
    TEXT_INTO(h->name, "node-a-0");
    for (int i = 0; i < WIRE_ID_BYTES; i++) h->boot[i] = (uint8_t) i;
    h->devices = devices;
    h->n_devices = full ? 2 : 1;
    h->tp = full ? 2 : 1;
    TEXT_INTO(h->model, "5f1d8c");
    TEXT_INTO(h->precision, "bf16");
    if (!full) return;
    set_key(&running[0].key);
    running[0].offset = 17;
    set_key(&finished[0]);
    h->minor = 1;
    h->assigned = true;
    h->assignment = (struct wire_assignment){.pipeline = 1, .epoch = 7, .stage = 1, .n_stages = 4,
                                             .first = 17, .last = 32, .plan = "c0ffee",
                                             .state = WIRE_SERVING};
    TEXT_INTO(h->data, "10.0.0.5");
    h->running = running, h->n_running = 1;
    h->finished = finished, h->n_finished = 1;
}

static void assign(struct wire_assign *a, bool full)
{
    *a = (struct wire_assign){.pipeline = 1, .epoch = 7, .n_stages = 1, .last = 2, .tp = 1,
                              .kv_blocks = 64, .slots = 8, .max_blocks = 16, .max_rows = 128,
                              .max_out = 8, .steps_in_flight = 1, .max_context = 1024, .chunk = 64};
    for (int i = 0; i < WIRE_ID_BYTES; i++) a->token[i] = (uint8_t) (0xf0 + i);
    TEXT_INTO(a->precision, "f32");
    if (!full) return;
    a->stage = 1, a->n_stages = 4, a->first = 17, a->last = 32, a->tp = 8, a->steps_in_flight = 6;
    TEXT_INTO(a->plan, "c0ffee");
    a->score = true;
    a->fill_ms = 5, a->step_ms = 250;
    a->fp8_kv = true;
}

static void ready(struct wire_ready *r, bool full)
{
    *r = (struct wire_ready){.pipeline = 1, .epoch = 7, .stage = 1, .weights_bytes = 19ull << 30,
                             .kv_bytes = 3ull << 30, .buffers_bytes = 1ull << 29,
                             .total_bytes = (22ull << 30) + (1ull << 29)};
    if (!full) return;
    r->by_line = true;
    for (int i = 0; i < LEDGER_LINES; i++) r->ledger.bytes[i] = (uint64_t) i + 1;
    TEXT_INTO(r->endpoint, "tcp://10.0.0.5:40001");
    TEXT_INTO(r->tokens_endpoint, "tcp://10.0.0.5:40002");
}

static void job(struct wire_job *j, bool full)
{
    set_key(&j->key);
    j->pipeline = 1, j->epoch = 7, j->max_tokens = 256, j->attempts = 1;
    j->sampling = sampling_default();
    j->ids = bytes_of(some_ids, sizeof some_ids);
    if (!full) return;
    j->sampling = (struct sampling){.temperature = 0.75f, .top_p = 0.5f, .min_p = 0.125f,
                                    .repetition_penalty = 1.5f, .presence_penalty = -0.5f,
                                    .frequency_penalty = 0.25f, .top_k = 40, .n_logprobs = 5,
                                    .seed = 0x123456789abcdef0};
    j->stop_ids[0] = 1, j->stop_ids[1] = 100001, j->n_stop_ids = 2;
    j->ignore_eos = j->score = j->stream = true;
    TEXT_INTO(j->custom_id, "row 17");
    j->class = 3;
    j->attempts = 2;
    j->queued_ms = 90000;
    j->prior_prompt = 70000, j->prior_cached = 64, j->prior_completion = 1200;
    j->resume = bytes_of(some_ids, 8);
    j->stops[0] = bytes_of("\n\n", 2), j->stops[1] = bytes_of("\xe2\x82\xac", 3), j->n_stops = 2;
}

static void failure(char code[ERROR_CODE_SIZE], char message[ERROR_TEXT_SIZE], bool full)
{
    memcpy(code, "link_lost", sizeof "link_lost");
    if (full) memcpy(message, "the next stage is gone", sizeof "the next stage is gone");
}

static void figures(struct wire_figures *f)
{
    static struct wire_rank ranks[] = {{.busy_us = 7000000}, {.busy_us = 6900000}};
    *f = (struct wire_figures){.rows = 5000, .sampler_rows = 1000, .sampler_fallbacks = 2,
                               .sampler_hosted = 7, .stale_frames = 3, .heap_calls = 1,
                               .prefill_tokens = 4000, .again_tokens = 300, .decode_tokens = 990,
                               .slots = 64, .running = 12, .kv_blocks = 512, .kv_reserved = 300,
                               .kv_used = 120, .ranks = ranks, .n_ranks = 2};
    for (int i = 0; i < LEDGER_LINES; i++) {
        f->memory.bytes[i] = 2 * (uint64_t) i + 3;
        ranks[1].memory.bytes[i] = (uint64_t) i + 1;
    }
    f->decode_steps = (struct histogram){.sum_us = 5000, .counts = {0, 1, 4, 6}, .n = 4};
    f->prefill_steps = (struct histogram){.sum_us = 900, .counts = {[4] = 1}, .n = 5};
}

static void fill(struct wire_message *m, bool full)
{
    switch (m->command) {
    case WIRE_HELLO: hello(&m->hello, full); break;
    case WIRE_ASSIGN: assign(&m->assign, full); break;
    case WIRE_READY: ready(&m->ready, full); break;
    case WIRE_LINK:
        m->link.pipeline = 1, m->link.epoch = 7;
        TEXT_INTO(m->link.endpoint, "tcp://10.0.0.6:40001");
        break;
    case WIRE_LINKED:
    case WIRE_UNASSIGN: m->stage = (struct wire_stage){1, 7, full ? 63 : 0}; break;
    case WIRE_FAILED:
        m->failed.pipeline = 1, m->failed.epoch = 7, m->failed.stage = 2;
        failure(m->failed.code, m->failed.message, full);
        break;
    case WIRE_CREDIT:
        m->credit = (struct wire_credit){1, 7, 1020, full ? UINT64_MAX : 40000};
        break;
    case WIRE_JOB: job(&m->job, full); break;
    case WIRE_ACCEPT: set_key(&m->key); break;
    case WIRE_REJECT:
        set_key(&m->reject.key);
        failure(m->reject.code, m->reject.message, full);
        break;
    case WIRE_TOKENS:
        set_key(&m->tokens.key);
        m->tokens.offset = full ? 17 : 0;
        m->tokens.ids = bytes_of(some_ids, full ? sizeof some_ids : 4);
        m->tokens.text_offset = full ? 40 : 0;
        if (full) m->tokens.text = bytes_of("gr\xc3\xbc", 4);
        break;
    case WIRE_LOGITS:
        set_key(&m->logits.key);
        m->logits.pos = full ? 3 : 0, m->logits.n = full ? 2 : 1, m->logits.vocab = 3;
        m->logits.rows = bytes_of(some_logits, full ? 24 : 12);
        break;
    case WIRE_RESULT:
        set_key(&m->result.key);
        m->result.result = bytes_of("\x80", 1); // opaque here
        break;
    case WIRE_COMMITTED:
        set_key(&m->committed.key);
        m->committed.outcome = full ? WIRE_OUTCOME_UNKNOWN : WIRE_OUTCOME_OK;
        break;
    case WIRE_CANCEL:
        set_key(&m->cancel.key);
        m->cancel.reason = full ? WIRE_REASON_EXPIRED : WIRE_REASON_CANCELLED;
        break;
    case WIRE_ERROR: failure(m->error.code, m->error.message, full); break;
    case WIRE_PING: m->ping.seq = 99; break;
    case WIRE_PONG:
        m->pong = (struct wire_pong){.seq = 99, .steps = 123456, .state = WIRE_LOADING};
        if (!full) break;
        m->pong.loaded_bytes = 1ull << 30, m->pong.load_bytes = 19ull << 30;
        m->pong.counted = true;
        figures(&m->pong.figures);
        break;
    case WIRE_STANDBY: case WIRE_DRAIN: case WIRE_BYE: case WIRE_N_COMMANDS: break;
    }
}

struct wire_message wire_example(enum wire_command command, bool full)
{
    struct wire_message m;
    memset(&m, 0, sizeof m); // padding, too: tests compare bytes
    m.command = command;
    m.term = full ? 3 : 1;
    fill(&m, full);
    return m;
}
