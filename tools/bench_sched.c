// penstock bench sched: microseconds a call of the scheduler takes, over pipelines of DeepSeek-V3
// that are full of sequences, beside the time in which this machine reads the slots' memory once,
// probed right before in the same run. What the calls decide is thrown away: nothing computes.
#include "common/clock.h"
#include "common/options.h"
#include "tools/commands.h"
#include "tools/csv.h"
#include "tools/outcome.h"
#include "workers/sched.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STAGES = 4, ROWS = 2048, WARM_STEPS = 200 };

struct bench_case {
    const char *name;
    int prompt, output; // most of each; random below that
    bool lone_rows;     // prompts of one token: all rows of a step are other sequences'
};

static const struct bench_case CASES[] = {
    {"decode", 1, 1 << 20, true},
    {"mixed", 2000, 400, false},
    {"prefill of short prompts", 30, 1, false},
    {"prompts of one token", 1, 1, true},
};

static const int SLOT_COUNTS[] = {256, 1024, 2400, SLOTS_MAX};

static const struct model_config DEEPSEEK_V3 = {
    .vocab_size = 129280, .hidden_size = 7168, .n_layers = 61, .n_dense_layers = 3,
    .intermediate_size = 18432, .moe_intermediate_size = 2048, .n_routed_experts = 256,
    .n_shared_experts = 1, .n_experts_per_token = 8, .n_expert_groups = 8, .n_groups_per_token = 4,
    .n_heads = 128, .q_lora_rank = 1536, .kv_lora_rank = 512, .qk_nope_head_dim = 128,
    .qk_rope_head_dim = 64, .v_head_dim = 128, .fp8 = true, .scale_block = SCALE_BLOCK};

struct bench {
    struct sched s;
    struct pace pace;
    struct sched_seq seqs[SLOTS_MAX];
    int left[SLOTS_MAX];                                  // tokens to choose
    struct step_run runs[STEPS_IN_FLIGHT_MAX][SLOTS_MAX]; // of the steps in flight
    int n_runs[STEPS_IN_FLIGHT_MAX], first, flying;
    const struct bench_case *load;
    int64_t *times;                                       // (n_times) ns of the calls
    int n_times;
    FILE *csv;                                            // or NULL
};

static void admit(struct bench *b, int slot)
{
    int prompt = b->load->lone_rows ? 1 : 1 + rand() % b->load->prompt;
    sched_admit(&b->s, slot, prompt, prompt, 1 + rand() % 3, false);
    b->left[slot] = b->load->output > 1 << 16 ? b->load->output : 1 + rand() % b->load->output;
}

static void open_pipeline(struct bench *b, const struct bench_case *load, int slots)
{
    struct cost_form form = {.tp = 8, .kv_ranks = 1, .fp8_gemm = true};
    struct plan_stage stage = {45, 61, false, true};
    struct device_rates rates;
    check(device_rates_named(&rates, "rtx4090", NULL) == OK);
    pace_init(&b->pace, &DEEPSEEK_V3, &form, &stage, &rates);
    struct sched_options o = {.limits = {.max_rows = ROWS, .slots = slots, .max_out = slots},
                              .steps_in_flight = STAGES + 1, .stages = STAGES,
                              .fill_ms = WAIT_FILL_MS, .step_ms = STEP_MS, .pace = &b->pace};
    sched_init(&b->s, b->seqs, &o);
    b->load = load;
    b->first = b->flying = 0;
    srand(1);
    for (int i = 0; i < slots; i++) admit(b, i);
}

// The oldest step is back; sequences that end make room for others.
static void answer(struct bench *b)
{
    const struct step_run *runs = b->runs[b->first];
    int n = b->n_runs[b->first];
    b->first = (b->first + 1) % STEPS_IN_FLIGHT_MAX;
    b->flying--;
    for (int i = 0; i < n; i++) {
        int slot = runs[i].slot;
        if (runs[i].logits == RUN_NO_LOGITS) continue;
        if (--b->left[slot] > 0) {
            sched_append(&b->s, slot);
        } else {
            sched_remove(&b->s, slot);
            admit(b, slot);
        }
    }
}

// A step: the calls that plan it, and a step that comes back. Nanoseconds of the calls.
static int64_t step(struct bench *b, int64_t *now_ms)
{
    int at = (b->first + b->flying) % STEPS_IN_FLIGHT_MAX, n = 0;
    int64_t took = 0;
    while (n == 0) {
        bool full = b->flying == b->s.options.steps_in_flight;
        int64_t from = clock_ns();
        if (!full) n = sched_plan(&b->s, b->flying, *now_ms, b->runs[at]);
        if (n == 0 && b->flying > 0) answer(b);
        else if (n == 0) *now_ms = b->s.again_ms;
        took += clock_ns() - from;
        at = (b->first + b->flying) % STEPS_IN_FLIGHT_MAX;
    }
    b->n_runs[at] = n;
    b->flying++;
    *now_ms += 1;
    return took;
}

