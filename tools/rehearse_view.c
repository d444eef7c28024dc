#include "tools/rehearse_view.h"

#include "common/limits.h"

#include <inttypes.h>
#include <string.h>

// The plan's total, with what took the place of the libraries here.
static uint64_t expected(const struct rehearse_memory *m)
{
    return ledger_total(&m->planned) - m->planned.bytes[LEDGER_LIBRARIES] -
           m->planned.bytes[LEDGER_RESERVE] + m->carved.bytes[LEDGER_LIBRARIES];
}

double rehearse_view_off(const struct rehearse_memory *m)
{
    uint64_t seen = m->total - m->free_ready;
    return m->total == 0 ? 0 : ((double) expected(m) - (double) seen) / (double) seen;
}

static double sum(const struct rehearse_time *t)
{
    double all = 0;
    for (int i = 0; i < REHEARSE_OPS; i++) all += t->ops[i];
    return all;
}

// --- tables

static void print_ledger(const struct rehearse_view *v)
{
    const struct rehearse_memory *m = &v->memory;
    printf("%-12s %16s %16s\n", "bytes", "planned", "here");
    for (int i = 0; i < LEDGER_LINES; i++) {
        if (m->planned.bytes[i] == 0 && m->carved.bytes[i] == 0) continue;
        printf("%-12s %16" PRIu64 " %16" PRIu64 "%s\n", ledger_name((enum ledger_line) i),
               m->planned.bytes[i], m->carved.bytes[i],
               i == LEDGER_CONTEXT     ? m->alone ? "  measured"
                                                  : "  measured, other processes included"
               : i == LEDGER_LIBRARIES ? "  recorded steps, and a stand-in for the collectives"
                                       : "");
    }
    printf("%-12s %16" PRIu64 " %16" PRIu64 "\n", "total", ledger_total(&m->planned),
           ledger_total(&m->carved));
    if (m->total > 0) {
        printf("\nthe device shows %" PRIu64 " bytes in use: the plan, with the stand-in for the "
               "libraries,\nis off by %.2f%%; free at READY %" PRIu64 ", now %" PRIu64 "\n",
               m->total - m->free_ready, 100 * rehearse_view_off(m), m->free_ready, m->free_now);
    }
    printf("filled in %.1f s; ", m->fill_s);
    if (m->heap_watched) {
        printf("heap calls in timed steps: %" PRIu64 "\n\n", m->heap_calls);
    } else {
        puts("heap calls are not watched in this build\n");
    }
}

// Ops are columns' rows: those that took no time are left out.
static void print_times(const struct rehearse_time *t, int n, const char *what)
{
    printf("%-14s", what);
    for (int k = 0; k < n; k++) printf(" %9d%s", t[k].rows, t[k].shared_kv ? "*" : " ");
    printf("\n%-14s", "ms, measured");
    for (int k = 0; k < n; k++) printf(" %9.3f ", 1e3 * t[k].seconds);
    printf("\n%-14s", "  pace");
    for (int k = 0; k < n; k++) printf(" %9.3f ", 1e3 * t[k].pace);
    printf("\n%-14s", "  layers");
    for (int k = 0; k < n; k++) printf(" %9.3f ", 1e3 * t[k].layers);
    printf("\n%-14s", "  ops, marked");
    for (int k = 0; k < n; k++) printf(" %9.3f ", 1e3 * sum(&t[k]));
    puts("");
    for (int op = 0; op < REHEARSE_OPS; op++) {
        double all = 0;
        for (int k = 0; k < n; k++) all += t[k].ops[op];
        if (all == 0) continue;
        printf("  %-12s", rehearse_op_name((enum rehearse_op) op));
        for (int k = 0; k < n; k++) printf(" %9.3f ", 1e3 * t[k].ops[op]);
        puts("");
    }
    printf("%-14s", "  experts");
    for (int k = 0; k < n; k++) printf(" %9d ", t[k].experts);
    puts("\n");
}

