// penstock trace ID: what all processes said of one job, in the order of time. Files are read a
// line at a time; only the lines that are shown are kept.
#include "common/limits.h"
#include "broker/redis.h"
#include "common/options.h"
#include "tools/commands.h"
#include "tools/outcome.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILES_MAX = 64 };
#define TRACE_BYTES_MAX (256 * MIB) // of lines that are kept

struct line {
    long long t;
    size_t order; // as read: lines of the same millisecond stay so
    char *text;
};

struct trace {
    const char *id, *tenant; // tenant NULL: any
    struct line *lines;
    size_t n, room, n_bytes;
};

// Whether a line says name=value, or "name":"value" where lines are JSON.
static bool says(const char *text, const char *name, const char *value)
{
    char plain[160], json[160];
    snprintf(plain, sizeof plain, " %s=%s", name, value);
    snprintf(json, sizeof json, "\"%s\":\"%s\"", name, value);
    if (strstr(text, json) != NULL) return true;
    for (const char *at = text; (at = strstr(at, plain)) != NULL; at++) {
        char next = at[strlen(plain)];
        if (next == ' ' || next == '\n' || next == '\0') return true;
    }
    return false;
}

static bool time_of(const char *text, long long *t)
{
    const char *at = strncmp(text, "t=", 2) == 0 ? text + 2 : strstr(text, "\"t\":");
    if (at == NULL) return false;
    if (at != text + 2) at += strlen("\"t\":");
    return sscanf(at, "%lld", t) == 1;
}

static enum status keep(struct trace *tr, const char *text, size_t n, struct error *e)
{
    long long t = 0;
    if (!says(text, "id", tr->id) || !time_of(text, &t)) return OK;
    if (tr->tenant != NULL && !says(text, "tenant", tr->tenant)) return OK;
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
    char *copy = strdup(text);
    if (copy == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for the lines");
    tr->lines[tr->n] = (struct line){t, tr->n, copy};
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
    if (x->t != y->t) return x->t < y->t ? -1 : 1;
    return x->order < y->order ? -1 : 1;
}

int cmd_trace(int argc, char **argv)
{
    struct trace tr = {0};
    const char *words[FILES_MAX + 1] = {NULL}, *log = NULL;
    struct option_spec specs[] = {
        {.name = "log", .kind = OPTION_STRING, .value = &log, .argument = "FILE",
         .help = "Log of a process, as penstock up writes one of all; -: stdin. More may follow."},
        {.name = "tenant", .kind = OPTION_STRING, .value = &tr.tenant, .argument = "NAME",
         .help = "Whose job (default: lines of any tenant)."},
    };
    struct options o = {.program = "penstock trace",
                        .usage = "ID --log FILE [FILE...] [OPTIONS]",
                        .about = "Prints what the logs say of one job, in the order of time.\n"
                                 "Exit status 1: nothing. Processes that log at level debug say "
                                 "more.",
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
        if (status == OK) fputs(tr.lines[i].text, stdout);
        free(tr.lines[i].text);
    }
    free(tr.lines);
    if (status != OK) return outcome_failed(o.program, &e, false);
    if (tr.n == 0) fprintf(stderr, "%s: the logs say nothing of %s\n", o.program, tr.id);
    return tr.n > 0 ? EXIT_DONE : EXIT_FAILED;
}
