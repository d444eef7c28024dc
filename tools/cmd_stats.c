// penstock stats: what is in the queue now, and what has passed through it.
#include "broker/queue_admin.h"
#include "tools/commands.h"
#include "tools/outcome.h"
#include "tools/queue_options.h"

#include <inttypes.h>
#include <stdio.h>

struct row {
    const char *name; // in JSON
    uint64_t value;
    const char *text; // for people; NULL: not shown
};

enum { ROWS_MAX = 24 };

static int make_rows(const struct queue_stats *s, struct row rows[ROWS_MAX])
{
    const struct row all[] = {
        {"inbox", s->inbox, "pushed and not yet looked at"},
        {"taken", s->taken, "being looked at"},
        {"ready", s->ready, "waiting to run"},
        {"delayed", s->delayed, "waiting for their time"},
        {"running", s->running, "running"},
        {"dead", s->dead, "dead letters"},
        {"oldest_ms", s->oldest_ms, "ms that the oldest has waited"},
        {"raw", s->raw, NULL},
        {"bytes", s->bytes, "bytes of messages that wait or run"},
        {"paused", s->paused, NULL},
        {"paused_tenants", s->paused_tenants, "tenants that are paused"},
        {"admitted", s->admitted, "admitted since the queue was made"},
        {"done", s->done, "done"},
        {"failed", s->failed, "failed"},
        {"cancelled", s->cancelled, "cancelled"},
        {"expired", s->expired, "expired"},
        {"rejected", s->rejected, "rejected"},
        {"duplicates", s->duplicates, "sent again"},
        {"conflicts", s->conflicts, "refused for an id in use"},
        {"retried", s->retried, "retried after a failure"},
        {"lost", s->lost, "lost with a group and given back"},
        {"stale", s->stale, "late results refused"},
        {"term", s->term, NULL},
    };
    const int n = sizeof all / sizeof *all;
    _Static_assert(sizeof all / sizeof *all <= ROWS_MAX, "room for all");
    for (int i = 0; i < n; i++) rows[i] = all[i];
    return n;
}

static void add_model(void *arg, const char *model, uint64_t ready, uint64_t waited_ms)
{
    json_array_append_new(arg, json_pack("{s:s, s:I, s:I}", "name", model, "ready",
                                         (json_int_t) ready, "oldest_ms",
                                         (json_int_t) waited_ms));
}

static void print_models(json_t *models)
{
    size_t i;
    json_t *m;
    json_array_foreach(models, i, m) {
        printf("%12lld  ready for the model %s\n",
               (long long) json_integer_value(json_object_get(m, "ready")),
               json_string_value(json_object_get(m, "name")));
    }
}

int cmd_stats(int argc, char **argv)
{
    struct queue_flags flags = queue_flags_default();
    bool json = false;
    struct option_spec specs[] = {
        {.name = "json", .kind = OPTION_FLAG, .value = &json,
         .help = "One JSON object on stdout."},
        QUEUE_FLAG_ROWS(flags),
    };
    struct options o = {.program = "penstock stats",
                        .usage = "[OPTIONS]",
                        .about = "Counts the queue's jobs by state, of all tenants.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    struct queue_sync *q;
    struct queue_stats stats;
    if (queue_flags_open(&flags, &q, &e) != OK) return outcome_failed(o.program, &e, json);
    enum status status = queue_sync_stats(q, &stats, &e);
    json_t *models = json_array();
    if (status == OK) status = queue_admin_models(q, add_model, models, &e);
    queue_sync_close(&q);
    if (status != OK) {
        json_decref(models);
        return outcome_failed(o.program, &e, json);
    }
    struct row rows[ROWS_MAX];
    int n = make_rows(&stats, rows);
    json_t *object = json ? json_pack("{s:s}", "queue", flags.queue) : NULL;
    for (int i = 0; i < n; i++) {
        uint64_t value = rows[i].value;
        if (json) json_object_set_new(object, rows[i].name, json_integer((json_int_t) value));
        else if (rows[i].text != NULL) printf("%12" PRIu64 "  %s\n", value, rows[i].text);
    }
    if (json) {
        json_object_set_new(object, "models", models);
        return outcome_json(object, EXIT_DONE);
    }
    print_models(models);
    json_decref(models);
    if (stats.paused) puts("The queue is paused.");
    return EXIT_DONE;
}
