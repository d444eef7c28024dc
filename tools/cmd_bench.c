// penstock bench NAME: the table of benchmarks, one file each (bench_<name>.c).
#include "tools/commands.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    command_main *run;
    const char *summary;
} BENCHMARKS[] = {
    {"hop", bench_hop, "activations from one stage's device to the next's, beside a socket"},
    {"kernels", bench_kernels, "matrix products: rates beside what the CPU can do at most"},
    {"load", bench_load, "a checkpoint into memory, beside its disk and a copy with a check"},
    {"pipeline", bench_pipeline, "decoding by stages on this machine, and what it is made of"},
    {"queue", bench_queue, "jobs taken in a second, memory, claims over a long backlog"},
    {"sampler", bench_sampler, "choosing tokens: us a row beside reading the logits once"},
    {"sched", bench_sched, "choosing the rows of a step: us beside reading the slots once"},
    {"tokenizer", bench_tokenizer, "text to ids: MB/s on one core"},
    {NULL, NULL, NULL},
};

static void usage(FILE *to)
{
    fputs("usage: penstock bench NAME [OPTIONS]\n\nBenchmarks:\n", to);
    for (int i = 0; BENCHMARKS[i].name != NULL; i++) {
        fprintf(to, "  %-10s %s\n", BENCHMARKS[i].name, BENCHMARKS[i].summary);
    }
    fputs("\npenstock bench NAME --help tells more.\n", to);
}

int cmd_bench(int argc, char **argv)
{
    if (argc < 2) {
        usage(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0) {
        usage(stdout);
        return EXIT_DONE;
    }
    for (int i = 0; BENCHMARKS[i].name != NULL; i++) {
        if (strcmp(argv[1], BENCHMARKS[i].name) == 0) return BENCHMARKS[i].run(argc - 1, argv + 1);
    }
    fprintf(stderr, "penstock bench: no benchmark \"%s\"; penstock bench --help lists them\n",
            argv[1]);
    return EXIT_USAGE;
}
