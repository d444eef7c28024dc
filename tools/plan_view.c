#include "tools/plan_view.h"

#include "tools/plan_host.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { BAR = 50 };

// Lines that are shown together, with the letter of their bar.
static const struct kind {
    char letter;
    const char *name;
    int n;
    enum ledger_line lines[8];
} kinds[] = {
    {'W', "weights", 2, {LEDGER_WEIGHTS, LEDGER_SCALES}},
    {'P', "packing", 1, {LEDGER_PACKING}},
    {'M', "MTP", 1, {LEDGER_MTP}},
    {'A', "buffers", 6,
     {LEDGER_ACTIVATIONS, LEDGER_LOGITS, LEDGER_HISTORY, LEDGER_STEPS, LEDGER_SEQUENCES,
      LEDGER_STAGING}},
    {'S', "scratch", 4, {LEDGER_SAMPLER, LEDGER_SCRATCH, LEDGER_COMM, LEDGER_LINKS}},
    {'C', "system", 2, {LEDGER_CONTEXT, LEDGER_LIBRARIES}},
    {'R', "reserve", 1, {LEDGER_RESERVE}},
    {'K', "KV", 1, {LEDGER_KV}},
};

enum { N_KINDS = sizeof kinds / sizeof *kinds };

static uint64_t kind_bytes(const struct ledger *l, int kind)
{
    uint64_t sum = 0;
    for (int i = 0; i < kinds[kind].n; i++) sum += l->bytes[kinds[kind].lines[i]];
    return sum;
}

struct unit {
    double bytes;
    const char *name;
};

static struct unit unit_of(const struct plan_view *v)
{
    uint64_t most = 0;
    for (int i = 0; i < v->plan->pp; i++) {
        if (v->request->device_bytes[i] > most) most = v->request->device_bytes[i];
    }
    return most < 4 * (uint64_t) GIB ? (struct unit){MIB, "MiB"} : (struct unit){GIB, "GiB"};
}

static void layers_of(const struct plan *p, int i, char *text, size_t n)
{
    snprintf(text, n, "%d-%d", p->first[i], p->first[i] + p->layers[i] - 1);
}

// A letter for each BARth of the device; what is beyond it is cut off by a '!'.
static void print_bar(const struct ledger *l, uint64_t has)
{
    char bar[BAR + 2];
    memset(bar, '.', BAR);
    bar[BAR] = bar[BAR + 1] = '\0';
    double sum = 0;
    int at = 0;
    for (int k = 0; k < N_KINDS; k++) {
        sum += (double) kind_bytes(l, k);
        int end = (int) (sum / (double) has * BAR + 0.5);
        while (at < end && at < BAR) bar[at++] = kinds[k].letter;
    }
    if (sum > (double) has) bar[BAR] = '!';
    fputs(bar, stdout);
}

static void print_bars(const struct plan_view *v, struct unit unit)
{
    const struct plan *p = v->plan;
    printf("%5s %9s  %-*s %7s\n", "stage", "layers", BAR, "largest rank", unit.name);
    for (int i = 0; i < p->pp; i++) {
        char layers[24];
        layers_of(p, i, layers, sizeof layers);
        printf("%5d %9s  ", i, layers);
        print_bar(&p->stages[i], v->request->device_bytes[i]);
        printf(" %7.2f\n", (double) v->request->device_bytes[i] / unit.bytes);
    }
    printf("%5s", "");
    for (int k = 0; k < N_KINDS; k++) {
        uint64_t most = 0;
        for (int i = 0; i < p->pp; i++) most += kind_bytes(&p->stages[i], k);
        if (most > 0) printf("%c %s  ", kinds[k].letter, kinds[k].name);
    }
    puts(". free\n");
}

