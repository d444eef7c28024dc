// The subcommands of `penstock`: one file each (cmd_<name>.c), listed in main.c. argv[0] is the
// subcommand's name. Returns the exit status: 0 done, 1 failed, 2 usage.
#ifndef PENSTOCK_TOOLS_COMMANDS_H
#define PENSTOCK_TOOLS_COMMANDS_H

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

typedef int command_main(int argc, char **argv);

command_main cmd_acl, cmd_batch, cmd_bench, cmd_cancel, cmd_conformance, cmd_dead, cmd_doctor,
    cmd_drain, cmd_enqueue, cmd_fleet, cmd_generate, cmd_health, cmd_keygen, cmd_pause, cmd_plan,
    cmd_rehearse, cmd_result, cmd_resume, cmd_score, cmd_show, cmd_stats, cmd_tenant, cmd_tokenize,
    cmd_top, cmd_trace, cmd_up, cmd_why;

// Benchmarks: `penstock bench <name>`; listed in cmd_bench.c.
command_main bench_hop, bench_kernels, bench_load, bench_pipeline, bench_queue, bench_sampler,
    bench_sched, bench_tokenizer;

#endif
