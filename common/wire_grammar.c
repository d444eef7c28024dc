#include "common/wire_grammar.h"

const char *const wire_state_names[] = {"idle",    "loading",  "loaded", "serving",
                                        "draining", "lost", NULL};
const char *const wire_reason_names[] = {"cancelled", "expired", NULL};
const char *const wire_outcome_names[] = {"ok", "stale", "unknown", NULL};

#define KEY(s, k)                                                                                  \
    TEXT("tenant", s, k.tenant), ID("id", s, k.id),                    \
        U64("attempt", s, k.attempt)
#define EPOCH(s, p) U64("pipeline", s, p.pipeline), U64("epoch", s, p.epoch)
#define M wire_message
#define TERM U64("term", M, term)

// --- structs inside commands

static const struct schema_field assignment_fields[] = {
    U64("pipeline", wire_assignment, pipeline),
    U64("epoch", wire_assignment, epoch),
    INT("stage", wire_assignment, stage, PP_MAX - 1),
    INT("n_stages", wire_assignment, n_stages, PP_MAX),
    INT("first", wire_assignment, first, MODEL_LAYERS_MAX),
    INT("last", wire_assignment, last, MODEL_LAYERS_MAX),
    TEXT("plan", wire_assignment, plan, SCHEMA_OPTIONAL),
    ENUM("state", wire_assignment, state, wire_state_names),
};
static const struct schema assignment = SCHEMA_FIELDS(assignment_fields);

static const struct schema_field device_fields[] = {
    TEXT("name", wire_device, name),
    U64("bytes", wire_device, bytes),
};
static const struct schema device = SCHEMA_FIELDS(device_fields);

static const struct schema_field running_fields[] = {
    KEY(wire_running, key),
    INT("offset", wire_running, offset, CONTEXT_MAX),
};
static const struct schema running = SCHEMA_FIELDS(running_fields);

static const struct schema_field key_fields[] = {
    TEXT("tenant", job_key, tenant),
    ID("id", job_key, id),
    U64("attempt", job_key, attempt),
};
static const struct schema key = SCHEMA_FIELDS(key_fields);

static const struct schema_field sampling_fields[] = {
    FLOAT("temperature", sampling, temperature),
    FLOAT("top_p", sampling, top_p),
    FLOAT("min_p", sampling, min_p),
    FLOAT("repetition_penalty", sampling, repetition_penalty),
    FLOAT("presence_penalty", sampling, presence_penalty),
    FLOAT("frequency_penalty", sampling, frequency_penalty),
    INT("top_k", sampling, top_k, TOP_K_MAX),
    INT("n_logprobs", sampling, n_logprobs, LOGPROBS_MAX, .least = -1),
    U64("seed", sampling, seed),
};
static const struct schema sampling = SCHEMA_FIELDS(sampling_fields);

// Names as ledger_name has them.
#define LINE(name, line) U64(name, ledger, bytes[line], SCHEMA_OPTIONAL)
static const struct schema_field ledger_fields[] = {
    LINE("weights", LEDGER_WEIGHTS),
    LINE("scales", LEDGER_SCALES),
    LINE("packing", LEDGER_PACKING),
    LINE("mtp", LEDGER_MTP),
    LINE("kv", LEDGER_KV),
    LINE("activations", LEDGER_ACTIVATIONS),
    LINE("logits", LEDGER_LOGITS),
    LINE("history", LEDGER_HISTORY),
    LINE("sampler", LEDGER_SAMPLER),
    LINE("scratch", LEDGER_SCRATCH),
    LINE("comm", LEDGER_COMM),
    LINE("steps", LEDGER_STEPS),
    LINE("sequences", LEDGER_SEQUENCES),
    LINE("links", LEDGER_LINKS),
    LINE("staging", LEDGER_STAGING),
    LINE("context", LEDGER_CONTEXT),
    LINE("libraries", LEDGER_LIBRARIES),
    LINE("reserve", LEDGER_RESERVE),
};
static const struct schema ledger = SCHEMA_FIELDS(ledger_fields);

_Static_assert(sizeof ledger_fields / sizeof *ledger_fields == LEDGER_LINES, "every line is told");

// --- commands

static const struct schema_field only_term[] = {TERM}; // STANDBY, DRAIN, BYE

static const struct schema_field hello[] = {
    TERM,
    INT("minor", M, hello.minor, INT32_MAX),
    TEXT("version", M, hello.version),
    TEXT("node", M, hello.node),
    TEXT("name", M, hello.name),
    FIXED("boot", M, hello.boot),
    {"assignment", SCHEMA_SUB, SCHEMA_AT(M, hello.assignment), SCHEMA_COUNT(M, hello.assigned),
     SCHEMA_OPTIONAL, .sub = &assignment},
};

