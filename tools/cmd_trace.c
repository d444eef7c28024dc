// penstock trace ID: what all processes said of one job, in the order of time. Files are read a
// line at a time; only the lines that are shown are kept.
#include "common/limits.h"
#include "broker/redis.h"
#include "common/options.h"
#include "tools/commands.h"
#include "tools/found_line.h"
#include "tools/outcome.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILES_MAX = 64 };
#define TRACE_BYTES_MAX (256 * MIB) // of lines that are kept

struct line {
    struct found_line at; // its text is gone
    size_t order;         // as read
    char *text;
};

struct trace {
    const char *id, *tenant; // tenant NULL: any
    struct line *lines;
    size_t n, room, n_bytes;
};

static enum status keep(struct trace *tr, char *text, size_t n, struct error *e)
{
    struct found_line l;
    if (strstr(text, tr->id) == NULL || !found_line_read(text, &l)) return OK;
    if (!found_line_says(&l, "id", tr->id)) return OK;
    if (tr->tenant != NULL && !found_line_says(&l, "tenant", tr->tenant)) return OK;
    if (tr->n_bytes + n > (size_t) TRACE_BYTES_MAX) {
        return error_set(e, ERR_LIMIT, "too_large", "the lines of this job are too many");
    }
    if (tr->n == tr->room) {
        size_t room = tr->room > 0 ? 2 * tr->room : 64;
        struct line *lines = realloc(tr->lines, room * sizeof *lines);
        if (lines == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for the lines");
        tr->lines = lines;
        tr->room = room;
    }
    char *copy = strdup(l.shown);
    if (copy == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for the lines");
    tr->lines[tr->n] = (struct line){l, tr->n, copy};
    tr->n++;
    tr->n_bytes += n;
    return OK;
}

static enum status read_log(struct trace *tr, const char *path, struct error *e)
{
    FILE *f = strcmp(path, "-") == 0 ? stdin : fopen(path, "r");
    char *text = NULL;
    size_t room = 0;
    enum status status = OK;
    if (f == NULL) return error_set(e, ERR_IO, NULL, "%s: %s", path, strerror(errno));
    for (ssize_t n; status == OK && (n = getline(&text, &room, f)) > 0;) {
        status = keep(tr, text, (size_t) n, e);
    }
    if (status == OK && ferror(f)) status = error_set(e, ERR_IO, NULL, "%s cannot be read", path);
    free(text);
    if (f != stdin) fclose(f);
    return status;
}

static int by_time(const void *a, const void *b)
{
    const struct line *x = a, *y = b;
    if (x->at.t_ms != y->at.t_ms) return x->at.t_ms < y->at.t_ms ? -1 : 1;
    if (x->at.attempt != y->at.attempt) return x->at.attempt < y->at.attempt ? -1 : 1;
    if (x->at.step != y->at.step) return x->at.step < y->at.step ? -1 : 1;
    return x->order < y->order ? -1 : 1;
}

int cmd_trace(int argc, char **argv)
{
    struct trace tr = {0};
    const char *words[FILES_MAX + 1] = {NULL}, *log = NULL;
    struct option_spec specs[] = {
        {.name = "log", .kind = OPTION_STRING, .value = &log, .argument = "FILE",
         .help = "Log of a process, as penstock up writes one of all; -: stdin, as of docker "
                 "compose logs. More may follow."},
        {.name = "tenant", .kind = OPTION_STRING, .value = &tr.tenant, .argument = "NAME",
         .help = "Whose job (default: lines of any tenant)."},
    };
    struct options o = {.program = "penstock trace",
                        .usage = "ID --log FILE [FILE...] [OPTIONS]",
                        .about = "Prints what the logs say of one job, in the order of time: "
                                 "admitted, sent, accepted,\nfirst_token, ended, result, and "
                                 "whatever came between. Exit status 1: nothing.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs,
                        .positional = words,
                        .max_positional = FILES_MAX};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if (words[0] == NULL || log == NULL) {
        error_set(&e, ERR_INPUT, "bad_usage", "which job, of which log? penstock trace %s",
                  o.usage);
        return outcome_usage(o.program, &e);
    }
    tr.id = words[0];
    enum status status = redis_name_check("id", tr.id, JOB_ID_MAX, &e);
    if (status == OK && tr.tenant != NULL) {
        status = redis_name_check("tenant", tr.tenant, TENANT_MAX, &e);
    }
    if (status != OK) return outcome_usage(o.program, &e);
    words[0] = log;
    for (int i = 0; status == OK && words[i] != NULL; i++) status = read_log(&tr, words[i], &e);
    if (tr.n > 0) qsort(tr.lines, tr.n, sizeof *tr.lines, by_time);
    for (size_t i = 0; i < tr.n; i++) {
        const char *text = tr.lines[i].text;
        size_t n = strcspn(text, "\r\n"); // the last line of a file may have no end
        if (status == OK) printf("%.*s\n", (int) n, text);
        free(tr.lines[i].text);
    }
    free(tr.lines);
    if (status != OK) return outcome_failed(o.program, &e, false);
    if (tr.n == 0) fprintf(stderr, "%s: the logs say nothing of %s\n", o.program, tr.id);
    return tr.n > 0 ? EXIT_DONE : EXIT_FAILED;
}
