// penstock fleet: who leads, which models are served, which group has which stage of which
// pipeline, as the leader last said.
#include "broker/queue_admin.h"
#include "common/clock.h"
#include "tools/commands.h"
#include "tools/fleet_view.h"
#include "tools/outcome.h"
#include "tools/queue_options.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

// Bytes as people say them.
static const char *amount(json_int_t bytes, char to[24])
{
    if (bytes >= 10 * GIB) snprintf(to, 24, "%lld GiB", bytes / GIB);
    else snprintf(to, 24, "%lld MiB", (bytes + MIB / 2) / MIB);
    return to;
}

static void print_group(const json_t *g, const char *place)
{
    char used[24], device[24];
    json_int_t load = fleet_number(g, "load_bytes"), loaded = fleet_number(g, "loaded_bytes");
    json_int_t total = fleet_number(json_object_get(g, "reserved"), "total");
    const char *state = fleet_text(g, "state");
    const json_t *failure = json_object_get(g, "failure");
    printf("    %-8s  %-20.32s  %-8s  %.24s", place, fleet_text(g, "name"), state,
           fleet_text(g, "node"));
    if (total > 0) {
        printf("  %s of %s", amount(total, used),
               amount(fleet_number(g, "device_bytes"), device));
    } else if (strcmp(state, "loading") == 0 && load > 0) {
        printf("  %lld%% loaded", 100 * loaded / load);
    } else {
        printf("  %s", amount(fleet_number(g, "device_bytes"), device));
    }
    printf("%s\n", json_is_true(json_object_get(g, "draining")) ? "  leaves" : "");
    if (failure != NULL) printf("%14s%s\n", "", fleet_text(failure, "message"));
}

static void print_pipeline(const json_t *model, const json_t *p)
{
    size_t i, k;
    json_t *name, *g;
    bool paused = json_is_true(json_object_get(p, "paused"));
    printf("  pipeline %lld  %s", fleet_number(p, "id"), fleet_text(p, "state"));
    if (paused) printf(", paused, %lld jobs run", fleet_number(p, "running"));
    putchar('\n');
    json_array_foreach(json_object_get(p, "stages"), i, name) {
        char place[32];
        bool found = false;
        snprintf(place, sizeof place, "stage %zu", i);
        json_array_foreach(json_object_get(model, "groups"), k, g) {
            bool here = json_is_string(name) && fleet_number(g, "pipeline") == fleet_number(p, "id")
                        && json_is_integer(json_object_get(g, "stage")) &&
                        fleet_number(g, "stage") == (json_int_t) i;
            if (here) print_group(g, place);
            found = found || here;
        }
        if (!found) printf("    %-8s  (waits for a group)\n", place);
    }
}

static void print_plan(const json_t *model)
{
    const json_t *plan = json_object_get(model, "plan"), *refused;
    size_t i;
    json_t *n;
    printf("model %s: ", fleet_text(model, "name"));
    if (!json_is_object(plan)) {
        refused = json_object_get(model, "refused");
        if (refused != NULL) printf("no plan: %s\n", fleet_text(refused, "message"));
        else printf("no plan yet; it takes %lld groups\n", fleet_number(model, "stages_wanted"));
        return;
    }
    json_array_foreach(json_object_get(plan, "layers"), i, n) {
        printf("%s%lld", i > 0 ? "+" : "", json_integer_value(n));
    }
    printf(" layers, tp %lld, %s, %lld slots,\n  %lld KV blocks, context %lld\n",
           fleet_number(plan, "tp"), fleet_text(plan, "precision"), fleet_number(plan, "slots"),
           fleet_number(plan, "kv_blocks"), fleet_number(plan, "max_context"));
}

static void print_model(const json_t *model)
{
    size_t i;
    json_t *p, *g;
    print_plan(model);
    json_array_foreach(json_object_get(model, "pipelines"), i, p) print_pipeline(model, p);
    bool first = true;
    json_array_foreach(json_object_get(model, "groups"), i, g) {
        if (json_is_integer(json_object_get(g, "pipeline"))) continue;
        if (first) printf("  without a stage\n");
        first = false;
        print_group(g, "");
    }
}

static void print_all(const struct queue_leader *leader, const json_t *record)
{
    size_t i;
    json_t *model;
    const json_t *said = json_object_get(record, "leader");
    bool own = leader->term != 0 && (json_int_t) leader->term == fleet_number(said, "term");
    long long now_ms = clock_wall_ms();
    if (leader->term == 0) {
        puts("nobody leads");
    } else {
        printf("%s leads, term %llu", leader->name, (unsigned long long) leader->term);
        if (own) {
            printf(", at %s, for %lld s\n", fleet_text(said, "endpoint"),
                   (now_ms - fleet_number(said, "since")) / 1000);
        } else {
            puts("; it has said nothing of its fleet yet");
        }
    }
    if (record != NULL && !own) {
        printf("as %s said %lld s ago:\n", fleet_text(said, "name"),
               (now_ms - fleet_number(record, "at")) / 1000);
    }
    json_array_foreach(json_object_get(record, "models"), i, model) print_model(model);
}

int cmd_fleet(int argc, char **argv)
{
    struct queue_flags flags = queue_flags_default();
    bool json = false;
    struct option_spec specs[] = {
        {.name = "json", .kind = OPTION_FLAG, .value = &json, .help = "One JSON object."},
        QUEUE_ONLY_ROWS(flags),
    };
    struct options o = {.program = "penstock fleet",
                        .usage = "[OPTIONS]",
                        .about = "Which broker leads, which models are served, and which group has "
                                 "which stage.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    struct queue_sync *q;
    struct queue_leader leader;
    json_t *record = NULL;
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    enum status status = queue_flags_open(&flags, &q, &e);
    if (status != OK) return outcome_failed(o.program, &e, json);
    status = fleet_view(q, &leader, &record, &e);
    queue_sync_close(&q);
    if (status != OK) return outcome_failed(o.program, &e, json);
    if (json) {
        json_t *lease = leader.term == 0
                            ? json_null()
                            : json_pack("{s:s,s:I,s:I}", "name", leader.name, "term",
                                        (json_int_t) leader.term, "lease_ms",
                                        (json_int_t) leader.lease_ms);
        return outcome_json(json_pack("{s:o,s:o}", "leads", lease, "fleet",
                                      record != NULL ? record : json_null()), EXIT_DONE);
    }
    print_all(&leader, record);
    json_decref(record);
    return EXIT_DONE;
}
