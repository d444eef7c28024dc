// The parts of the GPU check and its table. Each part adds lines; a line with a bar that is missed
// makes the check fail.
#ifndef PENSTOCK_TESTS_GPU_CHECK_H
#define PENSTOCK_TESTS_GPU_CHECK_H

#include "kernels/backend.h"

struct result {
    int passed, failed;
};

// A relative error that may be at most `bar`.
void result_error(struct result *r, const char *name, double off, double bar);

// A figure that must be at least `bar` (0: none).
void result_figure(struct result *r, const char *name, double figure, const char *unit, double bar);

// A figure that may be at most `bar` (0: none).
void result_most(struct result *r, const char *name, double figure, const char *unit, double bar);

// Of n values, which are sorted.
double median(double *values, int n);

void check_ops(struct result *r, enum precision p);

// Attention: what check_ops is to other ops.
void check_attention(struct result *r, enum precision p);

// Golden files of the checkpoints in `fixtures` and the shipped model: prompts through one stage.
// `brief`: few prompts of the smallest, for tools under which all is slow.
void check_golden(struct result *r, const char *fixtures, const char *model, bool brief);

// Whole steps: recorded ones against steps as they come, memory after READY, times.
void check_steps(struct result *r, const char *fixtures);

// The same in bf16 and f32 by tp ranks on n_gpus GPUs.
void check_golden_ranks(struct result *r, const char *fixtures, const char *model, int tp,
                        int n_gpus);

// The same by ranks that have a GPU each, over every way of their sums. `staged`: as if no GPU
// could use another's memory.
void check_golden_ways(struct result *r, const char *fixtures, const char *model, int n_gpus,
                       bool staged);

// Collectives between 2 and 4 ranks on the machine's GPUs, which share one if there is no more; and
// by NCCL between as many as there are.
void check_ranks(struct result *r, int n_gpus);

// The same without the use of each other's memory, where there are several GPUs.
void check_ranks_staged(struct result *r, int n_gpus);

// Times of sums between 2, 4, .. ranks that have a GPU each. `staged`: as if no GPU could use
// another's memory, which NCCL takes for the whole process.
void check_ranks_speed(struct result *r, int n_gpus, bool staged);

// Times of the kernels beside limits probed in the same run.
void check_speed(struct result *r);
void check_attention_speed(struct result *r);

// The sampler on logits of the device: the tokens of the host's, and its times.
void check_sampler(struct result *r);

// Ranks with a GPU each that sum with each other: layers with experts at full size.
void check_rehearse_ranks(struct result *r, const char *fixtures, int n_gpus);

// One rank of a deployment on 32 GPUs, and five layers, at full size with random weights.
void check_rehearse(struct result *r, const char *fixtures, bool layers);

#endif
