// Plays the broker and its groups for tests of the producer's side: takes, admits, claims and ends
// jobs through the Redis functions at once. The answer to a prompt (or to the last message's
// content) is "re: " and the same again; 3 tokens of prompt, 5 of completion. A prompt that begins
// with "fail" fails, one that begins with "keep" is never ended.
#ifndef PENSTOCK_TESTS_SUPPORT_FAKE_BROKER_H
#define PENSTOCK_TESTS_SUPPORT_FAKE_BROKER_H

#include "tests/support/redis.h"

#include <sys/types.h>

struct fake_broker {
    struct redisContext *c;
    char queue[65];
    char key[96]; // of the term
    char term[24];
    int n_claims;
};

// Loads the function library and takes the next term.
void fake_broker_start(struct fake_broker *b, const struct test_redis *r, const char *queue);
void fake_broker_stop(struct fake_broker *b);

// One round over tenant `default`: at most n jobs are admitted, and at most n ended. Returns how
// many messages and jobs it moved.
int fake_broker_step(struct fake_broker *b, int n);

// A child process that steps (at most n jobs a round) until it is stopped. Outlives restarts of
// Redis.
pid_t fake_broker_fork(const struct test_redis *r, const char *queue, int n);
void fake_broker_kill(pid_t pid);

#endif
