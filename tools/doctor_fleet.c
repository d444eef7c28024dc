#include "common/clock.h"
#include "common/ledger.h"
#include "tools/doctor.h"
#include "tools/fleet_view.h"

#include <stdio.h>
#include <string.h>

static json_int_t stage_bytes(const json_t *plan, json_int_t stage)
{
    return json_integer_value(json_array_get(json_object_get(plan, "stage_bytes"), (size_t) stage));
}

// The first line of its ledger that is not as planned; NULL: all are, or none was told.
static const char *other_line(const json_t *plan, json_int_t stage, const json_t *reserved,
                              json_int_t *planned, json_int_t *has)
{
    const json_t *ledgers = json_object_get(plan, "stage_ledgers");
    const json_t *wanted = json_array_get(ledgers, (size_t) stage);
    const json_t *told = json_object_get(reserved, "ledger");
    if (wanted == NULL || told == NULL) return NULL;
    for (int i = 0; i < LEDGER_LINES; i++) {
        const char *name = ledger_name((enum ledger_line) i);
        if (!ledger_is_carved((enum ledger_line) i)) continue;
        *planned = json_integer_value(json_object_get(wanted, name));
        *has = json_integer_value(json_object_get(told, name));
        if (*planned != *has) return name;
    }
    return NULL;
}

// What it reserved, against the plan that it was given and the memory that it has.
static void check_memory(struct doctor *d, const json_t *plan, const json_t *g)
{
    const json_t *reserved = json_object_get(g, "reserved");
    json_int_t stage = fleet_number(g, "stage"), planned = stage_bytes(plan, stage);
    json_int_t total = fleet_number(reserved, "total"), device = fleet_number(g, "device_bytes");
    if (reserved == NULL || planned == 0) return;
    bool ok = total <= planned && total <= device;
    json_int_t wanted, has;
    const char *line = other_line(plan, stage, reserved, &wanted, &has);
    if (line != NULL) {
        doctor_find(d, false, "memory",
                    "the plan counts otherwise than the group: report it, with the output of "
                    "penstock fleet --json",
                    "%.64s has %lld bytes of %s for stage %lld; planned are %lld",
                    fleet_text(g, "name"), has, line, stage, wanted);
    }
    doctor_find(d, ok, "memory",
                total > device ? "give the group more memory (--device-memory), or the broker a "
                                 "smaller --max-context or --slots"
                               : "the plan is short: report it, with the output of penstock fleet "
                                 "--json",
                "%.64s has reserved %lld bytes for stage %lld; planned are %lld, it has %lld",
                fleet_text(g, "name"), total, stage, planned, device);
}

static void check_group(struct doctor *d, const json_t *model, const json_t *g)
{
    const json_t *failure = json_object_get(g, "failure");
    if (failure != NULL) {
        doctor_find(d, false, "group", "mend what it says; the group tries again by itself",
                    "%.64s failed: %.31s: %.300s", fleet_text(g, "name"),
                    fleet_text(failure, "code"), fleet_text(failure, "message"));
        return;
    }
    long long calls = fleet_number(json_object_get(g, "figures"), "heap_calls");
    if (calls > 0) {
        doctor_find(d, false, "heap", "report it, with the group's log line event=heap_call",
                    "threads of %.64s that may not use the heap did so %lld times",
                    fleet_text(g, "name"), calls);
    }
    if (json_is_integer(json_object_get(g, "stage"))) {
        check_memory(d, json_object_get(model, "plan"), g);
        return;
    }
    doctor_find(d, true, "group", "", "%.64s is idle: %s", fleet_text(g, "name"),
                strcmp(fleet_text(g, "state"), "no plan") == 0
                    ? "there is no plan yet"
                    : "a spare, or one too few for a further pipeline");
}

static void check_pipeline(struct doctor *d, const json_t *model, const json_t *p)
{
    size_t i, missing = 0;
    json_t *stage;
    const char *state = fleet_text(p, "state");
    json_array_foreach(json_object_get(p, "stages"), i, stage) missing += json_is_null(stage);
    doctor_find(d, strcmp(state, "serving") == 0, "pipeline",
                missing > 0 ? "start groups for the missing stages; --spares keeps some ready"
                            : "wait, if it loads; else look at the groups' logs",
                "%lld of %.64s is %s, %zu of %zu stages have a group", fleet_number(p, "id"),
                fleet_text(model, "name"), state, i - missing, i);
}

static void check_model(struct doctor *d, const json_t *model)
{
    size_t i, n = json_array_size(json_object_get(model, "pipelines"));
    json_t *p, *g;
    const json_t *refused = json_object_get(model, "refused");
    if (refused != NULL) {
        doctor_find(d, false, "plan", "penstock plan shows what would fit",
                    "none for %.64s: %.300s", fleet_text(model, "name"),
                    fleet_text(refused, "message"));
    } else if (n == 0) {
        doctor_find(d, false, "model", "start groups with this checkpoint; those that are refused "
                    "say why in their logs",
                    "%.64s is not served: %lld groups are wanted, %zu are there",
                    fleet_text(model, "name"), fleet_number(model, "stages_wanted"),
                    json_array_size(json_object_get(model, "groups")));
    }
    json_array_foreach(json_object_get(model, "pipelines"), i, p) check_pipeline(d, model, p);
    json_array_foreach(json_object_get(model, "groups"), i, g) check_group(d, model, g);
}

void doctor_fleet(struct doctor *d)
{
    struct queue_leader leader;
    struct error e = {0};
    size_t i;
    json_t *model;
    if (fleet_view(d->queue, &leader, &d->fleet, &e) != OK) {
        doctor_find(d, false, "leader", "start a broker, or ask as a viewer (penstock acl viewer)",
                    "%s", e.text);
        return;
    }
    const json_t *said = json_object_get(d->fleet, "leader");
    bool told = leader.term != 0 && (json_int_t) leader.term == fleet_number(said, "term");
    if (leader.term == 0) {
        doctor_find(d, false, "leader", "start a broker (penstock-broker), or look why it ended",
                    "no broker leads");
    } else {
        doctor_find(d, told, "leader", "it says so within seconds of its start; else look at its "
                    "log", "%s leads, term %llu%s", leader.name, (unsigned long long) leader.term,
                    told ? "" : ", and has said nothing of its fleet");
    }
    if (!told) { // what an earlier one said is no finding of today
        json_decref(d->fleet);
        d->fleet = NULL;
        return;
    }
    json_array_foreach(json_object_get(d->fleet, "models"), i, model) check_model(d, model);
}
