// penstock dead ls|show|retry|purge: jobs that failed for good, and messages that were none.
#include "broker/queue_admin.h"
#include "tools/commands.h"
#include "tools/outcome.h"
#include "tools/queue_options.h"
#include "tools/show_job.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct asked {
    struct queue_flags queue;
    const char *words[2]; // what to do, id
    bool all, json;
};

// Ids of a page, while letters of it come and go.
struct page {
    char (*ids)[JOB_ID_MAX + 1];
    size_t n, room;
    bool full; // of memory
};

static void print_dead(void *arg, const struct queue_dead *d)
{
    (void) arg;
    printf("%-24s %-18s %" PRIu32 " attempts, %" PRIu32 " groups lost: %s\n", d->id, d->code,
           d->starts, d->lost, d->text);
}

static void add_dead(void *arg, const struct queue_dead *d)
{
    json_array_append_new(arg, json_pack("{s:s, s:I, s:s, s:s, s:I, s:I}", "id", d->id, "died_ms",
                                         (json_int_t) d->died_ms, "code", d->code, "message",
                                         d->text, "attempts", (json_int_t) d->starts, "lost",
                                         (json_int_t) d->lost));
}

static enum status each(struct queue_sync *q, const char *tenant,
                        void (*fn)(void *arg, const struct queue_dead *d), void *arg,
                        struct error *e)
{
    uint64_t offset = 0;
    do try(queue_admin_dead(q, tenant, &offset, fn, arg, e));
    while (offset != 0);
    return OK;
}

static int list(const char *program, struct queue_sync *q, const struct asked *a)
{
    struct error e = {0};
    json_t *letters = a->json ? json_array() : NULL;
    if (each(q, a->queue.tenant, a->json ? add_dead : print_dead, letters, &e) != OK) {
        json_decref(letters);
        return outcome_failed(program, &e, a->json);
    }
    return a->json ? outcome_json(json_pack("{s:o}", "dead", letters), EXIT_DONE) : EXIT_DONE;
}

static void keep_id(void *arg, const struct queue_dead *d)
{
    struct page *p = arg;
    if (p->n == p->room) {
        size_t room = p->room > 0 ? 2 * p->room : 256;
        void *ids = realloc(p->ids, room * sizeof *p->ids);
        p->full = p->full || ids == NULL;
        if (ids == NULL) return;
        p->ids = ids;
        p->room = room;
    }
    snprintf(p->ids[p->n++], sizeof *p->ids, "%s", d->id);
}

typedef enum status end_fn(struct queue_sync *q, const char *tenant, const char *id,
                           struct error *e);

static enum status end_all(struct queue_sync *q, const char *tenant, end_fn *fn, int64_t *n,
                           struct error *e)
{
    struct page p = {0};
    enum status status = each(q, tenant, keep_id, &p, e);
    if (status == OK && p.full) status = error_set(e, ERR_NOMEM, NULL, "no memory for the ids");
    for (size_t i = 0; status == OK && i < p.n; i++) {
        status = fn(q, tenant, p.ids[i], e);
        if (status == OK) ++*n;
        else if (status == ERR_STATE) status = OK; // somebody was faster, or its bytes are gone
    }
    free(p.ids);
    return status;
}

static int end(const char *program, struct queue_sync *q, const struct asked *a, end_fn *fn)
{
    struct error e = {0};
    int64_t n = 0;
    enum status status = a->all ? end_all(q, a->queue.tenant, fn, &n, &e)
                                : fn(q, a->queue.tenant, a->words[1], &e);
    if (status == ERR_INPUT) return outcome_usage(program, &e);
    if (status != OK) return outcome_failed(program, &e, a->json);
    if (!a->all) n = 1;
    if (a->json) return outcome_json(json_pack("{s:I}", a->words[0], (json_int_t) n), EXIT_DONE);
    fprintf(stderr, "%s: %" PRId64 " %s\n", program, n,
            fn == queue_admin_retry ? "put into the inbox again" : "dropped");
    return EXIT_DONE;
}

static bool is_asked(const struct asked *a)
{
    const char *what = a->words[0], *id = a->words[1];
    if (what == NULL) return false;
    if (strcmp(what, "ls") == 0) return id == NULL && !a->all;
    if (strcmp(what, "show") == 0) return id != NULL && !a->all;
    return (strcmp(what, "retry") == 0 || strcmp(what, "purge") == 0) && (id != NULL) != a->all;
}

static int act(const char *program, struct queue_sync *q, const struct asked *a)
{
    switch (a->words[0][0]) {
    case 'l': return list(program, q, a);
    case 's': return show_job(program, q, a->queue.tenant, a->words[1], a->json);
    case 'r': return end(program, q, a, queue_admin_retry);
    default: return end(program, q, a, queue_admin_purge);
    }
}

int cmd_dead(int argc, char **argv)
{
    struct asked a = {.queue = queue_flags_default()};
    struct option_spec specs[] = {
        {.name = "all", .kind = OPTION_FLAG, .value = &a.all,
         .help = "Of retry and purge: all of the tenant's."},
        {.name = "json", .kind = OPTION_FLAG, .value = &a.json,
         .help = "One JSON object on stdout."},
        QUEUE_FLAG_ROWS(a.queue),
    };
    struct options o = {.program = "penstock dead",
                        .usage = "ls | show ID | retry ID|--all | purge ID|--all [OPTIONS]",
                        .about = "Lists a tenant's dead letters, newest first; shows one; puts its "
                                 "message into the inbox again,\nas a new job; or drops it.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs,
                        .positional = a.words,
                        .max_positional = 2};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if (!is_asked(&a)) {
        error_set(&e, ERR_INPUT, "bad_usage", "usage: penstock dead %s", o.usage);
        return outcome_usage(o.program, &e);
    }
    struct queue_sync *q;
    if (queue_flags_open(&a.queue, &q, &e) != OK) return outcome_failed(o.program, &e, a.json);
    int status = act(o.program, q, &a);
    queue_sync_close(&q);
    return status;
}