// Columns that are 0 in every stage are left out, all but weights and KV.
static void print_numbers(const struct plan_view *v, struct unit unit)
{
    const struct plan *p = v->plan;
    bool shown[N_KINDS];
    printf("%5s", "stage");
    for (int k = 0; k < N_KINDS; k++) {
        shown[k] = k == 0 || k == N_KINDS - 1;
        for (int i = 0; i < p->pp; i++) shown[k] = shown[k] || kind_bytes(&p->stages[i], k) > 0;
        if (shown[k]) printf(" %7s", kinds[k].name);
    }
    printf(" %7s %7s\n", "total", "free");
    for (int i = 0; i < p->pp; i++) {
        double total = (double) ledger_total(&p->stages[i]) / unit.bytes;
        printf("%5d", i);
        for (int k = 0; k < N_KINDS; k++) {
            if (shown[k]) printf(" %7.2f", (double) kind_bytes(&p->stages[i], k) / unit.bytes);
        }
        printf(" %7.2f %7.2f\n", total,
               (double) v->request->device_bytes[i] / unit.bytes - total);
    }
}

// Wrapped at blanks to 80 columns; further lines are indented by `indent`.
static void print_text(const char *prefix, int indent, const char *text)
{
    int column = printf("%s", prefix), begin = column;
    while (*text != '\0') {
        int n = (int) strcspn(text, " ");
        if (column > begin && column + n > 79) {
            printf("\n%*s", indent, "");
            begin = column = indent;
        }
        column += printf("%s%.*s", column > begin ? " " : "", n, text);
        text += n + (text[n] == ' ');
    }
    puts("");
}

static double slowest(const struct plan *p)
{
    double most = 0;
    for (int i = 0; i < p->pp; i++) most = p->step_s[i] > most ? p->step_s[i] : most;
    return most;
}

static void print_totals(const struct plan_view *v)
{
    const struct plan *p = v->plan;
    char layers[PLAN_LAYERS_TEXT_MAX];
    plan_print_layers(p, layers, sizeof layers);
    printf("\nlayers      %s\n", layers);
    printf("KV blocks   %d of %d tokens: %lld tokens", p->kv_blocks, KV_BLOCK_ROWS,
           (long long) p->kv_blocks * KV_BLOCK_ROWS);
    int64_t room = plan_kv_room(p);
    if (p->fits && room > p->kv_blocks) {
        printf("; there is room for %" PRId64, room * KV_BLOCK_ROWS);
    }
    printf("\nslots       %d sequences at once, each up to %d tokens\n", p->slots, p->max_context);
    printf("step        %d rows; %d steps in flight\n", p->max_rows, p->steps_in_flight);
    if (v->request->rates[0] != NULL) {
        printf("slowest     %.3f ms for a step of %d decoding sequences (predicted)\n",
               1e3 * slowest(p), p->slots);
    }
}

static void print_verdict(const struct plan_view *v)
{
    const struct plan *p = v->plan;
    puts("");
    if (p->reason[0] != '\0') print_text(p->fits ? "note: " : "", 0, p->reason);
    puts(p->fits ? "It fits." : "It does not fit.");
    if (v->remedies.n > 0) puts("\nAny one of these makes it fit:");
    for (int i = 0; i < v->remedies.n; i++) print_text("  ", 4, v->remedies.at[i]);
}

void plan_view_table(const struct plan_view *v)
{
    const struct plan *p = v->plan;
    struct unit unit = unit_of(v);
    printf("%" PRId64 " tensors, %" PRId64 " elements, %" PRIu64 " bytes\n", v->model.tensors,
           v->model.elements, v->model.bytes);
    printf("%d stages of %d ranks (%s)\n\n", p->pp, p->tp, device_sizes(v->request->device)->name);
    print_bars(v, unit);
    print_numbers(v, unit);
    print_totals(v);
    if (v->idle_gpus > 0) {
        printf("note        %d GPUs of each node are not used: --pp gives them stages\n",
               v->idle_gpus);
    }
    print_verdict(v);
}

// --- explanation

// Of the node's own memory, one of which all ranks of the group use.
static void explain_host(const struct plan_view *v, int stage)
{
    struct plan_host host = plan_host_of(v->plan, v->request, stage);
    char lines[LEDGER_TEXT_MAX];
    ledger_print(&host.ledger, lines, sizeof lines);
    print_text("  host: ", 8, lines);
    printf("  %-12s %16" PRIu64 " and up to %" PRIu64 " for frames\n", "host total",
           ledger_total(&host.ledger), host.received_bytes);
}

