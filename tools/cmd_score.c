// penstock score: the logits of every position of a sequence, computed by the whole pipeline in
// this process.
#include "common/clock.h"
#include "common/log.h"
#include "tools/commands.h"
#include "tools/engine_options.h"
#include "tools/outcome.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct output {
    int fd;
    const char *path;
    int n_rows;
    struct error error;
};

static void write_logits(void *arg, const struct wire_logits *l)
{
    struct output *out = arg;
    const char *at = l->rows.at;
    size_t left = l->rows.n;
    off_t offset = (off_t) l->pos * (off_t) l->vocab * 4;
    while (left > 0 && out->error.status == OK) {
        ssize_t n = pwrite(out->fd, at, left, offset);
        if (n <= 0) {
            if (n < 0 && errno == EINTR) continue;
            error_set(&out->error, ERR_IO, NULL, "cannot write %s: %s", out->path, strerror(errno));
            return;
        }
        at += n;
        offset += n;
        left -= (size_t) n;
    }
    out->n_rows += l->n;
}

static void ignore_result(void *arg, const struct job_key *key, struct wire_bytes result)
{
    (void) arg;
    (void) key;
    (void) result;
}

static enum status score(const struct engine_flags *flags, const char *tokens, const char *logits,
                         struct output *out, int *vocab, struct error *e)
{
    struct engine_options o = {.slots = 1, .score = true};
    struct engine *engine = NULL;
    struct token_ids ids = {0};
    try(engine_flags_apply(flags, &o, e));
    enum status status = read_tokens_file(tokens, &ids, e);
    if (status == OK) {
        status = engine_context(&o, ids.n, 0, e);
    }
    if (status == OK) status = engine_open(&engine, &o, e);
    out->path = logits;
    if (status == OK) {
        out->fd = open(logits, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        if (out->fd < 0) {
            status = error_set(e, ERR_IO, NULL, "cannot write %s: %s", logits, strerror(errno));
        }
    }
    if (status == OK) {
        struct wire_job job = {.key = {"local", "score", 1},
                               .sampling = sampling_default(),
                               .score = true,
                               .attempts = 1,
                               .ids = {ids.ids, (size_t) ids.n * sizeof *ids.ids}};
        struct engine_events events = {out, NULL, write_logits, ignore_result};
        *vocab = engine_config(engine)->vocab_size;
        status = engine_run(engine, &job, 1, &events, e);
    }
    if (status == OK && out->error.status != OK) {
        *e = out->error;
        status = e->status;
    }
    if (out->fd >= 0 && close(out->fd) != 0 && status == OK) {
        status = error_set(e, ERR_IO, NULL, "cannot write %s: %s", logits, strerror(errno));
    }
    engine_close(&engine);
    token_ids_deinit(&ids);
    return status;
}

int cmd_score(int argc, char **argv)
{
    struct engine_flags flags = ENGINE_FLAGS_DEFAULT;
    const char *tokens = NULL, *logits = NULL;
    bool json = false;
    struct option_spec specs[] = {
        ENGINE_FLAG_ROWS(flags),
        {.name = "tokens", .kind = OPTION_STRING, .value = &tokens, .argument = "FILE",
         .help = "Whitespace-separated token ids; - is standard input."},
        {.name = "logits", .kind = OPTION_STRING, .value = &logits, .argument = "OUT",
         .help = "Gets float32 little-endian logits [n_tokens, vocab]."},
        {.name = "json", .kind = OPTION_FLAG, .value = &json,
         .help = "One JSON object on standard output."},
    };
    struct options o = {.program = "penstock score",
                        .usage = "--model DIR --tokens FILE --logits OUT [OPTIONS]",
                        .about = "Computes the logits of every position of one sequence.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    struct output out = {.fd = -1};
    int vocab = 0;
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    enum status status = OK;
    if (tokens == NULL || logits == NULL) {
        status = error_set(&e, ERR_INPUT, "bad_usage", "--tokens and --logits are needed");
    }
    log_init("score", LOG_WARN, false);
    int64_t started_ms = clock_ms();
    if (status == OK) status = score(&flags, tokens, logits, &out, &vocab, &e);
    if (status != OK) return outcome_failed(o.program, &e, json);
    if (!json) return EXIT_DONE;
    return outcome_json(json_pack("{s:i, s:i, s:I}", "n_tokens", out.n_rows, "vocab", vocab, "ms",
                                  (json_int_t) (clock_ms() - started_ms)),
                        EXIT_DONE);
}
