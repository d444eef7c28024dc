// sim: plays the true programs in a simulated room, seed by seed, and says in TAP's form how that
// went. Exit status 0, 1 if an invariant was broken, 2 for usage.
#include "tests/sim/admission.h"
#include "tests/sim/calibrated.h"
#include "tests/sim/deployment.h"
#include "tests/sim/play.h"

#include "common/options.h"
#include "common/status.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_USAGE = 2, BATCH = 50, WORKERS_MAX = 64 };

// Seeds that broke something once; README.md tells what they taught.
static const uint64_t kept[] = {945, 1509, 9381};

struct settings {
    int64_t seed, workers;
    const char *seeds, *model, *deployment, *calibrated;
    int64_t context;
    bool trace, admission;
};

// What the processes that play tell the one that waits for them.
struct shared {
    struct play_counts counts[WORKERS_MAX];
    uint64_t playing[WORKERS_MAX];
};

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

// Killed processes leave their memory behind, so seeds are played in processes that end soon.
static pid_t start(const struct model_config *c, uint64_t from, uint64_t to, struct shared *s,
                   int worker)
{
    pid_t pid = fork();
    if (pid != 0) return pid;
    for (uint64_t seed = from; seed <= to; seed++) {
        s->playing[worker] = seed;
        play_seed(c, seed, false, &s->counts[worker]);
    }
    _exit(0);
}

static void add(struct play_counts *all, const struct play_counts *n)
{
    all->n_seeds += n->n_seeds;
    all->n_jobs += n->n_jobs;
    all->n_faults += n->n_faults;
    all->n_lives += n->n_lives;
    all->n_steps += n->n_steps;
    all->n_tokens += n->n_tokens;
    all->simulated_ns += n->simulated_ns;
    for (int k = 0; k < 4; k++) all->n_by_word[k] += n->n_by_word[k];
}

static void tell(const struct play_counts *n, double took)
{
    printf("# %llu seeds: %llu jobs (%llu done, %llu failed, %llu cancelled, %llu expired), %llu "
           "faults, %llu lives of groups, %llu steps, %llu tokens checked, %.1f h in %.1f s\n",
           (unsigned long long) n->n_seeds, (unsigned long long) n->n_jobs,
           (unsigned long long) n->n_by_word[0], (unsigned long long) n->n_by_word[1],
           (unsigned long long) n->n_by_word[2], (unsigned long long) n->n_by_word[3],
           (unsigned long long) n->n_faults, (unsigned long long) n->n_lives,
           (unsigned long long) n->n_steps, (unsigned long long) n->n_tokens,
           (double) n->simulated_ns / 3.6e12, took);
}

// Returns how many batches broke off, each at its first failing seed.
static int play_range(const struct model_config *c, uint64_t from, uint64_t to, int n_workers,
                      struct play_counts *all)
{
    struct shared *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                            -1, 0);
    pid_t pids[WORKERS_MAX] = {0};
    uint64_t next = from;
    int running = 0, n_failed = 0;
    check(s != MAP_FAILED, "no memory");
    while (next <= to || running > 0) {
        for (int i = 0; i < n_workers && next <= to; i++) {
            if (pids[i] != 0) continue;
            uint64_t last = next + BATCH - 1 < to ? next + BATCH - 1 : to;
            pids[i] = start(c, next, last, s, i);
            check(pids[i] > 0, "no process");
            running++;
            next = last + 1;
        }
        int status;
        pid_t pid = wait(&status);
        for (int i = 0; i < n_workers; i++) {
            if (pids[i] != pid) continue;
            pids[i] = 0;
            running--;
            if (status == 0) continue;
            n_failed++;
            printf("# seed %llu failed; sim --seed %llu --trace shows it\n",
                   (unsigned long long) s->playing[i], (unsigned long long) s->playing[i]);
        }
    }
    for (int i = 0; i < n_workers; i++) add(all, &s->counts[i]);
    munmap(s, sizeof *s);
    return n_failed;
}

static int play_all(const struct model_config *c, uint64_t from, uint64_t to, int n_workers)
{
    struct play_counts all = {0};
    double begun = seconds();
    int n_kept = (int) (sizeof kept / sizeof *kept), n_failed = 0, n_broken = 0;
    for (int i = 0; i < n_kept; i++) n_broken += play_range(c, kept[i], kept[i], 1, &all);
    printf("%sok 1 - %d seeds that broke something once\n", n_broken > 0 ? "not " : "", n_kept);
    n_failed = play_range(c, from, to, n_workers, &all);
    tell(&all, seconds() - begun);
    printf("%sok 2 - seeds %llu to %llu\n1..2\n", n_failed > 0 ? "not " : "",
           (unsigned long long) from, (unsigned long long) to);
    return n_failed + n_broken > 0;
}

