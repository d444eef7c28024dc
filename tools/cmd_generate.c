// penstock generate: one prompt through the whole pipeline, in this process, without queue or
// broker.
#include "common/chat.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/result.h"
#include "tools/commands.h"
#include "tools/engine_options.h"
#include "tools/outcome.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct generate {
    struct engine_flags flags;
    const char *prompt, *tokens, *stop;
    bool chat, ignore_eos, json;
    int64_t max_tokens, top_k, logprobs, seed;
    double temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    // of the run
    struct token_ids ids;
    json_t *result;
    struct error error;
    size_t streamed; // bytes of text that are printed
    int64_t load_ms;
};

static void on_tokens(void *arg, const struct wire_tokens *t)
{
    struct generate *g = arg;
    if (g->json || t->text.n == 0) return;
    fwrite(t->text.at, 1, t->text.n, stdout);
    fflush(stdout);
    g->streamed += t->text.n;
}

static void on_result(void *arg, const struct job_key *key, struct wire_bytes bytes)
{
    struct generate *g = arg;
    struct result r;
    (void) key;
    if (result_decode(&r, bytes.at, bytes.n, &g->error) == OK) g->result = result_to_json(&r);
    result_deinit(&r);
}

static struct sampling sampling_of(const struct generate *g)
{
    struct sampling s = sampling_default();
    s.temperature = (float) g->temperature;
    s.top_p = (float) g->top_p;
    s.min_p = (float) g->min_p;
    s.repetition_penalty = (float) g->repetition_penalty;
    s.presence_penalty = (float) g->presence_penalty;
    s.frequency_penalty = (float) g->frequency_penalty;
    s.top_k = (int32_t) g->top_k;
    s.n_logprobs = (int32_t) g->logprobs;
    s.seed = (uint64_t) g->seed;
    return s;
}

// --- the prompt

static enum status encode_chat(struct generate *g, const struct tokenizer *t,
                               struct tokenizer_scratch *scratch, struct error *e)
{
    struct chat *chat = NULL;
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", g->prompt);
    enum status status = messages != NULL ? chat_load(&chat, g->flags.model, e)
                                          : error_set(e, ERR_INPUT, "bad_utf8",
                                                      "the prompt is not valid UTF-8");
    if (status == OK) status = chat_encode(chat, t, scratch, messages, &g->ids, e);
    chat_destroy(&chat);
    json_decref(messages);
    return status;
}