static const struct schema_field hello_body[] = {
    LIST("devices", M, hello.devices, hello.n_devices, TP_MAX, wire_device, &device),
    INT("tp", M, hello.tp, TP_MAX),
    TEXT("model", M, hello.model),
    TEXT("precision", M, hello.precision),
    TEXT("data", M, hello.data, SCHEMA_OPTIONAL),
    LIST("running", M, hello.running, hello.n_running, WIRE_LIST_MAX, wire_running, &running,
         SCHEMA_OPTIONAL),
    LIST("finished", M, hello.finished, hello.n_finished, WIRE_LIST_MAX, job_key, &key,
         SCHEMA_OPTIONAL),
};

static const struct schema_field assign[] = {
    TERM,
    EPOCH(M, assign),
    INT("stage", M, assign.stage, PP_MAX - 1),
    INT("n_stages", M, assign.n_stages, PP_MAX),
    INT("first", M, assign.first, MODEL_LAYERS_MAX),
    INT("last", M, assign.last, MODEL_LAYERS_MAX),
    INT("tp", M, assign.tp, TP_MAX),
    INT("kv_blocks", M, assign.kv_blocks, INT32_MAX),
    INT("slots", M, assign.slots, SLOTS_MAX),
    INT("max_blocks", M, assign.max_blocks, CONTEXT_MAX / KV_BLOCK_ROWS),
    INT("max_rows", M, assign.max_rows, STEP_ROWS_MAX),
    INT("max_out", M, assign.max_out, STEP_ROWS_MAX),
    INT("steps_in_flight", M, assign.steps_in_flight, STEPS_IN_FLIGHT_MAX),
    INT("max_context", M, assign.max_context, CONTEXT_MAX),
    INT("chunk", M, assign.chunk, STEP_ROWS_MAX),
    TEXT("plan", M, assign.plan, SCHEMA_OPTIONAL),
    FIXED("token", M, assign.token),
    TEXT("precision", M, assign.precision),
    BOOL("score", M, assign.score),
    INT("fill_ms", M, assign.fill_ms, WAIT_FILL_MS_MAX, SCHEMA_OPTIONAL),
    INT("step_ms", M, assign.step_ms, STEP_MS_MAX, SCHEMA_OPTIONAL),
    BOOL("fp8_kv", M, assign.fp8_kv),
};

static const struct schema_field ready[] = {
    TERM,
    EPOCH(M, ready),
    INT("stage", M, ready.stage, PP_MAX - 1),
    U64("weights_bytes", M, ready.weights_bytes),
    U64("kv_bytes", M, ready.kv_bytes),
    U64("buffers_bytes", M, ready.buffers_bytes),
    U64("total_bytes", M, ready.total_bytes),
    {"ledger", SCHEMA_SUB, SCHEMA_AT(M, ready.ledger), SCHEMA_COUNT(M, ready.by_line),
     SCHEMA_OPTIONAL, .sub = &ledger},
    TEXT("endpoint", M, ready.endpoint, SCHEMA_OPTIONAL),
    TEXT("tokens_endpoint", M, ready.tokens_endpoint, SCHEMA_OPTIONAL),
};

static const struct schema_field link[] = {
    TERM,
    EPOCH(M, link),
    TEXT("endpoint", M, link.endpoint, SCHEMA_OPTIONAL),
};

static const struct schema_field stage[] = { // LINKED, UNASSIGN
    TERM,
    EPOCH(M, stage),
    INT("stage", M, stage.stage, PP_MAX - 1),
};

static const struct schema_field failed[] = {
    TERM,
    EPOCH(M, failed),
    INT("stage", M, failed.stage, PP_MAX - 1),
    TEXT("code", M, failed.code),
    TEXT("message", M, failed.message, SCHEMA_OPTIONAL),
};

static const struct schema_field credit[] = {
    TERM,
    EPOCH(M, credit),
    U64("slots", M, credit.slots),
    U64("blocks", M, credit.blocks),
};

