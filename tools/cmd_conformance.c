// penstock conformance producer -- COMMAND: tries a client against a broker that is played.
#include "broker/redis.h"
#include "common/clock.h"
#include "common/options.h"
#include "tools/commands.h"
#include "tools/conformance_checks.h"
#include "tools/outcome.h"

#include <arpa/inet.h>
#include <hiredis/hiredis.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { START_MS = 10000 };

// A server for this run alone, which keeps nothing.
struct own_redis {
    pid_t pid; // 0: none
    char dir[64], url[64];
};

static int free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool ok = fd >= 0 && bind(fd, (struct sockaddr *) &a, sizeof a) == 0 &&
              getsockname(fd, (struct sockaddr *) &a, &n) == 0;
    if (fd >= 0) close(fd);
    return ok ? ntohs(a.sin_port) : -1;
}

static void run_server(const struct own_redis *r, const char *port)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execlp("redis-server", "redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", r->dir,
           "--save", "", "--appendonly", "no", "--logfile", "/dev/null", "--daemonize", "no",
           (char *) NULL);
    _exit(127);
}

static void stop_redis(struct own_redis *r)
{
    if (r->pid == 0) return;
    kill(r->pid, SIGKILL);
    waitpid(r->pid, NULL, 0);
    rmdir(r->dir);
    r->pid = 0;
}

static enum status start_redis(struct own_redis *r, struct error *e)
{
    int port = free_port();
    char text[16];
    snprintf(text, sizeof text, "%d", port);
    snprintf(r->url, sizeof r->url, "redis://127.0.0.1:%d", port);
    snprintf(r->dir, sizeof r->dir, "/tmp/penstock-conformance-XXXXXX");
    if (port < 0 || mkdtemp(r->dir) == NULL) {
        return error_set(e, ERR_IO, NULL, "no port or folder for redis-server: %m");
    }
    r->pid = fork();
    if (r->pid == 0) run_server(r, text);
    for (int64_t until = clock_ms() + START_MS; clock_ms() < until; poll(NULL, 0, 5)) {
        redisContext *c = redisConnect("127.0.0.1", port);
        bool up = c != NULL && c->err == 0;
        if (c != NULL) redisFree(c);
        if (up) return OK;
        if (waitpid(r->pid, NULL, WNOHANG) != 0) {
            r->pid = 0;
            rmdir(r->dir);
            return error_set(e, ERR_IO, NULL, "redis-server does not run: is it installed?");
        }
    }
    stop_redis(r);
    return error_set(e, ERR_TIMEOUT, NULL, "redis-server does not answer");
}

static enum status connect_to(const char *text, redisContext **c, struct error *e)
{
    struct redis_url url;
    try(redis_url_parse(text, &url, e));
    *c = url.host[0] != 0 ? redisConnect(url.host, url.port) : redisConnectUnix(url.path);
    if (*c == NULL || (*c)->err != 0) {
        enum status status = redis_connection_error(*c, &url, e);
        if (*c != NULL) redisFree(*c);
        *c = NULL;
        return status;
    }
    if (url.password[0] == 0) return OK;
    redisReply *r = url.user[0] != 0 ? redisCommand(*c, "AUTH %s %s", url.user, url.password)
                                     : redisCommand(*c, "AUTH %s", url.password);
    enum status status = redis_reply_check(r, e);
    if (r != NULL) freeReplyObject(r);
    if (status == OK) return OK;
    redisFree(*c);
    *c = NULL;
    return status;
}

// --- the run

static void show(const struct conformance_check *check, enum status status, const struct error *e,
                 json_t *rows)
{
    const char *word = status == OK ? "ok" : status == ERR_UNSUPPORTED ? "skipped" : "failed";
    if (rows == NULL) {
        printf("%-8s %-16s %s%s%s\n", word, check->name, check->what, status != OK ? ": " : "",
               status != OK ? e->text : "");
        fflush(stdout);
        return;
    }
    json_array_append_new(rows, json_pack("{s:s, s:s, s:s, s:s*}", "check", check->name, "what",
                                          check->what, "outcome", word, "why",
                                          status != OK ? e->text : NULL));
}

