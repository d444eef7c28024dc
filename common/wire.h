// What broker and groups say to each other: one struct a command, encoded into and decoded from
// four frames (grammar, semantics and golden bytes: PROTOCOL.md; the tables: wire_grammar.c). Any
// thread. Knows no sockets, and keeps no state: terms and epochs are carried, and judged by others.
#ifndef PENSTOCK_COMMON_WIRE_H
#define PENSTOCK_COMMON_WIRE_H

#include "common/buffer.h"
#include "common/histogram.h"
#include "common/job_key.h"
#include "common/ledger.h"
#include "common/limits.h"
#include "common/sampling.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    WIRE_MAJOR = 1, // in the first frame; another one is refused
    WIRE_MINOR = 2, // in HELLO; new fields and commands only
    WIRE_MINOR_LEAST = 1, // of a group: below, step headers between stages have no padding
    WIRE_MINOR_FP8_KV = 2, // of a group that is told to have KV in FP8
    WIRE_FRAMES = 4,
    WIRE_ID_BYTES = 16,
    WIRE_HASH_MAX = 64,
    WIRE_NAME_MAX = 63, // versions, devices, precisions
};

enum wire_command {
    WIRE_HELLO, WIRE_STANDBY, WIRE_ASSIGN, WIRE_READY, WIRE_LINK, WIRE_LINKED, WIRE_UNASSIGN,
    WIRE_FAILED, WIRE_CREDIT, WIRE_JOB, WIRE_ACCEPT, WIRE_REJECT, WIRE_TOKENS, WIRE_LOGITS,
    WIRE_RESULT, WIRE_COMMITTED, WIRE_CANCEL, WIRE_DRAIN, WIRE_BYE, WIRE_ERROR, WIRE_PING,
    WIRE_PONG, WIRE_N_COMMANDS
};

enum wire_state { WIRE_IDLE, WIRE_LOADING, WIRE_LOADED, WIRE_SERVING, WIRE_DRAINING, WIRE_LOST };
enum wire_reason { WIRE_REASON_CANCELLED, WIRE_REASON_EXPIRED };
enum wire_outcome { WIRE_OUTCOME_OK, WIRE_OUTCOME_STALE, WIRE_OUTCOME_UNKNOWN };

// Borrowed bytes: of the received frames, or of the caller when encoding.
struct wire_bytes {
    const void *at;
    size_t n;
};

struct wire_assignment {
    uint64_t pipeline, epoch;
    int stage, n_stages;
    int first, last; // layers [first, last)
    char plan[WIRE_HASH_MAX + 1];
    enum wire_state state;
};

struct wire_device {
    char name[WIRE_NAME_MAX + 1];
    uint64_t bytes; // that may be used
};

struct wire_running {
    struct job_key key;
    int offset; // tokens generated so far
};

// A group says who it is and what it holds; answered by STANDBY, or adopted or assigned.
struct wire_hello {
    int minor;
    char version[WIRE_NAME_MAX + 1];
    char node[GROUP_NAME_MAX + 1], name[GROUP_NAME_MAX + 1];
    uint8_t boot[WIRE_ID_BYTES]; // random at each process start
    bool assigned;
    struct wire_assignment assignment; // if assigned
    // --- body
    struct wire_device *devices; // (n_devices) one a rank
    int n_devices;
    int tp;
    char model[WIRE_HASH_MAX + 1]; // manifest hash
    char precision[WIRE_NAME_MAX + 1];
    char data[ENDPOINT_MAX + 1]; // address of the interface that stage links use
    struct wire_running *running; // (n_running)
    int n_running;
    struct job_key *finished;     // (n_finished) results kept until COMMITTED
    int n_finished;
};

struct wire_assign {
    uint64_t pipeline, epoch;
    int stage, n_stages;
    int first, last;
    int tp;
    int kv_blocks;   // of the pool
    int slots;
    int max_blocks;  // of one sequence
    int max_rows;    // of a step
    int max_out;     // rows with logits of a step
    int steps_in_flight;
    int max_context; // tokens, prompt and output
    int chunk;       // most rows of one sequence in a step
    char plan[WIRE_HASH_MAX + 1];
    uint8_t token[WIRE_ID_BYTES]; // of the links of this epoch
    char precision[WIRE_NAME_MAX + 1];
    bool score; // logits travel back
    bool fp8_kv; // KV is in FP8; else as activations are
    int fill_ms, step_ms; // of the head's scheduler: workers/sched.h
};

struct wire_ready {
    uint64_t pipeline, epoch;
    int stage;
    uint64_t weights_bytes, kv_bytes, buffers_bytes, total_bytes; // largest rank
    bool by_line;         // minor 1: the same, line by line
    struct ledger ledger;
    char endpoint[ENDPOINT_MAX + 1];        // activations; empty on the head
    char tokens_endpoint[ENDPOINT_MAX + 1]; // the head's, for chosen tokens; else empty
};

struct wire_link {
    uint64_t pipeline, epoch;
    char endpoint[ENDPOINT_MAX + 1]; // the next stage's, or for the last one the head's for tokens;
                                     // empty for the only stage
};

struct wire_stage { // LINKED, and UNASSIGN
    uint64_t pipeline, epoch;
    int stage;
};

struct wire_failed { // the group ends the epoch; it keeps its weights unless it says BYE
    uint64_t pipeline, epoch;
    int stage;
    char code[ERROR_CODE_SIZE];
    char message[ERROR_TEXT_SIZE];
};

struct wire_credit { // absolute and cumulative since the epoch began: ever granted
    uint64_t pipeline, epoch;
    uint64_t slots, blocks;
};