static const struct schema_field job[] = {
    TERM,
    KEY(M, job.key),
    EPOCH(M, job),
    INT("max_tokens", M, job.max_tokens, CONTEXT_MAX),
    {"sampling", SCHEMA_SUB, SCHEMA_AT(M, job.sampling), .sub = &sampling},
    {"stop_ids", SCHEMA_INTS, SCHEMA_AT(M, job.stop_ids), SCHEMA_COUNT(M, job.n_stop_ids),
     SCHEMA_OPTIONAL, .most = STOP_IDS_MAX},
    BOOL("ignore_eos", M, job.ignore_eos),
    BOOL("score", M, job.score),
    BOOL("stream", M, job.stream),
    INT("class", M, job.class, JOB_CLASSES - 1, SCHEMA_OPTIONAL),
    TEXT("custom_id", M, job.custom_id, SCHEMA_OPTIONAL),
    INT("attempts", M, job.attempts, INT32_MAX),
    U64("queued_ms", M, job.queued_ms, SCHEMA_OPTIONAL),
    U64("prior_prompt", M, job.prior_prompt, SCHEMA_OPTIONAL),
    U64("prior_cached", M, job.prior_cached, SCHEMA_OPTIONAL),
    U64("prior_completion", M, job.prior_completion, SCHEMA_OPTIONAL),
};

static const struct schema_field job_body[] = {
    BORROWED("ids", SCHEMA_IDS, M, job.ids.at, job.ids.n, .most = CONTEXT_MAX),
    BORROWED("resume", SCHEMA_IDS, M, job.resume.at, job.resume.n, .most = CONTEXT_MAX,
             SCHEMA_OPTIONAL),
    {"stops", SCHEMA_PIECES, SCHEMA_AT(M, job.stops), SCHEMA_COUNT(M, job.n_stops), SCHEMA_OPTIONAL,
     .most = STOP_STRINGS_MAX},
};

static const struct schema_field only_key[] = {TERM, KEY(M, key)}; // ACCEPT

static const struct schema_field reject[] = {
    TERM,
    KEY(M, reject.key),
    TEXT("code", M, reject.code),
    TEXT("message", M, reject.message, SCHEMA_OPTIONAL),
};

static const struct schema_field tokens[] = {
    TERM,
    KEY(M, tokens.key),
    INT("offset", M, tokens.offset, CONTEXT_MAX),
    INT("text_offset", M, tokens.text_offset, WIRE_BODY_MAX, SCHEMA_OPTIONAL),
};

static const struct schema_field tokens_body[] = {
    BORROWED("ids", SCHEMA_IDS, M, tokens.ids.at, tokens.ids.n, .most = CONTEXT_MAX),
    BORROWED("text", SCHEMA_BIN, M, tokens.text.at, tokens.text.n, SCHEMA_OPTIONAL),
};

static const struct schema_field logits[] = {
    TERM,
    KEY(M, logits.key),
    INT("pos", M, logits.pos, CONTEXT_MAX),
    INT("n", M, logits.n, STEP_ROWS_MAX),
    INT("vocab", M, logits.vocab, MODEL_VOCAB_MAX),
};

static const struct schema_field result[] = {TERM, KEY(M, result.key)};

static const struct schema_field committed[] = {
    TERM,
    KEY(M, committed.key),
    ENUM("outcome", M, committed.outcome, wire_outcome_names),
};

static const struct schema_field cancel[] = {
    TERM,
    KEY(M, cancel.key),
    ENUM("reason", M, cancel.reason, wire_reason_names, SCHEMA_OPTIONAL),
};

static const struct schema_field error[] = {
    TERM,
    TEXT("code", M, error.code),
    TEXT("message", M, error.message, SCHEMA_OPTIONAL),
};

static const struct schema_field ping[] = {TERM, U64("seq", M, ping.seq)};

static const struct schema_field pong[] = {
    TERM,
    U64("seq", M, pong.seq),
    U64("steps", M, pong.steps),
    ENUM("state", M, pong.state, wire_state_names),
    U64("loaded_bytes", M, pong.loaded_bytes, SCHEMA_OPTIONAL),
    U64("load_bytes", M, pong.load_bytes, SCHEMA_OPTIONAL),
};

static const struct schema_field times_fields[] = {
    U64("sum_us", histogram, sum_us),
    {"counts", SCHEMA_U64S, SCHEMA_AT(histogram, counts), SCHEMA_COUNT(histogram, n),
     SCHEMA_OPTIONAL, .most = HISTOGRAM_BUCKETS},
};
static const struct schema times = SCHEMA_FIELDS(times_fields);

static const struct schema_field rank_fields[] = {
    U64("busy_us", wire_rank, busy_us),
    {"memory", SCHEMA_SUB, SCHEMA_AT(wire_rank, memory), .sub = &ledger},
};
static const struct schema rank = SCHEMA_FIELDS(rank_fields);

