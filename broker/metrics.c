#include "broker/metrics.h"

#include "broker/exposition.h"
#include "broker/site.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum {
    STEP_FIRST = 0, STEP_LAST = 17,  // bounds of steps: 128 us to 16.8 s
    DONE_FIRST = 9, DONE_LAST = 30,  // and of jobs: 66 ms to 38 h
    NUMBER_SIZE = 24,
};

static const char *number(uint64_t n, char to[NUMBER_SIZE])
{
    snprintf(to, NUMBER_SIZE, "%" PRIu64, n);
    return to;
}

// --- this broker

static void write_broker(const struct metrics *m, struct buffer *to)
{
    exposition_family(to, "penstock_build_info", "gauge", "Version of the broker; always 1.");
    exposition_count(to, "penstock_build_info", LABELS({"version", PENSTOCK_VERSION}), 1);
    exposition_family(to, "process_start_time_seconds", "gauge",
                      "When the broker's process began, since 1970.");
    exposition_real(to, "process_start_time_seconds", LABELS({0}), (double) m->started_ms / 1e3);
    const struct label *who = LABELS({"name", m->name});
    exposition_family(to, "penstock_broker_leads", "gauge",
                      "1 if this broker leads; of one that stands by most series are missing.");
    exposition_count(to, "penstock_broker_leads", who, m->leads);
    exposition_family(to, "penstock_broker_term", "gauge",
                      "Number of this broker's leadership; 0 without.");
    exposition_count(to, "penstock_broker_term", who, m->term);
    exposition_family(to, "penstock_redis_up", "gauge", "1 while Redis is there.");
    exposition_count(to, "penstock_redis_up", LABELS({0}), m->redis);
    exposition_family(to, "penstock_http_requests_total", "counter", "Requests answered here.");
    exposition_count(to, "penstock_http_requests_total", LABELS({0}), m->requests);
}

// --- the queue

static void write_states(const struct metrics *m, struct buffer *to)
{
    const struct queue_stats *s = &m->stats;
    const struct {
        const char *state;
        uint64_t n;
    } states[] = {{"inbox", s->inbox},     {"taken", s->taken},     {"ready", s->ready},
                  {"delayed", s->delayed}, {"running", s->running}, {"dead", s->dead}};
    exposition_family(to, "penstock_jobs", "gauge", "Jobs in the queue by state.");
    for (size_t i = 0; m->counted && i < sizeof states / sizeof *states; i++) {
        exposition_count(to, "penstock_jobs",
                         LABELS({"queue", m->queue}, {"state", states[i].state}), states[i].n);
    }
    const struct label *queue = LABELS({"queue", m->queue});
    exposition_family(to, "penstock_queue_oldest_seconds", "gauge",
                      "How long the oldest job that is ready has waited.");
    if (m->counted) {
        exposition_real(to, "penstock_queue_oldest_seconds", queue, (double) s->oldest_ms / 1e3);
    }
    exposition_family(to, "penstock_queue_bytes", "gauge", "Messages of jobs that wait or run.");
    if (m->counted) exposition_count(to, "penstock_queue_bytes", queue, s->bytes);
}

