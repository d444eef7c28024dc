// What the checks of `penstock conformance producer` have in common: wishes said to the program
// while the broker goes on, what the replies have to hold, connections that are cut. One thread.
#ifndef PENSTOCK_TOOLS_CONFORMANCE_H
#define PENSTOCK_TOOLS_CONFORMANCE_H

#include "tools/conformance_broker.h"
#include "tools/conformance_program.h"

struct json_t;
struct redisReply;

enum { CONFORMANCE_TURN_MS = 2 };

struct conformance {
    struct conformance_broker broker;
    struct conformance_program program;
    char **command; // the program's
    const char *url;
    bool own_server; // whose settings may be changed
    int timeout_s;   // of wishes; a reply may take twice as long
};

// What is wrong with the client.
enum status conformance_wrong(struct error *e, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

enum status conformance_step(struct conformance *c, struct error *e);

// Ends the program, if it runs, and starts it again: it knows nothing of jobs so far.
enum status conformance_restart(struct conformance *c, struct error *e);

// Wishes are let go when they are said.
struct json_t *conformance_chat(const char *id, const char *prompt, struct json_t *fields);
struct json_t *conformance_wish(const char *what, const char *id, int timeout_s);

enum status conformance_say(struct conformance *c, struct json_t *wish, struct error *e);

// ERR_UNSUPPORTED: the program does not know the wish. A `failure` is an error unless `any`. The
// reply is let go if it is not OK.
enum status conformance_checked(struct json_t **reply, bool any, struct error *e);

// The broker goes on until the reply is there (new reference) and checked.
enum status conformance_listen(struct conformance *c, bool any, struct json_t **reply,
                               struct error *e);
enum status conformance_ask(struct conformance *c, struct json_t *wish, struct json_t **reply,
                            struct error *e);

// Enqueues a chat; its id as the program tells it.
enum status conformance_enqueue(struct conformance *c, const char *id, const char *prompt,
                                struct json_t *fields, char told[JOB_ID_MAX + 1], struct error *e);

// Enqueues a job that is held, and asks for its end: no reply may come. From then on it runs.
enum status conformance_wait_early(struct conformance *c, const char *id, const char *prompt,
                                   struct error *e);

// The reply to that wish: the job's text.
enum status conformance_wait_ends(struct conformance *c, const char *text, struct error *e);

// Is the field of the reply this text (NULL: any or none)?
enum status conformance_expect(const struct json_t *reply, const char *field, const char *text,
                               struct error *e);

// Asks for the job's end or its result; what has to stand there.
enum status conformance_result_is(struct conformance *c, const char *wish, const char *id,
                                  const char *status, const char *text, const char *code,
                                  struct error *e);

// Has a message with this id and prompt come, which is a job?
enum status conformance_came(struct conformance *c, const char *id, const char *prompt,
                             struct error *e);

// One command in words without blanks.
enum status conformance_command(struct conformance *c, const char *text, struct redisReply **reply,
                                struct error *e);

// Leaves only the newest `n` events in the log.
enum status conformance_trim(struct conformance *c, int n, struct error *e);

// Cuts all connections but ours.
enum status conformance_cut(struct conformance *c, struct error *e);

#endif