#define F pong.figures
static const struct schema_field pong_body[] = {
    U64("rows", M, F.rows, SCHEMA_OPTIONAL),
    U64("sampler_rows", M, F.sampler_rows, SCHEMA_OPTIONAL),
    U64("sampler_fallbacks", M, F.sampler_fallbacks, SCHEMA_OPTIONAL),
    U64("sampler_hosted", M, F.sampler_hosted, SCHEMA_OPTIONAL),
    U64("stale_frames", M, F.stale_frames, SCHEMA_OPTIONAL),
    U64("heap_calls", M, F.heap_calls, SCHEMA_OPTIONAL),
    {"decode_steps", SCHEMA_SUB, SCHEMA_AT(M, F.decode_steps), .sub = &times},
    {"prefill_steps", SCHEMA_SUB, SCHEMA_AT(M, F.prefill_steps), .sub = &times},
    U64("prefill_tokens", M, F.prefill_tokens, SCHEMA_OPTIONAL),
    U64("again_tokens", M, F.again_tokens, SCHEMA_OPTIONAL),
    U64("decode_tokens", M, F.decode_tokens, SCHEMA_OPTIONAL),
    U64("slots", M, F.slots, SCHEMA_OPTIONAL),
    U64("running", M, F.running, SCHEMA_OPTIONAL),
    U64("kv_blocks", M, F.kv_blocks, SCHEMA_OPTIONAL),
    U64("kv_reserved", M, F.kv_reserved, SCHEMA_OPTIONAL),
    U64("kv_used", M, F.kv_used, SCHEMA_OPTIONAL),
    {"memory", SCHEMA_SUB, SCHEMA_AT(M, F.memory), .sub = &ledger},
    LIST("ranks", M, F.ranks, F.n_ranks, TP_MAX, wire_rank, &rank, SCHEMA_OPTIONAL),
};
#undef F

#define RAW(member) .raw = true, .raw_at = offsetof(struct M, member)

const struct wire_grammar wire_grammars[WIRE_N_COMMANDS] = {
    [WIRE_HELLO] = {.name = "HELLO",
                    .header = SCHEMA_FIELDS(hello),
                    .body = SCHEMA_FIELDS(hello_body)},
    [WIRE_STANDBY] = {.name = "STANDBY", .header = SCHEMA_FIELDS(only_term)},
    [WIRE_ASSIGN] = {.name = "ASSIGN", .header = SCHEMA_FIELDS(assign)},
    [WIRE_READY] = {.name = "READY", .header = SCHEMA_FIELDS(ready)},
    [WIRE_LINK] = {.name = "LINK", .header = SCHEMA_FIELDS(link)},
    [WIRE_LINKED] = {.name = "LINKED", .header = SCHEMA_FIELDS(stage)},
    [WIRE_UNASSIGN] = {.name = "UNASSIGN", .header = SCHEMA_FIELDS(stage)},
    [WIRE_FAILED] = {.name = "FAILED", .header = SCHEMA_FIELDS(failed)},
    [WIRE_CREDIT] = {.name = "CREDIT", .header = SCHEMA_FIELDS(credit)},
    [WIRE_JOB] = {.name = "JOB", .header = SCHEMA_FIELDS(job), .body = SCHEMA_FIELDS(job_body)},
    [WIRE_ACCEPT] = {.name = "ACCEPT", .header = SCHEMA_FIELDS(only_key)},
    [WIRE_REJECT] = {.name = "REJECT", .header = SCHEMA_FIELDS(reject)},
    [WIRE_TOKENS] = {.name = "TOKENS",
                     .header = SCHEMA_FIELDS(tokens),
                     .body = SCHEMA_FIELDS(tokens_body)},
    [WIRE_LOGITS] = {.name = "LOGITS", .header = SCHEMA_FIELDS(logits), RAW(logits.rows)},
    [WIRE_RESULT] = {.name = "RESULT", .header = SCHEMA_FIELDS(result), RAW(result.result)},
    [WIRE_COMMITTED] = {.name = "COMMITTED", .header = SCHEMA_FIELDS(committed)},
    [WIRE_CANCEL] = {.name = "CANCEL", .header = SCHEMA_FIELDS(cancel)},
    [WIRE_DRAIN] = {.name = "DRAIN", .header = SCHEMA_FIELDS(only_term)},
    [WIRE_BYE] = {.name = "BYE", .header = SCHEMA_FIELDS(only_term)},
    [WIRE_ERROR] = {.name = "ERROR", .header = SCHEMA_FIELDS(error)},
    [WIRE_PING] = {.name = "PING", .header = SCHEMA_FIELDS(ping)},
    [WIRE_PONG] = {.name = "PONG",
                   .header = SCHEMA_FIELDS(pong),
                   .body = SCHEMA_FIELDS(pong_body),
                   .optional = true,
                   .there_at = offsetof(struct M, pong.counted)},
};
