// The whole broker as a process, with a real redis-server and groups that only speak the wire
// protocol: what the tests of the broker drive. One thread; a failure fails the running test.
#ifndef PENSTOCK_TESTS_SUPPORT_WORLD_H
#define PENSTOCK_TESTS_SUPPORT_WORLD_H

#include "common/clock.h"
#include "common/result.h"
#include "tests/support/fake_group.h"
#include "tests/support/program.h"
#include "tests/support/redis.h"

struct redisContext;
struct redisReply;

enum { WORLD_GROUPS_MAX = 6, WORLD_PATIENCE_MS = 30000 };

// A broker and its groups, on a queue of their own.
struct world {
    char queue[32];
    struct program broker;
    char endpoint[ENDPOINT_MAX];
    struct fake_group groups[WORLD_GROUPS_MAX];
    int n_groups;
    void *stranger;       // closed with the groups, also after a test that failed
    const char *extra[12]; // options of the broker
};
extern struct world w;

extern struct test_redis world_server;
extern struct redisContext *world_redis;
extern void *world_zmq; // context

// For cmocka: of a group of tests; of each test, a queue of its own.
int world_start(void **state);
int world_stop(void **state);
int world_open(void **state);
int world_close(void **state);

// --- driving

// The groups do what is due; the broker's log is read.
void turn(void);

// Turns until the condition holds.
#define until(condition)                                                                           \
    do {                                                                                           \
        int64_t end_ = clock_ms() + WORLD_PATIENCE_MS;                                             \
        while (!(condition)) {                                                                     \
            if (clock_ms() > end_) {                                                               \
                fputs(w.broker.log, stderr); /* longer than cmocka's messages */                   \
                fail_msg("never: %s", #condition);                                                 \
            }                                                                                      \
            turn();                                                                                \
        }                                                                                          \
    } while (0)

void start_broker(void);
struct fake_group *start_group(const char *name);

// A broker with one serving group; `extra` options end with NULL.
struct fake_group *start_world(const char *const *extra);

// The last attempt at a job, once the group has it.
struct fake_job *wait_job(struct fake_group *g, const char *id);

// --- Redis, as a producer sees it

// Any command; the caller frees the reply.
struct redisReply *ask(const char *format, ...);

// After a restart of Redis.
void reconnect(void);

void push_bytes(const void *bytes, size_t n);

// A message written as JSON with single quotes.
void push(const char *format, ...) __attribute__((format(printf, 1, 2)));

void push_job(const char *id, int n_prompt, int max_tokens);

bool has_result(const char *id);

// Waits for the result; the caller frees *bytes with hiredis, and deinits.
struct result result_of(const char *id, struct redisReply **bytes);

void expect_result(const char *id, enum result_status status, const char *code, int n_tokens);

// "event attempt;" of each event of the job.
void expect_events(const char *id, const char *wanted);

int saved_bytes(const char *id); // of its checkpoint
bool field_is(const char *id, const char *field, const char *value);

#endif