struct wire_job {
    struct job_key key;
    uint64_t pipeline, epoch;
    int max_tokens; // in all, resumed ones included
    struct sampling sampling;
    int32_t stop_ids[STOP_IDS_MAX];
    int n_stop_ids;
    bool ignore_eos;
    bool score;        // logits of every row come back (LOGITS)
    bool stream;       // TOKENS carry text, and come often
    int class;         // prompts of a lower one are prefilled first
    char custom_id[JOB_CUSTOM_ID_MAX + 1];
    int attempts;      // this one included; for the result
    uint64_t queued_ms; // spent until now; for the result
    // Tokens of what was done for the job before; the result's usage counts them, too.
    uint64_t prior_prompt, prior_cached, prior_completion;
    // --- body
    struct wire_bytes ids;    // prompt: int32 little-endian (wire_ids_copy)
    struct wire_bytes resume; // ids that an earlier attempt generated
    struct wire_bytes stops[STOP_STRINGS_MAX];
    int n_stops;
};

struct wire_reject {
    struct job_key key;
    char code[ERROR_CODE_SIZE];
    char message[ERROR_TEXT_SIZE];
};

struct wire_tokens {
    struct job_key key;
    int offset; // of the first id among the generated tokens
    int text_offset; // of the first byte of `text` in the whole text
    // --- body
    struct wire_bytes ids;  // int32 little-endian
    struct wire_bytes text; // whole characters that no later token changes
};

struct wire_logits {
    struct job_key key;
    int pos, n, vocab;
    struct wire_bytes rows; // body: (n, vocab) f32 little-endian
};

struct wire_result {
    struct job_key key;
    struct wire_bytes result; // body: see result.h
};

struct wire_committed {
    struct job_key key;
    enum wire_outcome outcome;
};

struct wire_cancel {
    struct job_key key;
    enum wire_reason reason;
};

struct wire_error {
    char code[ERROR_CODE_SIZE]; // unknown_peer, stale_term, bad_version, bad_frame, ...
    char message[ERROR_TEXT_SIZE];
};

struct wire_ping {
    uint64_t seq;
};

struct wire_rank {
    uint64_t busy_us;     // computing steps
    struct ledger memory; // of its device; zeros until it has loaded
};

// What a group has counted since its process began, and what it holds now.
struct wire_figures {
    uint64_t rows;                    // of all steps
    uint64_t sampler_rows, sampler_fallbacks, sampler_hosted; // last stage
    uint64_t stale_frames;            // of another epoch, dropped
    uint64_t heap_calls;              // of threads that may make none
    struct histogram decode_steps;    // steps with one row of each sequence, by rank 0's clock
    struct histogram prefill_steps;   // those with more of any
    // --- head
    uint64_t prefill_tokens;          // rows of ids that were known before
    uint64_t again_tokens;            // of these, of jobs that an earlier attempt had begun
    uint64_t decode_tokens;           // chosen
    uint64_t slots, running;          // sequences that may run, that do
    uint64_t kv_blocks, kv_reserved, kv_used; // all, of sequences, of these with rows in them
    // --- ranks
    struct ledger memory;             // of the group's host
    struct wire_rank *ranks;          // (n_ranks)
    int n_ranks;
};

struct wire_pong {
    uint64_t seq;
    uint64_t steps; // decode step counter: stands still when a device hangs
    enum wire_state state;
    uint64_t loaded_bytes, load_bytes; // while loading
    bool counted;                // figures is there
    struct wire_figures figures; // body
};

struct wire_message {
    enum wire_command command;
    uint64_t term;
    union {
        struct wire_hello hello;
        struct wire_assign assign;
        struct wire_ready ready;
        struct wire_link link;
        struct wire_stage stage;   // LINKED, UNASSIGN
        struct wire_failed failed;
        struct wire_credit credit;
        struct wire_job job;
        struct job_key key;        // ACCEPT
        struct wire_reject reject;
        struct wire_tokens tokens;
        struct wire_logits logits;
        struct wire_result result;
        struct wire_committed committed;
        struct wire_cancel cancel;
        struct wire_error error;
        struct wire_ping ping;
        struct wire_pong pong;
    };
    void *storage; // of the lists, after wire_decode
};

struct wire_frame {
    const void *data;
    size_t n;
};

// Encodes; `frames` then point to constants, into `space` (cleared first) and, for RESULT and
// LOGITS, to the caller's bytes: valid as long as those. ERR_INPUT bad_frame if a field is out of
// its bounds, ERR_LIMIT too_large.
enum status wire_encode(const struct wire_message *m, struct buffer *space,
                        struct wire_frame frames[WIRE_FRAMES], struct error *e);

// Decodes the frames after the routing id. Bytes in `m` point into the frames. Unknown header
// fields are ignored. ERR_UNSUPPORTED bad_version, unknown_command; ERR_INPUT bad_frame (names the
// field), bad_msgpack; ERR_LIMIT too_large; ERR_NOMEM. Release with wire_message_deinit, also after
// an error.
enum status wire_decode(struct wire_message *m, const struct wire_frame *frames, size_t n_frames,
                        struct error *e);
void wire_message_deinit(struct wire_message *m);

// Number of ids in such bytes, and copying them out (frames are not aligned).
int wire_ids_count(struct wire_bytes ids);
void wire_ids_copy(struct wire_bytes ids, int32_t *to);

const char *wire_command_name(enum wire_command command);
const char *wire_reason_name(enum wire_reason reason);

#endif
