// A worker group that speaks the wire protocol and computes nothing: it does what it is told as
// fast as it can, and finishes jobs only when the test says so. One thread.
#ifndef PENSTOCK_TESTS_SUPPORT_FAKE_GROUP_H
#define PENSTOCK_TESTS_SUPPORT_FAKE_GROUP_H

#include "common/wire.h"
#include "common/wire_socket.h"

enum { FAKE_JOBS_MAX = 64, FAKE_IDS_MAX = 64, FAKE_TEXT_MAX = 16 * FAKE_IDS_MAX };

struct fake_job {
    struct job_key key;
    int n_prompt, max_tokens, n_resume, attempts;
    int32_t ids[FAKE_IDS_MAX], resume[FAKE_IDS_MAX]; // the first ones
    struct sampling sampling;
    int n_blocks;
    int n_tokens;    // generated, resumed ones included
    bool running;
    bool finished;   // its RESULT is kept until COMMITTED
    bool stream;
    int text_told;   // stream: tokens whose text was told, from the first one on
    bool cancelled;  // CANCEL came
    enum wire_reason reason; // of it
    bool committed;
    enum wire_outcome outcome;
    int64_t result_ms;
};

struct fake_group {
    void *context, *socket;
    char endpoint[ENDPOINT_MAX];
    struct wire_socket wire;
    char name[GROUP_NAME_MAX + 1], model[WIRE_HASH_MAX + 1];
    uint8_t boot[WIRE_ID_BYTES];
    uint64_t memory;
    int tp, minor;
    uint64_t term;
    int64_t heard_ms, hello_ms, credit_ms;
    bool assigned, linked;
    struct wire_assign assign;
    int n_assigns, n_unassigns, n_hellos;
    char next[ENDPOINT_MAX + 1]; // of LINK
    uint64_t granted_slots, granted_blocks;
    struct fake_job jobs[FAKE_JOBS_MAX]; // ever, in order of arrival
    int n_jobs;
    char error[ERROR_CODE_SIZE]; // of the last ERROR but unknown_peer
    const char *reject;          // code: the next job is refused with it
    bool drain;                  // asks to leave
    bool deaf;                   // does not do what CANCEL wants
};

void fake_group_start(struct fake_group *g, void *context, const char *endpoint, const char *name,
                      const char *model);
// Without a word, as kill -9 does it.
void fake_group_kill(struct fake_group *g);

// Waits up to wait_ms for messages, answers them, and says what is due.
void fake_group_turn(struct fake_group *g, int wait_ms);

// The last attempt at a job, or NULL.
struct fake_job *fake_group_job(struct fake_group *g, const char *id);

// The text of a streaming job's first n tokens; its length. `to` may be NULL.
size_t fake_group_text(char to[FAKE_TEXT_MAX], int n);

// n more tokens, each the number of its place; told to the broker, with the text if it streams.
void fake_group_tokens(struct fake_group *g, struct fake_job *job, int n);

// Ends a job with all its tokens; the result is said again until COMMITTED.
void fake_group_finish(struct fake_group *g, struct fake_job *job);

#endif
