// penstock batch IN.jsonl -o OUT.jsonl: a file of OpenAI batch requests through the queue.
#include "common/clock.h"
#include "tools/batch_run.h"
#include "tools/commands.h"
#include "tools/outcome.h"
#include "tools/queue_options.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static volatile sig_atomic_t stop;

static void on_signal(int signal_number)
{
    (void) signal_number;
    stop = 1;
}

// Once: a second one ends the program at once, which loses nothing either.
static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int) SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

// OUT.jsonl -> OUT.errors.jsonl
static enum status errors_path(const char *out, char path[PATH_MAX], struct error *e)
{
    static const char END[] = ".jsonl";
    size_t n = strlen(out), end = sizeof END - 1;
    if (n > end && strcmp(out + n - end, END) == 0) n -= end;
    if (snprintf(path, PATH_MAX, "%.*s.errors.jsonl", (int) n, out) < PATH_MAX) return OK;
    return error_set(e, ERR_INPUT, "bad_usage", "the path of the output is too long");
}

static bool same_file(const char *a, const char *b)
{
    struct stat x, y;
    if (strcmp(a, b) == 0) return true;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static enum status check_usage(const struct batch_options *o, struct error *e)
{
    if (o->in == NULL) {
        return error_set(e, ERR_INPUT, "bad_usage", "which file? penstock batch IN.jsonl -o OUT");
    }
    if (o->out == NULL) return error_set(e, ERR_INPUT, "bad_usage", "-o OUT.jsonl is missing");
    if (same_file(o->in, o->out) || same_file(o->in, o->errors) || same_file(o->out, o->errors)) {
        return error_set(e, ERR_INPUT, "bad_usage",
                         "input, output and errors must be three different files");
    }
    if (o->batch_id == NULL) return OK;
    return redis_name_check("batch id", o->batch_id, BATCH_ID_MAX, e);
}

static json_t *counts_json(const struct batch_options *o, const struct batch_counts *n,
                           double seconds, enum status status, const struct error *e)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:f, s:s, s:s, s:b, s:o}", "batch_id",
                     n->batch_id, "total", (json_int_t) n->total, "done", (json_int_t) n->done,
                     "failed", (json_int_t) n->failed, "left",
                     (json_int_t) (n->total - n->done - n->failed), "tokens",
                     (json_int_t) n->tokens, "seconds", seconds, "output", o->out, "errors",
                     o->errors, "interrupted", status == ERR_ABORTED, "error",
                     status != OK && status != ERR_ABORTED ? outcome_error(e) : json_null());
}

static int run(const struct batch_options *o, const struct queue_flags *queue, const char *program,
               bool json)
{
    struct error e = {0};
    struct queue_sync *q;
    struct batch_counts n;
    if (queue_flags_open(queue, &q, &e) != OK) return outcome_failed(program, &e, json);
    int64_t from = clock_ms();
    enum status status = batch_run(o, q, &n, &e);
    double seconds = (double) (clock_ms() - from) / 1000;
    queue_sync_close(&q);
    if (status != OK) fprintf(stderr, "%s: %s\n", program, e.text);
    fprintf(stderr,
            "%s: %" PRId64 " lines, %" PRId64 " done, %" PRId64 " failed, %" PRId64 " left\n",
            program, n.total, n.done, n.failed, n.total - n.done - n.failed);
    if (n.failed > 0) fprintf(stderr, "%s: why they failed is in %s\n", program, o->errors);
    int exit = status == OK && n.failed == 0 ? EXIT_DONE : EXIT_FAILED;
    return json ? outcome_json(counts_json(o, &n, seconds, status, &e), exit) : exit;
}

int cmd_batch(int argc, char **argv)
{
    struct queue_flags queue = queue_flags_default();
    struct batch_options b = {.stop = &stop};
    char path[PATH_MAX];
    int64_t window = 512;
    bool json = false;
    struct option_spec specs[] = {
        {.name = "output", .kind = OPTION_STRING, .value = &b.out, .argument = "OUT.jsonl",
         .help = "Answers, as they come; -o for short."},
        {.name = "errors", .kind = OPTION_STRING, .value = &b.errors, .argument = "ERR.jsonl",
         .help = "Lines that failed (default OUT.errors.jsonl)."},
        {.name = "window", .kind = OPTION_INT, .value = &window, .argument = "N",
         .help = "Jobs in the queue at once (default 512).", .least = 1, .most = BATCH_WINDOW_MAX},
        {.name = "batch-id", .kind = OPTION_STRING, .value = &b.batch_id, .argument = "ID",
         .help = "Of the jobs (default: follows from the input's path and content)."},
        {.name = "json", .kind = OPTION_FLAG, .value = &json,
         .help = "The counts as one JSON object on stdout."},
        QUEUE_FLAG_ROWS(queue),
    };
    struct options o = {
        .program = "penstock batch",
        .usage = "IN.jsonl -o OUT.jsonl [OPTIONS]",
        .about = "Runs a file of OpenAI batch requests, {custom_id, method, url, body} a line, "
                 "through the queue.\nurl is /v1/chat/completions, /v1/completions or "
                 "/v1/map_reduce.\n"
                 "Interrupted, it goes on when it is run again with the same files: no line is "
                 "answered twice, none is lost.\n"
                 "Exit status 1: lines failed, or it was interrupted.",
        .specs = specs,
        .n_specs = sizeof specs / sizeof *specs,
        .positional = &b.in,
        .max_positional = 1};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if (b.out != NULL && b.errors == NULL) {
        if (errors_path(b.out, path, &e) != OK) return outcome_failed(o.program, &e, json);
        b.errors = path;
    }
    if (check_usage(&b, &e) != OK) return outcome_failed(o.program, &e, json);
    b.window = (int) window;
    b.tenant = queue.tenant;
    catch_signals();
    return run(&b, &queue, o.program, json);
}
