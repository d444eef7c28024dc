// A whole pipeline inside this process: the fleet, a group a stage, their links over inproc, and
// jobs sent to the head as a broker would send them. What `penstock generate`, `penstock score`,
// benchmarks and tests run; there is no second implementation of anything for one machine. One
// thread calls it.
#ifndef PENSTOCK_TOOLS_ENGINE_H
#define PENSTOCK_TOOLS_ENGINE_H

#include "common/model_config.h"
#include "common/plan.h"
#include "common/status.h"
#include "common/tokenizer.h"
#include "common/wire.h"
#include "kernels/backend.h"

#include <stdbool.h>
#include <stdint.h>

struct engine;

struct engine_options {
    const char *model;         // directory
    int tp, pp;
    int layers[PP_MAX];        // of each stage; layers[0] == 0: chosen by the plan
    const struct backend *backend;
    int n_gpus;                // that all ranks of all stages share; 0: a stage's have one each
    enum precision precision;
    bool fp8_kv;               // KV is in FP8
    int n_threads;             // of each rank; 0: chosen
    bool coarse_sums;          // as group.h has it
    int slots;                 // sequences at once
    int max_context;           // tokens of one of them
    int chunk;                 // most prefill rows of one sequence in a step; 0: chosen
    bool score;                // jobs may ask for logits
    uint64_t memory_bytes;     // of each rank; 0: what it takes
};

// Opens checkpoint and tokenizer (NULL where the directory has none), starts the groups and waits
// until the pipeline serves. Errors: those of the files, the plan, and of loading.
enum status engine_open(struct engine **engine, const struct engine_options *o, struct error *e);
void engine_close(struct engine **engine);

// What it runs by.
const struct plan *engine_plan(const struct engine *g);
const struct model_config *engine_config(const struct engine *g);
const struct tokenizer *engine_tokenizer(const struct engine *g); // may be NULL

// What comes back, in callbacks from engine_run. Borrowed bytes.
struct engine_events {
    void *arg;
    void (*tokens)(void *arg, const struct wire_tokens *t);   // NULL: not wanted
    void (*logits)(void *arg, const struct wire_logits *l);
    void (*result)(void *arg, const struct job_key *key, struct wire_bytes result);
};

// Sends the jobs (at most `slots` of them run at once, the others follow) and returns when all have
// ended. pipeline and epoch are filled in here. ERR_INPUT or ERR_LIMIT if the head refuses one.
enum status engine_run(struct engine *g, struct wire_job *jobs, int n_jobs,
                       const struct engine_events *events, struct error *e);

// What has been done since engine_open.
struct engine_counts {
    uint64_t decodes, prompts;   // steps with one row of each sequence, and with more of any
    uint64_t rows, prompt_rows;  // of all steps; of ids that came with jobs
    struct {
        uint64_t decode_us, prompt_us; // of these steps, by rank 0's clock
        // Of the processor's time; and in which it was ready, and had no core (0: nobody tells).
        int64_t rank_ns, rank_wait_ns; // of rank 0
        int64_t leader_ns, leader_wait_ns;
    } stages[PP_MAX];
};

// Asks the groups, between two calls of engine_run.
enum status engine_count(struct engine *g, struct engine_counts *to, struct error *e);

#endif
