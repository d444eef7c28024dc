// The Redis function library on a redis-server of the test's own. Replies are compared as text:
// arrays in brackets, nil as nil, an error as ! and its first word. One thread; a failure fails the
// running test.
#ifndef PENSTOCK_TESTS_SUPPORT_QUEUE_LIBRARY_H
#define PENSTOCK_TESTS_SUPPORT_QUEUE_LIBRARY_H

struct redisContext;

enum { LIBRARY_TEXT_SIZE = 4096 };

extern struct redisContext *library_redis;
extern char library_tag[32]; // of the queue of the running test

// For cmocka: of a group of tests; of each test, a queue of its own with term 1.
int library_start(void **state);
int library_stop(void **state);
int library_new_queue(void **state);

// Replies are valid until the next one. A word %T... stands for the keys' common beginning.
const char *library_command(const char *first, ...);
const char *library_fcall(const char *name, ...); // with the queue's key

// The headers of a window without how long they have waited.
const char *library_without_last(const char *reply);

#define cmd(...) library_command(__VA_ARGS__, NULL)
#define call(...) library_fcall(__VA_ARGS__, NULL)
#define expect(wanted, ...) assert_string_equal(call(__VA_ARGS__), wanted)
#define window(...) library_without_last(call(__VA_ARGS__))
#define expect_window(wanted, ...) assert_string_equal(window(__VA_ARGS__), wanted)
#define expect_cmd(wanted, ...) assert_string_equal(cmd(__VA_ARGS__), wanted)

// Admits the message `seq` that has been taken: class 0, 3 blocks, 3 failures allowed.
const char *admit(const char *seq, const char *id, const char *hash);

// Pushes and admits job `id` as sequence number `seq`; and claims it as attempt `attempt`.
void make_job(const char *seq, const char *id);
void make_running(const char *seq, const char *id, const char *attempt);

// As if the time had come for a member of an index.
void make_due(const char *index, const char *member);

const char *state_of(const char *id);

// The newest event of the tenant default is the one after `n` others, and is "id event attempt".
void expect_event(int n, const char *wanted);

// Nothing but the listed keys' kinds may be left of a job.
void expect_clean(void);

#endif
