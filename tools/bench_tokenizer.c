// penstock bench tokenizer: megabytes of text a second of one core's time, on text made of the
// vocabulary's own words, and on text that is hard for a tokenizer.
#include "common/buffer.h"
#include "common/limits.h"
#include "common/options.h"
#include "common/sampling.h"
#include "common/tokenizer.h"
#include "common/utf8.h"
#include "tools/commands.h"
#include "tools/csv.h"
#include "tools/outcome.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { REPEATS_LEAST = 3, REPEATS_MOST = 50, CORPUS_BYTES = 4 << 20, LONG_BYTES = 8 << 20 };

static const int64_t CORPUS_NS = 1500000000; // time spent on one line of the table

struct bench {
    struct tokenizer *t;
    struct tokenizer_scratch *scratch;
    struct token_ids ids;
    struct buffer text;
    FILE *csv; // or NULL
    uint64_t drawn;
};

// --- corpora

// The n-th draw is the same in each run. Log-uniform: common words first, as a vocabulary has them.
static uint64_t draw(struct bench *b, uint64_t n)
{
    return sampling_random(1, b->drawn++) % n;
}

static int draw_word(struct bench *b, int n)
{
    int most = 1;
    for (uint64_t bits = draw(b, 64); bits > 0 && most < n; bits -= bits < 4 ? bits : 4) most *= 2;
    return (int) draw(b, (uint64_t) (most < n ? most : n));
}

typedef bool is_word(const char *bytes, size_t n);

static bool is_english(const char *bytes, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        if (!islower((uint8_t) bytes[i]) && !(i == 1 && isupper((uint8_t) bytes[i]))) return false;
    }
    return n > 1 && bytes[0] == ' ';
}

static bool is_chinese(const char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i += 3) { // U+4E00 to U+9FFF
        uint8_t lead = (uint8_t) bytes[i];
        if (lead < 0xe4 || lead > 0xe9 || i + 3 > n) return false;
    }
    return n > 0 && utf8_valid_prefix(bytes, n) == n;
}

// Sentences of words, some of which are two put together.
static enum status sentences(struct bench *b, is_word *is, const char *const *marks,
                             struct error *e)
{
    int n_ids = tokenizer_n_ids(b->t), n = 0;
    int32_t *words = malloc((size_t) n_ids * sizeof *words);
    if (words == NULL) return error_set(e, ERR_NOMEM, "no_memory", "no memory for the words");
    size_t length;
    bool special;
    for (int32_t id = 0; id < n_ids; id++) {
        const char *bytes = tokenizer_bytes(b->t, id, &length, &special);
        if (is(bytes, length)) words[n++] = id;
    }
    while (n > 0 && b->text.n < CORPUS_BYTES && b->text.status == OK) {
        for (uint64_t left = 4 + draw(b, 12); left > 0; left--) {
            const char *bytes = tokenizer_bytes(b->t, words[draw_word(b, n)], &length, &special);
            buffer_append(&b->text, bytes, length);
            if (draw(b, 10) != 0) continue;
            bytes = tokenizer_bytes(b->t, words[draw_word(b, n)], &length, &special);
            bool space = bytes[0] == ' ';
            buffer_append(&b->text, bytes + space, length - space);
        }
        const char *mark = marks[draw(b, 6)];
        buffer_append(&b->text, mark, strlen(mark));
    }
    free(words);
    if (n == 0) {
        return error_set(e, ERR_UNSUPPORTED, "no_words", "the vocabulary has no such words");
    }
    return buffer_check(&b->text, "the corpus", e);
}

static enum status english(struct bench *b, struct error *e)
{
    static const char *const marks[] = {".", ",", ", and", ".\n\n", " (1984);", "?"};
    return sentences(b, is_english, marks, e);
}

static enum status chinese(struct bench *b, struct error *e)
{
    static const char *const marks[] = {"。", "，", "，", "。\n\n", "（1984年）；", "？"};
    return sentences(b, is_chinese, marks, e);
}

static enum status repeated(struct bench *b, const char *unit, struct error *e)
{
    while (b->text.n < LONG_BYTES && b->text.status == OK) {
        buffer_append(&b->text, unit, strlen(unit));
    }
    return buffer_check(&b->text, "the corpus", e);
}

static enum status one_letter(struct bench *b, struct error *e) { return repeated(b, "x", e); }
static enum status spaces(struct bench *b, struct error *e) { return repeated(b, " ", e); }
static enum status digits(struct bench *b, struct error *e) { return repeated(b, "31415926", e); }
static enum status angles(struct bench *b, struct error *e) { return repeated(b, "<｜", e); }

static enum status letters(struct bench *b, struct error *e)
{
    while (b->text.n < LONG_BYTES && b->text.status == OK) {
        uint8_t letter = (uint8_t) ('a' + draw(b, 26));
        buffer_append(&b->text, &letter, 1);
    }
    return buffer_check(&b->text, "the corpus", e);
}

static const struct {
    const char *name;
    enum status (*make)(struct bench *b, struct error *e);
} CORPORA[] = {
    {"English", english},
    {"Chinese", chinese},
    {"hard: one letter, 8 MiB", one_letter},
    {"hard: random letters, one word of 8 MiB", letters},
    {"hard: spaces, 8 MiB", spaces},
    {"hard: digits, 8 MiB", digits},
    {"hard: beginnings of special strings, 8 MiB", angles},
};