// After a failed check the program may be in the middle of something: the next gets a fresh one.
static int run_checks(struct conformance *c, char **command, const char *url, const char *queue,
                      json_t *rows)
{
    int failed = 0;
    for (int i = 0; i < CONFORMANCE_N_CHECKS; i++) {
        struct error e = {0};
        enum status status = OK;
        if (c->program.pid == 0) {
            status = conformance_program_start(&c->program, command, url, queue, &e);
        }
        if (status == OK) status = CONFORMANCE_CHECKS[i].run(c, &e);
        show(&CONFORMANCE_CHECKS[i], status, &e, rows);
        c->broker.hold_runs = false;
        if (status == OK || status == ERR_UNSUPPORTED) continue;
        failed++;
        conformance_program_stop(&c->program);
    }
    conformance_program_stop(&c->program);
    return failed;
}

static enum status run(char **command, const char *url, const char *queue, json_t *rows,
                       int *failed, struct error *e)
{
    struct own_redis own = {0};
    struct conformance c = {0};
    redisContext *redis;
    char made[65];
    uint32_t random = 0;
    if (getrandom(&random, sizeof random, 0) < 0) random = (uint32_t) getpid();
    snprintf(made, sizeof made, "conformance-%08x", random);
    if (queue == NULL) queue = made;
    try(redis_name_check("queue", queue, sizeof made - 1, e));
    if (url == NULL) {
        try(start_redis(&own, e));
        url = own.url;
    }
    enum status status = connect_to(url, &redis, e);
    if (status == OK) {
        status = conformance_broker_init(&c.broker, redis, queue, e);
        if (status == OK) *failed = run_checks(&c, command, url, queue, rows);
        conformance_broker_deinit(&c.broker);
    }
    stop_redis(&own);
    return status;
}

// Where "--" stands in argv; argc: nowhere.
static int command_at(int argc, char **argv)
{
    int i = 1;
    while (i < argc && strcmp(argv[i], "--") != 0) i++;
    return i;
}

int cmd_conformance(int argc, char **argv)
{
    const char *url = NULL, *queue = NULL, *side = NULL;
    bool json = false;
    struct option_spec specs[] = {
        {.name = "redis", .kind = OPTION_STRING, .value = &url, .argument = "URL",
         .help = "Uses this server instead of starting one; connections to it are cut."},
        {.name = "queue", .kind = OPTION_STRING, .value = &queue, .argument = "NAME",
         .help = "Queue, which is removed at the end (default: a new one)."},
        {.name = "json", .kind = OPTION_FLAG, .value = &json,
         .help = "The checks as one JSON object on stdout."},
    };
    struct options o = {
        .program = "penstock conformance",
        .usage = "producer [OPTIONS] -- COMMAND [ARGUMENTS]",
        .about = "Tries a client of the queue: COMMAND is given wishes as JSON lines and replies "
                 "with one line each\n(common/PROTOCOL.md, Conformance), while the broker is "
                 "played. Exit status 1: a check failed.",
        .specs = specs,
        .n_specs = sizeof specs / sizeof *specs,
        .positional = &side,
        .max_positional = 1};
    struct error e = {0};
    int at = command_at(argc, argv), failed = 0;
    if (options_parse(&o, at, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if (side == NULL || strcmp(side, "producer") != 0 || at + 1 >= argc) {
        error_set(&e, ERR_INPUT, "bad_usage", "which client? conformance producer -- COMMAND");
        return outcome_usage(o.program, &e);
    }
    json_t *rows = json ? json_array() : NULL;
    if (run(argv + at + 1, url, queue, rows, &failed, &e) != OK) {
        json_decref(rows);
        return outcome_failed(o.program, &e, json);
    }
    int status = failed == 0 ? EXIT_DONE : EXIT_FAILED;
    if (!json) {
        printf("%d of %d checks failed\n", failed, CONFORMANCE_N_CHECKS);
        return status;
    }
    return outcome_json(json_pack("{s:i, s:o}", "failed", failed, "checks", rows), status);
}