// A text's ids, with BOS in front where the model has one.
static enum status encode_text(struct generate *g, const struct tokenizer *t,
                               struct tokenizer_scratch *scratch, int bos, struct error *e)
{
    if (bos >= 0) {
        g->ids.ids = malloc(sizeof *g->ids.ids);
        if (g->ids.ids == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for ids");
        g->ids.ids[0] = bos;
        g->ids.n = g->ids.capacity = 1;
    }
    return tokenizer_encode(t, scratch, g->prompt, strlen(g->prompt), true, &g->ids, e);
}

static enum status encode_prompt(struct generate *g, struct error *e)
{
    struct tokenizer *t = NULL;
    struct tokenizer_scratch *scratch = NULL;
    struct model_config config;
    if (g->tokens != NULL) return read_tokens_file(g->tokens, &g->ids, e);
    enum status status = model_config_load(&config, g->flags.model, e);
    if (status == OK) status = tokenizer_load(&t, g->flags.model, e);
    if (status == OK) status = tokenizer_scratch_create(&scratch, t, e);
    if (status == OK) {
        status = g->chat ? encode_chat(g, t, scratch, e)
                         : encode_text(g, t, scratch, config.bos_id, e);
    }
    tokenizer_scratch_destroy(&scratch);
    tokenizer_destroy(&t);
    return status;
}

// --- the run

static enum status check_usage(const struct generate *g, struct error *e)
{
    if (g->flags.model == NULL || (g->prompt == NULL) == (g->tokens == NULL)) {
        return error_set(e, ERR_INPUT, "bad_usage",
                         "--model and one of --prompt and --tokens are needed");
    }
    if (g->chat && g->prompt == NULL) {
        return error_set(e, ERR_INPUT, "bad_usage", "--chat wants a --prompt");
    }
    if (g->stop != NULL && (g->stop[0] == 0 || strlen(g->stop) > STOP_STRING_BYTES_MAX)) {
        return error_set(e, ERR_INPUT, "bad_usage", "--stop wants 1 to %d bytes",
                         STOP_STRING_BYTES_MAX);
    }
    struct sampling s = sampling_of(g);
    if (sampling_check(&s, e) == OK) return OK;
    return error_set(e, ERR_INPUT, "bad_usage", "%s", e->text);
}

static enum status run_job(struct generate *g, struct engine *engine, struct error *e)
{
    struct wire_job job = {.key = {"local", "generate", 1},
                           .max_tokens = (int) g->max_tokens,
                           .sampling = sampling_of(g),
                           .ignore_eos = g->ignore_eos,
                           .attempts = 1,
                           .ids = {g->ids.ids, (size_t) g->ids.n * sizeof *g->ids.ids}};
    if (g->stop != NULL) job.stops[job.n_stops++] = (struct wire_bytes){g->stop, strlen(g->stop)};
    struct engine_events events = {g, on_tokens, NULL, on_result};
    try(engine_run(engine, &job, 1, &events, e));
    if (g->result != NULL) return OK;
    if (g->error.status != OK) *e = g->error;
    return error_set(e, ERR_STATE, NULL, "no result came back: %s", g->error.text);
}

static enum status generate(struct generate *g, struct error *e)
{
    struct engine *engine = NULL;
    struct engine_options o = {.slots = 1};
    try(engine_flags_apply(&g->flags, &o, e));
    try(encode_prompt(g, e));
    try(engine_context(&o, g->ids.n, g->max_tokens, e));
    int64_t started_ms = clock_ms();
    enum status status = engine_open(&engine, &o, e);
    g->load_ms = clock_ms() - started_ms;
    if (status == OK) status = run_job(g, engine, e);
    engine_close(&engine);
    return status;
}

static int print_json(const struct generate *g)
{
    json_t *timing = json_object_get(g->result, "timing"), *out;
    json_object_set_new(timing, "load", json_integer(g->load_ms));
    out = json_pack("{s:O, s:O, s:O, s:O, s:O}", "tokens", json_object_get(g->result, "tokens"),
                    "text", json_object_get(g->result, "text"), "finish_reason",
                    json_object_get(g->result, "finish_reason"), "usage",
                    json_object_get(g->result, "usage"), "timing", timing);
    if (g->logprobs >= 0) {
        json_object_set(out, "logprobs", json_object_get(g->result, "logprobs"));
    }
    return outcome_json(out, EXIT_DONE);
}

static void print_text(const struct generate *g)
{
    const json_t *text = json_object_get(g->result, "text");
    const json_t *tokens = json_object_get(g->result, "tokens");
    for (size_t i = 0; !json_is_string(text) && i < json_array_size(tokens); i++) {
        printf("%s%lld", i > 0 ? " " : "",
               (long long) json_integer_value(json_array_get(tokens, i)));
    }
    // What the stream held back until the end.
    if (json_is_string(text)) {
        fwrite(json_string_value(text) + g->streamed, 1, json_string_length(text) - g->streamed,
               stdout);
    }
    putchar('\n');
}

int cmd_generate(int argc, char **argv)
{
    struct generate g = {.flags = ENGINE_FLAGS_DEFAULT, .max_tokens = 128, .logprobs = -1,
                         .top_p = 1, .repetition_penalty = 1};
    struct option_spec specs[] = {
        ENGINE_FLAG_ROWS(g.flags),
        {.name = "prompt", .kind = OPTION_STRING, .value = &g.prompt, .argument = "TEXT",
         .help = "Text to continue."},
        {.name = "chat", .kind = OPTION_FLAG, .value = &g.chat,
         .help = "Takes the prompt as a user's message."},
        {.name = "tokens", .kind = OPTION_STRING, .value = &g.tokens, .argument = "FILE",
         .help = "Whitespace-separated token ids instead; - is standard input."},
        {.name = "max-tokens", .kind = OPTION_INT, .value = &g.max_tokens, .argument = "N",
         .help = "Most tokens to generate.", .least = 1, .most = CONTEXT_MAX},
        {.name = "temperature", .kind = OPTION_NUMBER, .value = &g.temperature, .argument = "T",
         .help = "0 (the default) always takes the likeliest token."},
        {.name = "top-p", .kind = OPTION_NUMBER, .value = &g.top_p, .argument = "P",
         .help = "Keeps the likeliest tokens that together reach P."},
        {.name = "top-k", .kind = OPTION_INT, .value = &g.top_k, .argument = "K",
         .help = "Keeps the K likeliest tokens; 0: all.", .least = 0, .most = TOP_K_MAX},
        {.name = "min-p", .kind = OPTION_NUMBER, .value = &g.min_p, .argument = "P",
         .help = "Keeps tokens at least P times as likely as the likeliest."},
        {.name = "repetition-penalty", .kind = OPTION_NUMBER, .value = &g.repetition_penalty,
         .argument = "X", .help = "1: none."},
        {.name = "presence-penalty", .kind = OPTION_NUMBER, .value = &g.presence_penalty,
         .argument = "X", .help = "0: none."},
        {.name = "frequency-penalty", .kind = OPTION_NUMBER, .value = &g.frequency_penalty,
         .argument = "X", .help = "0: none."},
        {.name = "seed", .kind = OPTION_INT, .value = &g.seed, .argument = "N",
         .help = "The same seed draws the same tokens."},
        {.name = "stop", .kind = OPTION_STRING, .value = &g.stop, .argument = "TEXT",
         .help = "Ends before this text."},
        {.name = "logprobs", .kind = OPTION_INT, .value = &g.logprobs, .argument = "N",
         .help = "With --json: log-probabilities, and the N likeliest alternatives.", .least = 0,
         .most = LOGPROBS_MAX},
        {.name = "ignore-eos", .kind = OPTION_FLAG, .value = &g.ignore_eos,
         .help = "Goes on after the end-of-sequence token."},
        {.name = "json", .kind = OPTION_FLAG, .value = &g.json,
         .help = "One JSON object on standard output."},
    };
    struct options o = {.program = "penstock generate",
                        .usage = "--model DIR (--prompt TEXT | --tokens FILE) [OPTIONS]",
                        .about = "Continues one prompt, in this process, without queue or broker.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    enum status status = check_usage(&g, &e);
    log_init("generate", LOG_WARN, false);
    if (status == OK) status = generate(&g, &e);
    int exit = EXIT_DONE;
    if (status != OK) exit = outcome_failed(o.program, &e, g.json);
    else if (g.json) exit = print_json(&g);
    else print_text(&g);
    json_decref(g.result);
    token_ids_deinit(&g.ids);
    return exit;
}
