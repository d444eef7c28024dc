// The flags that `generate` and `score` share: which model, how it is cut, and where the prompt
// comes from.
#ifndef PENSTOCK_TOOLS_ENGINE_OPTIONS_H
#define PENSTOCK_TOOLS_ENGINE_OPTIONS_H

#include "common/kv_block.h"
#include "common/options.h"
#include "common/status.h"
#include "tools/engine.h"

struct engine_flags {
    const char *model, *layers, *precision, *kv, *chunk, *device;
    int64_t tp, pp, threads;
    int64_t device_memory;
    bool coarse_sums;
};

#define ENGINE_FLAGS_DEFAULT                                                                       \
    {.tp = 1, .precision = "auto", .kv = "bf16", .chunk = "auto", .device = "cpu"}

// Rows of a table of options.
#define KV_FLAG_ROW(value_)                                                                        \
    {.name = "kv", .kind = OPTION_STRING, .value = &(value_), .argument = "bf16|fp8",              \
     .help = "Of KV in memory: as activations (default), or FP8, little more than half of it."}

#define ENGINE_FLAG_ROWS(f)                                                                        \
    {.name = "model", .kind = OPTION_STRING, .value = &(f).model, .argument = "DIR",               \
     .help = "Checkpoint directory as published on the hub."},                                     \
    {.name = "tp", .kind = OPTION_INT, .value = &(f).tp, .argument = "N",                          \
     .help = "Ranks of each stage (default 1).", .least = 1, .most = TP_MAX},                      \
    {.name = "pp", .kind = OPTION_INT, .value = &(f).pp, .argument = "N",                          \
     .help = "Stages (default 1).", .least = 1, .most = PP_MAX},                                   \
    {.name = "layers", .kind = OPTION_STRING, .value = &(f).layers, .argument = "a,b,..",          \
     .help = "Layers of each stage, instead of --pp."},                                            \
    {.name = "device", .kind = OPTION_STRING, .value = &(f).device, .argument = "cpu|cuda[/M]",    \
     .help = "Where it runs (default cpu); cuda/M: all ranks in turn on the first M GPUs."},       \
    {.name = "precision", .kind = OPTION_STRING, .value = &(f).precision,                          \
     .argument = "auto|f32|bf16", .help = "f32 is exact; auto: bf16 where it is fast."},       \
    KV_FLAG_ROW((f).kv),                                                                           \
    {.name = "chunk", .kind = OPTION_STRING, .value = &(f).chunk, .argument = "N",                 \
     .help = "Most prompt tokens in one step; default: auto."},                                    \
    {.name = "threads", .kind = OPTION_INT, .value = &(f).threads, .argument = "N",                \
     .help = "Threads of each rank; 0: the cores shared out.", .least = 0,                         \
     .most = DEVICE_THREADS_MAX},                                                                  \
    {.name = "coarse-sums", .kind = OPTION_FLAG, .value = &(f).coarse_sums,                        \
     .help = "Large sums between GPUs travel over the host as 8 bits; not in f32."},              \
    {.name = "device-memory", .kind = OPTION_BYTES, .value = &(f).device_memory,                   \
     .argument = "BYTES", .help = "Most memory of each rank; default: what it takes."}

// Fills o's model, tp, pp, layers, precision, KV, threads, chunk, memory. ERR_INPUT bad_usage.
enum status engine_flags_apply(const struct engine_flags *f, struct engine_options *o,
                               struct error *e);

// Sets o's max_context to prompt and output. ERR_INPUT context_exceeded: the model has fewer
// positions; else errors of its config.json.
enum status engine_context(struct engine_options *o, int n_prompt, int64_t max_tokens,
                           struct error *e);

// Whitespace-separated ids from a file ("-": standard input). ERR_IO; ERR_INPUT bad_tokens with the
// place.
enum status read_tokens_file(const char *path, struct token_ids *to, struct error *e);

#endif