// Nanoseconds of reading the slots once: the best of several sums.
static int64_t read_ns(const struct bench *b)
{
    volatile int64_t keep;
    int64_t best = INT64_MAX;
    for (int repeat = 0; repeat < 100; repeat++) {
        int64_t sum = 0, from = clock_ns();
        const int64_t *words = (const int64_t *) (const void *) b->seqs;
        size_t n = (size_t) b->s.options.limits.slots * sizeof *b->seqs / sizeof *words;
        for (size_t i = 0; i < n; i++) sum += words[i];
        keep = sum;
        int64_t took = clock_ns() - from;
        best = took < best ? took : best;
    }
    (void) keep;
    return best;
}

static int by_time(const void *a, const void *b)
{
    int64_t x = *(const int64_t *) a, y = *(const int64_t *) b;
    return x < y ? -1 : x > y;
}

static void measure(struct bench *b, const struct bench_case *load, int slots)
{
    int64_t now_ms = 0, sum = 0, rows = 0;
    open_pipeline(b, load, slots);
    for (int i = 0; i < WARM_STEPS; i++) step(b, &now_ms);
    double read = (double) read_ns(b) / 1000;
    for (int i = 0; i < b->n_times; i++) {
        sum += b->times[i] = step(b, &now_ms);
        int last = (b->first + b->flying - 1) % STEPS_IN_FLIGHT_MAX;
        for (int r = 0; r < b->n_runs[last]; r++) rows += b->runs[last][r].n;
    }
    qsort(b->times, (size_t) b->n_times, sizeof *b->times, by_time);
    double mean = (double) sum / b->n_times / 1000;
    double median = (double) b->times[b->n_times / 2] / 1000;
    double late = (double) b->times[b->n_times * 99 / 100] / 1000;
    double a_step = (double) rows / b->n_times;
    printf("%-26s %6d %8.0f %8.2f %8.2f %8.2f %10.2f %7.1f\n", load->name, slots, a_step, median,
           mean, late, read, median / read);
    if (b->csv != NULL) {
        fprintf(b->csv, "\"%s\",%d,%.1f,%.3f,%.3f,%.3f,%.3f\n", load->name, slots, a_step, median,
                mean, late, read);
    }
}

static void measure_all(struct bench *b)
{
    printf("%d stages, %d steps in flight of %d rows at most; us a step, what comes back "
           "included\n", STAGES, STAGES + 1, ROWS);
    printf("%-26s %6s %8s %8s %8s %8s %10s %7s\n", "load", "slots", "rows", "median", "mean",
           "99%", "read once", "ratio");
    if (b->csv != NULL) fputs("load,slots,rows,median_us,mean_us,p99_us,read_us\n", b->csv);
    for (size_t c = 0; c < sizeof CASES / sizeof *CASES; c++) {
        for (size_t i = 0; i < sizeof SLOT_COUNTS / sizeof *SLOT_COUNTS; i++) {
            measure(b, &CASES[c], SLOT_COUNTS[i]);
        }
    }
}

static enum status run(int n_steps, const char *csv, struct error *e)
{
    struct bench *b = calloc(1, sizeof *b);
    enum status status = OK;
    if (b != NULL) b->times = calloc((size_t) n_steps, sizeof *b->times);
    if (b == NULL || b->times == NULL) {
        status = error_set(e, ERR_NOMEM, NULL, "no memory for %d slots", SLOTS_MAX);
    } else {
        b->n_times = n_steps;
        status = csv_open(&b->csv, csv, e);
        if (status == OK) measure_all(b);
        status = csv_close(b->csv, csv, status, e);
    }
    if (b != NULL) free(b->times);
    free(b);
    return status;
}

int bench_sched(int argc, char **argv)
{
    int64_t n_steps = 2000;
    const char *csv = NULL;
    struct option_spec specs[] = {
        {.name = "steps", .kind = OPTION_INT, .value = &n_steps, .argument = "N",
         .help = "Steps that are timed for each line (default 2000).", .least = 1,
         .most = 10000000},
        CSV_FLAG_ROW(csv),
    };
    struct options o = {.program = "penstock bench sched",
                        .usage = "[OPTIONS]",
                        .about = "Times the scheduler, beside reading its slots once.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if (run((int) n_steps, csv, &e) == OK) return EXIT_DONE;
    return outcome_failed(o.program, &e, false);
}