// Sequences of this context that the pool has blocks for.
static int sequences(const struct rehearse_view *v)
{
    return v->plan->kv_blocks / ((v->context + KV_BLOCK_ROWS - 1) / KV_BLOCK_ROWS);
}

static void print_predictions(const struct rehearse_view *v)
{
    bool beyond = false;
    printf("predicted of %d stages x %d ranks, with rates of %s for what passes between devices",
           v->plan->pp, v->plan->tp, v->rates.there->name);
    if (v->rates.here != NULL) {
        printf("\nand, by the model, for what is measured on %s", v->rates.here->name);
    }
    printf(":\na step alone, or as many as there are stages; beside it the cost model's own "
           "figures\n");
    printf("%6s %8s | %8s %9s %7s %9s | %8s %9s  | %8s %9s\n", "", "measured", "", "predicted", "",
           "", "tokens/s", "", "model", "");
    printf("%6s %8s | %8s %9s %7s %9s | %8s %9s  | %8s %9s\n", "rows", "own ms", "there",
           "reduce ms", "hop ms", "step ms", "alone", "filled", "alone", "filled");
    for (int i = 0; i < v->n_decodes; i++) {
        const struct rehearse_prediction *p = &v->predictions[i];
        bool more = (int64_t) p->rows * v->plan->pp > sequences(v);
        beyond = beyond || more;
        printf("%6d %8.3f | %8.3f %9.3f %7.3f %9.3f | %8.1f %9.1f%s | %8.1f %9.1f\n", p->rows,
               1e3 * p->measured.step, 1e3 * p->scaled.step, 1e3 * p->reduces_s, 1e3 * p->link_s,
               1e3 * p->latency_s, p->alone, p->filled, more ? "*" : " ", p->model_alone,
               p->model_filled);
    }
    if (beyond) puts("* more sequences than the pool holds at this context");
}

void rehearse_view_table(const struct rehearse_view *v)
{
    const struct plan *p = v->plan;
    char layers[PLAN_LAYERS_TEXT_MAX];
    bool shared = false;
    plan_print_layers(p, layers, sizeof layers);
    printf("stage %d (layers %d-%d) of %s, rank %d of %d, on %s\n", v->stage, p->first[v->stage],
           p->first[v->stage] + p->layers[v->stage] - 1, layers, v->rank, p->tp,
           device_sizes(v->request->device)->name);
    printf("%d slots, %d KV blocks: %d sequences of %d tokens; steps of %d rows\n\n", p->slots,
           p->kv_blocks, sequences(v), v->context, p->max_rows);
    print_ledger(v);
    print_times(v->decodes, v->n_decodes, "decode, rows");
    if (v->n_prefills > 0) print_times(v->prefills, v->n_prefills, "prefill, rows");
    for (int i = 0; i < v->n_decodes; i++) shared = shared || v->decodes[i].shared_kv;
    if (shared) puts("* more sequences than the pool holds at this context: they share blocks\n");
    print_predictions(v);
}

// --- CSV

static void csv_row(FILE *out, const char *kind, const struct rehearse_time *t)
{
    fprintf(out, "%s,%d,%.9f,%.9f,%.9f,%.9f,%d,%d", kind, t->rows, t->seconds, t->pace, t->layers,
            sum(t), t->experts, t->shared_kv);
    for (int op = 0; op < REHEARSE_OPS; op++) fprintf(out, ",%.9f", t->ops[op]);
    fprintf(out, "\n");
}