static void write_counts(const struct metrics *m, struct buffer *to)
{
    const struct queue_stats *s = &m->stats;
    const struct {
        const char *name, *help;
        uint64_t n;
    } counts[] = {
        {"penstock_jobs_admitted_total", "Jobs taken in since the queue was made.", s->admitted},
        {"penstock_jobs_done_total", "Jobs that ended well.", s->done},
        {"penstock_jobs_failed_total", "Jobs that failed for good.", s->failed},
        {"penstock_jobs_dead_total", "Jobs that failed for good, and messages that were refused.",
         s->failed + s->rejected},
        {"penstock_jobs_retried_total", "Failed attempts that were followed by another.",
         s->retried},
        {"penstock_jobs_cancelled_total", "Jobs that were cancelled.", s->cancelled},
        {"penstock_jobs_expired_total", "Jobs whose deadline passed.", s->expired},
        {"penstock_jobs_lost_total", "Attempts lost with a group, whose jobs went back.", s->lost},
        {"penstock_jobs_duplicate_total", "Messages of jobs that were here already.",
         s->duplicates},
        {"penstock_stale_results_total", "Late words of attempts that another one had replaced.",
         s->stale},
    };
    const struct label *queue = LABELS({"queue", m->queue});
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        exposition_family(to, counts[i].name, "counter", counts[i].help);
        if (m->counted) exposition_count(to, counts[i].name, queue, counts[i].n);
    }
    exposition_family(to, "penstock_lease_expired_total", "counter",
                      "Leases that ended, seen by this broker.");
    if (m->jobs != NULL) {
        exposition_count(to, "penstock_lease_expired_total", queue, m->leases_expired);
    }
    exposition_family(to, "penstock_enqueue_to_done_seconds", "histogram",
                      "From admission to the stored result, of jobs that this broker sent.");
    if (m->jobs == NULL) return;
    exposition_histogram(to, "penstock_enqueue_to_done_seconds", queue, jobs_done_times(m->jobs),
                         DONE_FIRST, DONE_LAST);
}

// --- pipelines

struct credit_writer {
    const struct metrics *metrics;
    struct buffer *to;
    bool blocks;
};

static void write_credit_of(void *arg, int model, uint64_t pipeline, uint64_t slots,
                            uint64_t blocks)
{
    const struct credit_writer *w = arg;
    char id[NUMBER_SIZE];
    exposition_count(w->to, w->blocks ? "penstock_credit_blocks" : "penstock_credit_slots",
                     LABELS({"model", w->metrics->models->at[model].name},
                            {"pipeline", number(pipeline, id)}), w->blocks ? blocks : slots);
}

static void write_credit(const struct metrics *m, struct buffer *to)
{
    struct credit_writer w = {m, to, false};
    exposition_family(to, "penstock_credit_slots", "gauge", "Sequences that a pipeline takes now.");
    if (m->jobs != NULL) jobs_each_credit(m->jobs, write_credit_of, &w);
    w.blocks = true;
    exposition_family(to, "penstock_credit_blocks", "gauge",
                      "KV blocks that sequences may still reserve in a pipeline.");
    if (m->jobs != NULL) jobs_each_credit(m->jobs, write_credit_of, &w);
}

// --- groups

struct walk {
    const struct metrics *metrics;
    struct buffer *to;
    const char *name; // of the family
    int what;         // of those that the family's fn knows
};

// told: NULL if nothing was yet.
typedef void walk_fn(const struct walk *w, const struct site *s, const struct group *g,
                     const struct fleet_report *told);

// Under another key there may be a group of the same name; a series must not come twice.
static bool is_first(const struct metrics *m, int model, int group)
{
    const struct fleet *f = &groups_site(m->groups, model)->fleet;
    for (int i = 0; i <= model; i++) {
        const struct site *s = groups_site(m->groups, i);
        int n = i == model ? group : s->planned ? s->fleet.n_groups : 0;
        for (int k = 0; k < n; k++) {
            const struct group *g = &s->fleet.groups[k];
            if (g->used && strcmp(g->name, f->groups[group].name) == 0) return false;
        }
    }
    return true;
}

// Calls fn for each group that has a place in a fleet.
static void walk_groups(const struct walk *w, walk_fn *fn)
{
    const struct metrics *m = w->metrics;
    for (int i = 0; m->groups != NULL && i < m->models->n; i++) {
        const struct site *s = groups_site(m->groups, i);
        for (int k = 0; s->planned && k < s->fleet.n_groups; k++) {
            const struct group *g = &s->fleet.groups[k];
            if (!g->used || !is_first(m, i, k)) continue;
            fn(w, s, g, fleet_record_of(m->record, &g->peer));
        }
    }
}

static void write_group(const struct walk *w, const struct site *s, const struct group *g,
                        const struct fleet_report *told)
{
    char id[NUMBER_SIZE] = "", stage[NUMBER_SIZE] = "";
    const struct pipeline *p = fleet_pipeline(&s->fleet, g);
    (void) told;
    if (p != NULL) number(p->id, id);
    if (g->stage >= 0) number((uint64_t) g->stage, stage);
    exposition_count(w->to, w->name,
                     LABELS({"group", g->name}, {"node", g->node}, {"model", s->model->name},
                            {"pipeline", id}, {"stage", stage},
                            {"state", fleet_state_name(g->state)}), 1);
}