static void explain_lines(const struct plan_view *v)
{
    const struct plan *p = v->plan;
    for (int i = 0; i < p->pp; i++) {
        const struct ledger *l = &p->stages[i];
        char layers[24];
        layers_of(p, i, layers, sizeof layers);
        printf("\nstage %d, layers %s, bytes of the largest rank:\n", i, layers);
        for (int k = 0; k < LEDGER_LINES; k++) {
            if (l->bytes[k] == 0) continue;
            printf("  %-12s %16" PRIu64 "\n", ledger_name((enum ledger_line) k), l->bytes[k]);
        }
        printf("  %-12s %16" PRIu64 "\n  %-12s %16" PRIu64 "\n", "total", ledger_total(l), "device",
               v->request->device_bytes[i]);
        explain_host(v, i);
        printf("  a KV block takes %" PRIu64 "; there is room for %" PRId64 "\n",
               p->kv_block_bytes[i], p->kv_room[i]);
        if (p->step_s[i] > 0) printf("  a step takes %.3f ms (predicted)\n", 1e3 * p->step_s[i]);
    }
}

// Bytes of block scales of one rank of each stage.
static uint64_t scales_of(const struct plan_request *r, int tp)
{
    struct plan_request one = *r;
    struct plan p;
    uint64_t sum = 0;
    one.tp = tp;
    if (plan_make(&p, &one, NULL) != OK) return 0;
    for (int i = 0; i < p.pp; i++) sum += p.stages[i].bytes[LEDGER_SCALES];
    return sum;
}

static void explain_cuts(const struct plan_view *v)
{
    const struct model_config *c = v->request->config;
    int tp = v->request->tp, part = c->moe_intermediate_size / tp;
    if (!c->fp8 || tp == 1 || part % c->scale_block == 0) return;
    printf("\ntp %d cuts through blocks of scales: moe_intermediate_size %d / %d = %d is no\n"
           "multiple of %d, so neighbours hold the same scales: in all %" PRIu64 " bytes\n"
           "of scales, %" PRIu64 " where nothing is cut\n",
           tp, c->moe_intermediate_size, tp, part, c->scale_block,
           scales_of(v->request, tp) * (uint64_t) tp, scales_of(v->request, 1));
}

void plan_view_explain(const struct plan_view *v)
{
    const struct plan *p = v->plan;
    int least = 0;
    for (int i = 1; i < p->pp; i++) {
        if (p->kv_room[i] < p->kv_room[least]) least = i;
    }
    explain_lines(v);
    printf("\nstage %d bounds the pool: its devices have room for %" PRId64 " blocks%s\n", least,
           p->kv_room[least],
           p->kv_room[least] > p->kv_blocks ? ";\nslots x context use fewer" : "");
    explain_cuts(v);
    struct advice pins;
    plan_pins(v->request, p, &pins);
    if (pins.n > 0) puts("\npinned:");
    for (int i = 0; i < pins.n; i++) print_text("  ", 4, pins.at[i]);
}

// --- two splits

static void compare_row(const struct plan *p, int i, double unit)
{
    char layers[24];
    layers_of(p, i, layers, sizeof layers);
    printf(" | %9s %7.2f %8.2f %7" PRId64, layers, (double) p->weight_bytes[i] / unit,
           (double) ledger_total(&p->stages[i]) / unit, p->kv_room[i]);
}

static uint64_t largest(const struct plan *p)
{
    uint64_t most = 0;
    for (int i = 0; i < p->pp; i++) {
        if (ledger_total(&p->stages[i]) > most) most = ledger_total(&p->stages[i]);
    }
    return most;
}

static void compare_end(const struct plan *p, double unit)
{
    printf(" | %9s %7s %8.2f %7" PRId64, p->fits ? "fits" : "too large", "",
           (double) largest(p) / unit, plan_kv_room(p));
}