void rehearse_view_csv(const struct rehearse_view *v, FILE *out)
{
    if (out == NULL) return;
    fprintf(out, "step,rows,seconds,pace_seconds,layers_seconds,ops_seconds,experts,shared_kv");
    for (int op = 0; op < REHEARSE_OPS; op++) {
        fprintf(out, ",%s", rehearse_op_name((enum rehearse_op) op));
    }
    fprintf(out, "\n");
    for (int i = 0; i < v->n_decodes; i++) csv_row(out, "decode", &v->decodes[i]);
    for (int i = 0; i < v->n_prefills; i++) csv_row(out, "prefill", &v->prefills[i]);
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

static json_t *memory_json(const struct rehearse_view *v)
{
    const struct rehearse_memory *m = &v->memory;
    json_t *j = json_pack("{s:o, s:o, s:o, s:o, s:o, s:f}", "planned", ledger_json(&m->planned),
                          "carved", ledger_json(&m->carved), "host_planned",
                          ledger_json(&m->host_planned), "host_carved",
                          ledger_json(&m->host_carved), "arena_bytes", number(m->arena_bytes),
                          "fill_seconds", m->fill_s);
    if (m->heap_watched) json_object_set_new(j, "heap_calls", number(m->heap_calls));
    if (m->total == 0) return j;
    json_object_set_new(j, "device",
                        json_pack("{s:o, s:o, s:o, s:b, s:o, s:f}", "total", number(m->total),
                                  "free_ready", number(m->free_ready), "free_now",
                                  number(m->free_now), "context_alone", (int) m->alone, "stand_in",
                                  number(m->stand_in), "off", rehearse_view_off(m)));
    return j;
}

static json_t *times_json(const struct rehearse_time *t, int n)
{
    json_t *list = json_array();
    for (int k = 0; k < n; k++) {
        json_t *ops = json_object();
        for (int op = 0; op < REHEARSE_OPS; op++) {
            json_object_set_new(ops, rehearse_op_name((enum rehearse_op) op),
                                json_real(t[k].ops[op]));
        }
        json_array_append_new(
            list, json_pack("{s:i, s:f, s:f, s:f, s:i, s:i, s:b, s:o}", "rows", t[k].rows,
                            "seconds", t[k].seconds, "pace_seconds", t[k].pace, "layers_seconds",
                            t[k].layers, "repeats", t[k].repeats, "experts", t[k].experts,
                            "shared_kv", (int) t[k].shared_kv, "ops", ops));
    }
    return list;
}

static json_t *predictions_json(const struct rehearse_view *v)
{
    json_t *list = json_array();
    for (int k = 0; k < v->n_decodes; k++) {
        const struct rehearse_prediction *p = &v->predictions[k];
        json_array_append_new(
            list, json_pack("{s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "rows",
                            p->rows, "measured_seconds", p->measured.step, "scaled_seconds",
                            p->scaled.step, "reduces_seconds", p->reduces_s,
                            "link_seconds", p->link_s, "slowest_stage_seconds", p->slowest_s,
                            "step_seconds", p->latency_s, "tokens_s_alone", p->alone,
                            "tokens_s_filled", p->filled, "model_tokens_s_alone", p->model_alone,
                            "model_tokens_s_filled", p->model_filled));
    }
    return list;
}

json_t *rehearse_view_json(const struct rehearse_view *v)
{
    const struct plan *p = v->plan;
    json_t *measured = json_pack("{s:o, s:o, s:o}", "memory", memory_json(v), "decode",
                                 times_json(v->decodes, v->n_decodes), "prefill",
                                 times_json(v->prefills, v->n_prefills));
    json_t *predicted = json_pack("{s:s, s:s?, s:o}", "rates", v->rates.there->name, "here",
                                  v->rates.here != NULL ? v->rates.here->name : NULL, "decode",
                                  predictions_json(v));
    return json_pack("{s:b, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:o, s:o}",
                     "fits", 1, "device", device_sizes(v->request->device)->name, "stage",
                     v->stage, "rank", v->rank, "first", p->first[v->stage], "last",
                     p->first[v->stage] + p->layers[v->stage], "tp", p->tp, "pp", p->pp,
                     "kv_blocks", p->kv_blocks, "slots", p->slots, "context", v->context,
                     "sequences", sequences(v),
                     "measured", measured, "predicted", predicted);
}
