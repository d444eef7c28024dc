// penstock: the command line. One subcommand a file (cmd_<name>.c); this is only their table.
#include "tools/commands.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    command_main *run;
    const char *summary;
} COMMANDS[] = {
    {"batch", cmd_batch, "runs a file of requests through the queue"},
    {"bench", cmd_bench, "measures parts of Penstock on this machine"},
    {"enqueue", cmd_enqueue, "puts a job into the queue"},
    {"result", cmd_result, "prints what became of a job"},
    {"cancel", cmd_cancel, "asks for a job to be dropped"},
    {"conformance", cmd_conformance, "tries a client of the queue"},
    {"stats", cmd_stats, "counts the jobs of a queue"},
    {"show", cmd_show, "where a job is, and what has happened to it"},
    {"why", cmd_why, "why a job waits, in one line"},
    {"trace", cmd_trace, "what all processes said of a job"},
    {"dead", cmd_dead, "lists, retries or drops dead letters"},
    {"tenant", cmd_tenant, "who may use a queue, with which share and budgets"},
    {"pause", cmd_pause, "starts no more jobs, of a queue or a tenant"},
    {"resume", cmd_resume, "starts jobs again"},
    {"drain", cmd_drain, "pauses a queue and waits until nothing runs"},
    {"top", cmd_top, "live: queue, pipelines, KV blocks, each rank's memory"},
    {"fleet", cmd_fleet, "which broker leads, which group has which stage"},
    {"plan", cmd_plan, "whether a model fits on given devices, byte by byte"},
    {"rehearse", cmd_rehearse, "one rank of a bigger deployment, on the device at hand"},
    {"generate", cmd_generate, "continues one prompt, in this process"},
    {"score", cmd_score, "logits of every position of one sequence"},
    {"up", cmd_up, "runs Redis, broker and groups on this machine"},
    {"keygen", cmd_keygen, "makes a key pair for a broker or a group"},
    {"acl", cmd_acl, "prints Redis users for producer, broker and viewer"},
    {"doctor", cmd_doctor, "what is wrong with Redis, queue and keys, with remedies"},
    {"health", cmd_health, "whether a broker or a group of this machine is well"},
    {"tokenize", cmd_tokenize, "text to token ids and back, chats to prompts"},
    {NULL, NULL, NULL},
};

static void usage(FILE *to)
{
    fputs("usage: penstock COMMAND [OPTIONS]\n\nCommands:\n", to);
    for (int i = 0; COMMANDS[i].name != NULL; i++) {
        fprintf(to, "  %-11s %s\n", COMMANDS[i].name, COMMANDS[i].summary);
    }
    fputs("\npenstock COMMAND --help tells more. penstock --version prints the version.\n", to);
}

// What was printed has arrived, or the command has failed.
static int end(int status)
{
    if (status != EXIT_DONE || (fflush(stdout) == 0 && !ferror(stdout))) return status;
    fputs("penstock: stdout cannot be written\n", stderr);
    return EXIT_FAILED;
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        usage(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
        usage(stdout);
        return end(EXIT_DONE);
    }
    if (strcmp(argv[1], "--version") == 0) {
        puts("penstock " PENSTOCK_VERSION);
        return end(EXIT_DONE);
    }
    for (int i = 0; COMMANDS[i].name != NULL; i++) {
        if (strcmp(argv[1], COMMANDS[i].name) == 0) return end(COMMANDS[i].run(argc - 1, argv + 1));
    }
    fprintf(stderr, "penstock: no command \"%s\"; penstock --help lists them\n", argv[1]);
    return EXIT_USAGE;
}