enum { KV_USED, KV_RESERVED, KV_TOTAL, SEQUENCES, SLOTS };

// A head's pool is its pipeline's: blocks mean the same on all stages. One that was a head before
// may still tell of that pool.
static void write_pool(const struct walk *w, const struct site *s, const struct group *g,
                       const struct fleet_report *told)
{
    char id[NUMBER_SIZE];
    const struct pipeline *p = fleet_pipeline(&s->fleet, g);
    if (g->stage != 0 || told == NULL || p == NULL || told->figures.last.slots == 0) return;
    const struct wire_figures *f = &told->figures.last;
    const uint64_t values[] = {f->kv_used, f->kv_reserved, f->kv_blocks, f->running, f->slots};
    exposition_count(w->to, w->name,
                     LABELS({"model", s->model->name}, {"pipeline", number(p->id, id)}),
                     values[w->what]);
}

// rank: NULL for the host.
static void write_ledger(const struct walk *w, const struct group *g, const char *rank,
                         const struct ledger *l)
{
    for (int i = 0; i < LEDGER_LINES; i++) {
        const char *kind = ledger_name((enum ledger_line) i);
        if (l->bytes[i] == 0) continue;
        exposition_count(w->to, w->name,
                         LABELS({"group", g->name}, {"kind", kind},
                                {rank != NULL ? "rank" : NULL, rank}), l->bytes[i]);
    }
}

static void write_device_memory(const struct walk *w, const struct site *s, const struct group *g,
                                const struct fleet_report *told)
{
    char rank[NUMBER_SIZE];
    (void) s;
    for (int i = 0; told != NULL && i < told->figures.last.n_ranks; i++) {
        number((uint64_t) i, rank);
        write_ledger(w, g, rank, &told->figures.ranks[i].memory);
    }
}

static void write_host_memory(const struct walk *w, const struct site *s, const struct group *g,
                              const struct fleet_report *told)
{
    (void) s;
    if (told != NULL) write_ledger(w, g, NULL, &told->figures.last.memory);
}

static void write_device(const struct walk *w, const struct site *s, const struct group *g,
                         const struct fleet_report *told)
{
    (void) s;
    if (told == NULL) return;
    exposition_count(w->to, w->name, LABELS({"group", g->name}), told->device_bytes);
}

enum { ROWS, SAMPLER_ROWS, FALLBACKS, HOSTED, STALE_FRAMES, HEAP_CALLS };

static void write_group_count(const struct walk *w, const struct site *s, const struct group *g,
                              const struct fleet_report *told)
{
    (void) s;
    if (told == NULL || !told->figures.told) return;
    struct wire_figures f = figures_total(&told->figures);
    const uint64_t values[] = {f.rows, f.sampler_rows, f.sampler_fallbacks,
                               f.sampler_hosted, f.stale_frames, f.heap_calls};
    exposition_count(w->to, w->name, LABELS({"group", g->name}), values[w->what]);
}