void plan_view_compare(const struct plan_view *v, const struct plan *other)
{
    struct unit unit = unit_of(v);
    const struct plan *plans[2] = {v->plan, other};
    printf("%5s", "");
    for (int k = 0; k < 2; k++) {
        char layers[PLAN_LAYERS_TEXT_MAX];
        plan_print_layers(plans[k], layers, sizeof layers);
        printf(" | %-34.34s", layers);
    }
    printf("\n%5s", "stage");
    for (int k = 0; k < 2; k++) {
        printf(" | %9s %7s %8s %7s", "layers", "weights", unit.name, "blocks");
    }
    for (int i = 0; i < v->plan->pp; i++) {
        printf("\n%5d", i);
        for (int k = 0; k < 2; k++) compare_row(plans[k], i, unit.bytes);
    }
    printf("\n%5s", "all");
    for (int k = 0; k < 2; k++) compare_end(plans[k], unit.bytes);
    if (v->request->rates[0] != NULL) {
        printf("\n%5s", "step");
        for (int k = 0; k < 2; k++) printf(" | %31.3f ms", 1e3 * slowest(plans[k]));
    }
    puts("");
    if (!v->plan->fits) print_verdict(v);
}

// --- JSON

static json_t *number(uint64_t n) { return json_integer((json_int_t) n); }

static json_t *ledger_json(const struct ledger *l)
{
    json_t *lines = json_object();
    for (int k = 0; k < LEDGER_LINES; k++) {
        json_object_set_new(lines, ledger_name((enum ledger_line) k), number(l->bytes[k]));
    }
    return lines;
}

static json_t *stage_json(const struct plan_view *v, int i)
{
    const struct plan *p = v->plan;
    uint64_t has = v->request->device_bytes[i], total = ledger_total(&p->stages[i]);
    struct plan_host host = plan_host_of(p, v->request, i);
    json_t *j = json_pack(
        "{s:i, s:i, s:o, s:o, s:I, s:o, s:o, s:I, s:o, s:o}", "first", p->first[i], "last",
        p->first[i] + p->layers[i], "weight_bytes_per_rank", number(p->weight_bytes[i]),
        "kv_block_bytes", number(p->kv_block_bytes[i]), "kv_room", (json_int_t) p->kv_room[i],
        "device_bytes", number(has), "total_bytes", number(total), "free_bytes",
        (json_int_t) (has - total), "ledger", ledger_json(&p->stages[i]), "host",
        ledger_json(&host.ledger));
    if (p->step_s[i] > 0) json_object_set_new(j, "step_seconds", json_real(p->step_s[i]));
    return j;
}

static json_t *model_json(const struct model_size *m)
{
    return json_pack("{s:I, s:I, s:o}", "tensors", (json_int_t) m->tensors, "elements",
                     (json_int_t) m->elements, "bytes", number(m->bytes));
}

json_t *plan_view_json(const struct plan_view *v)
{
    const struct plan *p = v->plan;
    json_t *layers = json_array(), *stages = json_array(), *remedies = json_array();
    for (int i = 0; i < p->pp; i++) {
        json_array_append_new(layers, json_integer(p->layers[i]));
        json_array_append_new(stages, stage_json(v, i));
    }
    for (int i = 0; i < v->remedies.n; i++) {
        json_array_append_new(remedies, json_string(v->remedies.at[i]));
    }
    return json_pack(
        "{s:b, s:o, s:i, s:i, s:o, s:o, s:i, s:I, s:i, s:i, s:i, s:i, s:s, s:s, s:s?, s:o}", "fits",
        p->fits, "layers", layers, "tp", p->tp, "pp", p->pp, "model", model_json(&v->model),
        "stages", stages, "kv_blocks", p->kv_blocks, "kv_tokens",
        (json_int_t) p->kv_blocks * KV_BLOCK_ROWS, "slots", p->slots, "max_context", p->max_context,
        "max_rows", p->max_rows, "steps_in_flight", p->steps_in_flight, "device",
        device_sizes(v->request->device)->name, "objective", v->request->for_time ? "time" : "kv",
        "reason", p->reason[0] != '\0' ? p->reason : NULL, "remedies", remedies);
}