// --- times

// Nanoseconds that this thread had a core: what others do on the machine does not count.
static int64_t core_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static int by_time(const void *a, const void *b)
{
    int64_t x = *(const int64_t *) a, y = *(const int64_t *) b;
    return x < y ? -1 : x > y;
}

static enum status measure(struct bench *b, const char *name, struct error *e)
{
    int64_t times[REPEATS_MOST], begin = core_ns();
    int n = 0;
    while (n < REPEATS_MOST && (n < REPEATS_LEAST || core_ns() - begin < CORPUS_NS)) {
        int64_t from = core_ns();
        b->ids.n = 0;
        try(tokenizer_encode(b->t, b->scratch, (const char *) b->text.data, b->text.n, true,
                             &b->ids, e));
        times[n++] = core_ns() - from;
    }
    qsort(times, (size_t) n, sizeof *times, by_time);
    double bytes = (double) b->text.n, median = 1e3 * bytes / (double) times[n / 2];
    double best = 1e3 * bytes / (double) times[0];
    double a_token = b->ids.n > 0 ? bytes / b->ids.n : 0;
    printf("%-44s %8.2f %10d %8.2f %9.1f %9.1f\n", name, bytes / 1e6, b->ids.n, a_token, median,
           best);
    if (b->csv != NULL) {
        fprintf(b->csv, "\"%s\",%zu,%d,%.2f,%.2f,%.2f\n", name, b->text.n, b->ids.n, a_token,
                median, best);
    }
    return OK;
}

static enum status read_text(struct bench *b, const char *path, struct error *e)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL) return error_set(e, ERR_IO, NULL, "cannot open %s: %m", path);
    uint8_t bytes[4096];
    for (size_t n; (n = fread(bytes, 1, sizeof bytes, f)) > 0;) buffer_append(&b->text, bytes, n);
    bool failed = ferror(f) != 0;
    fclose(f);
    if (failed) return error_set(e, ERR_IO, NULL, "cannot read %s", path);
    return buffer_check(&b->text, path, e);
}

static enum status run_all(struct bench *b, const char *tokenizer, const char *text,
                           struct error *e)
{
    int64_t from = core_ns();
    try(tokenizer_load(&b->t, tokenizer, e));
    printf("%d ids, loaded in %.0f ms; times are of this thread's CPU\n", tokenizer_n_ids(b->t),
           (double) (core_ns() - from) / 1e6);
    try(tokenizer_scratch_create(&b->scratch, b->t, e));
    printf("%-44s %8s %10s %8s %9s %9s\n", "text", "MB", "tokens", "B/token", "MB/s", "best");
    if (b->csv != NULL) fprintf(b->csv, "text,bytes,tokens,bytes_a_token,median_mb_s,best_mb_s\n");
    if (text != NULL) {
        try(read_text(b, text, e));
        return measure(b, text, e);
    }
    for (size_t i = 0; i < sizeof CORPORA / sizeof *CORPORA; i++) {
        buffer_clear(&b->text);
        enum status status = CORPORA[i].make(b, e);
        if (status == ERR_UNSUPPORTED) {
            printf("%-44s %s\n", CORPORA[i].name, e->text);
            continue;
        }
        try(status);
        try(measure(b, CORPORA[i].name, e));
    }
    return OK;
}

static enum status run(const char *tokenizer, const char *text, const char *csv, struct error *e)
{
    struct bench b = {0};
    buffer_init(&b.text, WIRE_BODY_MAX);
    try(csv_open(&b.csv, csv, e));
    enum status status = run_all(&b, tokenizer, text, e);
    status = csv_close(b.csv, csv, status, e);
    buffer_deinit(&b.text);
    token_ids_deinit(&b.ids);
    tokenizer_scratch_destroy(&b.scratch);
    tokenizer_destroy(&b.t);
    return status;
}

int bench_tokenizer(int argc, char **argv)
{
    const char *model = NULL, *file = NULL, *text = NULL, *csv = NULL;
    struct option_spec specs[] = {
        {.name = "model", .kind = OPTION_STRING, .value = &model, .argument = "DIR",
         .help = "Checkpoint directory with tokenizer.json."},
        {.name = "tokenizer", .kind = OPTION_STRING, .value = &file, .argument = "FILE",
         .help = "A tokenizer.json, instead of --model."},
        {.name = "text", .kind = OPTION_STRING, .value = &text, .argument = "FILE",
         .help = "Times this text alone, instead of text made of the vocabulary's words."},
        CSV_FLAG_ROW(csv),
    };
    struct options o = {.program = "penstock bench tokenizer",
                        .usage = "--model DIR|--tokenizer FILE [OPTIONS]",
                        .about = "Times text to ids on one core.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if ((model == NULL) == (file == NULL)) {
        error_set(&e, ERR_INPUT, "bad_usage", "one of --model and --tokenizer is needed");
        return outcome_usage(o.program, &e);
    }
    if (run(model != NULL ? model : file, text, csv, &e) == OK) return EXIT_DONE;
    return outcome_failed(o.program, &e, false);
}