static void write_groups(const struct metrics *m, struct buffer *to)
{
    static const struct {
        const char *name, *type, *help;
        walk_fn *fn;
        int what;
    } families[] = {
        {"penstock_group_info", "gauge", "Groups, with their place and state; always 1.",
         write_group, 0},
        {"penstock_kv_blocks_used", "gauge", "KV blocks with rows in them.", write_pool, KV_USED},
        {"penstock_kv_blocks_reserved", "gauge", "KV blocks of the sequences that run.", write_pool,
         KV_RESERVED},
        {"penstock_kv_blocks_total", "gauge", "KV blocks of the pool.", write_pool, KV_TOTAL},
        {"penstock_sequences", "gauge", "Sequences that run.", write_pool, SEQUENCES},
        {"penstock_slots", "gauge", "Sequences that may run at once.", write_pool, SLOTS},
        {"penstock_device_bytes", "gauge", "Memory of a group's smallest device.", write_device,
         0},
        {"penstock_device_memory_bytes", "gauge", "What a rank has taken of its device, by line of "
         "the ledger.", write_device_memory, 0},
        {"penstock_host_memory_bytes", "gauge", "What a group has taken of its node, by line of "
         "the ledger.", write_host_memory, 0},
        {"penstock_rows_total", "counter", "Rows of steps through a group.", write_group_count,
         ROWS},
        {"penstock_sampler_rows_total", "counter", "Rows that a token was chosen for.",
         write_group_count, SAMPLER_ROWS},
        {"penstock_sampler_fallbacks_total", "counter", "Of these, rows whose cut-off had to be "
         "searched.", write_group_count, FALLBACKS},
        {"penstock_sampler_hosted_total", "counter", "Of these, rows of a GPU's logits that the "
         "host chose for, one by one.", write_group_count, HOSTED},
        {"penstock_stale_frames_total", "counter", "Frames of another epoch, dropped.",
         write_group_count, STALE_FRAMES},
        {"penstock_heap_calls_total", "counter", "Heap calls of threads that may make none.",
         write_group_count, HEAP_CALLS},
    };
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        struct walk w = {m, to, families[i].name, families[i].what};
        exposition_family(to, families[i].name, families[i].type, families[i].help);
        walk_groups(&w, families[i].fn);
    }
}

// --- models: counters that go on whatever becomes of groups and their places

static void write_steps(const struct metrics *m, struct buffer *to)
{
    static const char *const kinds[FIGURES_KINDS] = {"decode", "prefill"};
    char stage[NUMBER_SIZE];
    exposition_family(to, "penstock_step_seconds", "histogram",
                      "What a step takes a stage, by rank 0's clock; prefill: with more than one "
                      "row of a sequence.");
    for (int i = 0; m->record != NULL && i < m->models->n; i++) {
        const struct model_figures *f = &m->record->models[i];
        for (int s = 0; s < PP_MAX; s++) {
            for (int k = 0; k < FIGURES_KINDS; k++) {
                if (f->steps[s][k].n == 0) continue;
                exposition_histogram(to, "penstock_step_seconds",
                                     LABELS({"model", m->models->at[i].name},
                                            {"stage", number((uint64_t) s, stage)},
                                            {"kind", kinds[k]}),
                                     &f->steps[s][k], STEP_FIRST, STEP_LAST);
            }
        }
    }
}

static void write_models(const struct metrics *m, struct buffer *to)
{
    int n = m->record != NULL ? m->models->n : 0;
    exposition_family(to, "penstock_tokens_total", "counter",
                      "Tokens computed: prefill, those that were known; decode, those chosen.");
    for (int i = 0; i < n; i++) {
        const struct model_figures *f = &m->record->models[i];
        const char *name = m->models->at[i].name;
        exposition_count(to, "penstock_tokens_total",
                         LABELS({"model", name}, {"kind", "prefill"}), f->prefill_tokens);
        exposition_count(to, "penstock_tokens_total", LABELS({"model", name}, {"kind", "decode"}),
                         f->decode_tokens);
    }
    exposition_family(to, "penstock_device_busy_seconds_total", "counter",
                      "Time in which ranks computed steps, of all devices.");
    for (int i = 0; i < n; i++) {
        exposition_real(to, "penstock_device_busy_seconds_total",
                        LABELS({"model", m->models->at[i].name}),
                        (double) m->record->models[i].busy_us / 1e6);
    }
    exposition_family(to, "penstock_gpu_seconds_wasted_total", "counter",
                      "Of these, about what went into computing again what a lost attempt had.");
    for (int i = 0; i < n; i++) {
        exposition_real(to, "penstock_gpu_seconds_wasted_total",
                        LABELS({"model", m->models->at[i].name}), m->record->models[i].wasted_s);
    }
}

void metrics_write(const struct metrics *m, struct buffer *to)
{
    write_broker(m, to);
    write_states(m, to);
    write_counts(m, to);
    write_credit(m, to);
    write_groups(m, to);
    write_steps(m, to);
    write_models(m, to);
}