static bool read_range(const char *text, uint64_t *from, uint64_t *to)
{
    char *end;
    *from = strtoull(text, &end, 10);
    if (end == text || strncmp(end, "..", 2) != 0) return false;
    *to = strtoull(end + 2, &end, 10);
    return *end == '\0' && *from <= *to;
}

static int say(bool good, const char *what)
{
    printf("%sok 1 - %s\n1..1\n", good ? "" : "not ", what);
    return good ? 0 : 1;
}

static int usage(const struct error *e)
{
    fprintf(stderr, "sim: %s\n", e->text);
    return EXIT_USAGE;
}

int main(int argc, char **argv)
{
    struct settings s = {.seed = -1, .seeds = "1..1000", .workers = 2};
    struct option_spec specs[] = {
        {.name = "seeds", .kind = OPTION_STRING, .value = &s.seeds, .argument = "A..B",
         .help = "Plays these seeds, and those that failed once (default 1..1000)."},
        {.name = "seed", .kind = OPTION_INT, .value = &s.seed, .argument = "N", .least = 0,
         .most = 1000000000000000, .help = "Plays one."},
        {.name = "trace", .kind = OPTION_FLAG, .value = &s.trace,
         .help = "With --seed: tells all that happens."},
        {.name = "workers", .kind = OPTION_INT, .value = &s.workers, .argument = "N", .least = 1,
         .most = WORKERS_MAX, .help = "Processes that play (default 2)."},
        {.name = "model", .kind = OPTION_STRING, .value = &s.model, .argument = "DIR",
         .help = "Folder with the config.json that is played (default: a tiny one; with "
                 "--deployment DeepSeek-V3's)."},
        {.name = "deployment", .kind = OPTION_STRING, .value = &s.deployment,
         .argument = "NxGxCARD",
         .help = "Plays N nodes of G cards (4090, h100) by the cost model, and predicts tokens/s."},
        {.name = "admission", .kind = OPTION_FLAG, .value = &s.admission,
         .help = "Plays 10,000 jobs of mixed length over KV for 20 average ones."},
        {.name = "calibrated", .kind = OPTION_STRING, .value = &s.calibrated, .argument = "FILE",
         .help = "Predicts what penstock bench pipeline --csv FILE measured; with its --model."},
        {.name = "context", .kind = OPTION_INT, .value = &s.context, .argument = "N",
         .least = 0, .most = CONTEXT_MAX,
         .help = "Tokens of a sequence: with --deployment of each (default 4096), with "
                 "--admission of the longest (default 512)."},
    };
    struct options o = {.program = "sim", .usage = "[OPTIONS]",
                        .about = "Plays brokers, groups, Redis and network in one thread, seed by "
                                 "seed, and checks what must hold.",
                        .specs = specs, .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    static struct model_config config;
    uint64_t from, to;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (options_parse(&o, argc, argv, &e) != OK) return usage(&e);
    if (o.help) return 0;
    if (s.model == NULL) s.model = s.deployment != NULL ? SIM_FIXTURES "/deepseek-v3" : SIM_MODEL;
    if (model_config_load(&config, s.model, &e) != OK) return usage(&e);
    if (s.calibrated != NULL) {
        bool good;
        if (calibrated_show(&config, s.calibrated, s.trace, &good, &e) != OK) return usage(&e);
        return say(good, "a measured pipeline is predicted within 10%");
    }
    if (s.admission) {
        int context = s.context > 0 ? (int) s.context : 512;
        return say(admission_show(&config, context, s.trace), "mixed lengths fill the pool");
    }
    if (s.deployment != NULL) {
        int context = s.context > 0 ? (int) s.context : 4096;
        struct deployment d = {.config = &config, .context = context, .kv_ranks = 1,
                               .trace = s.trace};
        if (deployment_parse(s.deployment, &d, &e) != OK) return usage(&e);
        return say(deployment_show(&d), "the pipeline reaches what its steps allow");
    }
    if (s.seed >= 0) {
        struct play_counts counts = {0};
        play_seed(&config, (uint64_t) s.seed, s.trace, &counts);
        printf("seed %lld: %llu jobs, %llu faults, %.1f s simulated\n", (long long) s.seed,
               (unsigned long long) counts.n_jobs, (unsigned long long) counts.n_faults,
               (double) counts.simulated_ns / 1e9);
        return 0;
    }
    if (!read_range(s.seeds, &from, &to)) {
        error_set(&e, ERR_INPUT, "bad_usage", "--seeds wants A..B, not \"%s\"", s.seeds);
        return usage(&e);
    }
    return play_all(&config, from, to, (int) s.workers);
}
