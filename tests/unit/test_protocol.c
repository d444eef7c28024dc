// common/PROTOCOL.md says what the codecs do: every command and field of the wire grammar with its
// type and bounds, every field and limit of jobs, every code. `test_protocol rows` prints the rows.
#include "common/job.h"
#include "common/result.h"
#include "common/wire.h"
#include "common/wire_grammar.h"
#include "tests/support/bytes.h"
#include "tools/acl.h"
#include "workers/step.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

static char *text; // of PROTOCOL.md

static int setup(void **state)
{
    (void) state;
    text = bytes_file(SOURCE_DIR "/common/PROTOCOL.md", NULL);
    return 0;
}

static int teardown(void **state)
{
    (void) state;
    free(text);
    return 0;
}

static void must_say(const char *in, const char *what)
{
    if (strstr(in, what) == NULL) fail_msg("PROTOCOL.md lacks: %s", what);
}

// --- the wire

static void print_type(char *to, size_t n, const struct schema_field *f)
{
    long long most = (long long) f->most;
    switch (f->type) {
    case SCHEMA_CONST: snprintf(to, n, "%lld", most); break;
    case SCHEMA_U64: snprintf(to, n, "uint64"); break;
    case SCHEMA_INT: snprintf(to, n, "int %lld..%lld", (long long) f->least, most); break;
    case SCHEMA_FLOAT: snprintf(to, n, "float"); break;
    case SCHEMA_BOOL: snprintf(to, n, "bool"); break;
    case SCHEMA_TEXT: snprintf(to, n, "str, at most %zu bytes", f->size - 1); break;
    case SCHEMA_ID: snprintf(to, n, "job id"); break;
    case SCHEMA_FIXED: snprintf(to, n, "bin, %zu bytes", f->size); break;
    case SCHEMA_STR: snprintf(to, n, "str"); break;
    case SCHEMA_BIN: snprintf(to, n, "bin"); break;
    case SCHEMA_IDS: snprintf(to, n, "ids, at most %lld", most); break;
    case SCHEMA_PIECES: snprintf(to, n, "array of bin, at most %lld", most); break;
    case SCHEMA_U64S: snprintf(to, n, "array of uint64, at most %lld", most); break;
    case SCHEMA_INTS: case SCHEMA_INT_LIST:
        snprintf(to, n, "array of int, at most %lld", most);
        break;
    case SCHEMA_LIST: snprintf(to, n, "array of maps, at most %lld", most); break;
    case SCHEMA_SUB: snprintf(to, n, "map"); break;
    case SCHEMA_ENUM: {
        size_t at = (size_t) snprintf(to, n, "one of");
        for (int i = 0; f->names[i] != NULL; i++)
            at += (size_t) snprintf(to + at, n - at, "%s %s", i > 0 ? "," : "", f->names[i]);
        break;
    }
    }
}

// The beginning of each field's row; what it means follows it in the page.
static void each_row(const struct schema *s, const char *frame, const char *prefix,
                     void (*fn)(void *arg, const char *row), void *arg)
{
    for (int i = 0; i < s->n; i++) {
        const struct schema_field *f = &s->fields[i];
        char type[200], row[400], deeper[100];
        print_type(type, sizeof type, f);
        snprintf(row, sizeof row, "| %s | `%s%s` | %s%s |", frame, prefix, f->name, type,
                 f->optional ? "; optional" : "");
        fn(arg, row);
        const char *list = f->type == SCHEMA_LIST ? "[]" : "";
        snprintf(deeper, sizeof deeper, "%s%s%s.", prefix, f->name, list);
        if (f->sub != NULL) each_row(f->sub, frame, deeper, fn, arg);
    }
}

static void each_row_of(const struct wire_grammar *g, void (*fn)(void *arg, const char *row),
                        void *arg)
{
    each_row(&g->header, "header", "", fn, arg);
    if (g->body.n > 0) each_row(&g->body, "body", "", fn, arg);
}

struct section {
    const char *name;
    char *text;
};

static void check_row(void *arg, const char *row)
{
    const struct section *section = arg;
    if (strstr(section->text, row) == NULL)
        fail_msg("PROTOCOL.md, %s, lacks: %s", section->name, row);
}

static char *section_of(const char *name)
{
    char heading[64];
    snprintf(heading, sizeof heading, "\n#### %s\n", name);
    must_say(text, heading);
    char *copy = strdup(strstr(text, heading) + 1), *end = strstr(copy, "\n#");
    if (end != NULL) *end = '\0';
    return copy;
}

static void count_row(void *arg, const char *row)
{
    (void) row;
    (*(int *) arg)++;
}

static void every_command_and_field_is_described(void **state)
{
    (void) state;
    for (int c = 0; c < WIRE_N_COMMANDS; c++) {
        const struct wire_grammar *g = &wire_grammars[c];
        struct section section = {g->name, section_of(g->name)};
        each_row_of(g, check_row, &section);
        int fields = 0, rows = 0;
        each_row_of(g, count_row, &fields);
        for (const char *p = section.text; (p = strstr(p, "\n| header |")) != NULL; p++) rows++;
        for (const char *p = section.text; (p = strstr(p, "\n| body |")) != NULL; p++) rows++;
        assert_int_equal(rows, fields); // and none that isn't there
        if (g->raw) must_say(section.text, "raw");
        free(section.text);
    }
}

static void frames_and_limits_are_described(void **state)
{
    (void) state;
    char line[200];
    must_say(text, "`PSTK`");
    snprintf(line, sizeof line, "version byte %d", WIRE_MAJOR);
    must_say(text, line);
    snprintf(line, sizeof line, "at most %lld bytes", WIRE_HEADER_MAX);
    must_say(text, line);
    snprintf(line, sizeof line, "at most %lld bytes", WIRE_BODY_MAX);
    must_say(text, line);
    snprintf(line, sizeof line, "at most %d nested containers", MSGPACK_DEPTH_MAX);
    must_say(text, line);
    snprintf(line, sizeof line, "at most %d pairs", MSGPACK_MAP_MAX);
    must_say(text, line);
    must_say(text, "tests/fixtures/wire-golden.txt");
    must_say(text, "tests/fixtures/job-golden.txt");
    must_say(text, "tests/fixtures/result-golden.txt");
}

// --- jobs and results

static void jobs_and_their_limits_are_described(void **state)
{
    (void) state;
    char rows[14][200];
    int n = 0;
#define ROW(...) snprintf(rows[n++], sizeof rows[0], __VA_ARGS__)
    ROW("| `v` | int | 1 |");
    ROW("| `id` | str | 1..%d of `[A-Za-z0-9_-]` |", JOB_ID_MAX);
    ROW("| `op` | str | `%s`, `%s`, `%s`, `%s`, `%s` |", job_op_name(JOB_CHAT),
        job_op_name(JOB_COMPLETION), job_op_name(JOB_TOKENS), job_op_name(JOB_MAP_REDUCE),
        job_op_name(JOB_CANCEL));
    ROW("| `body` | map, or JSON as str or bin | at most %lld bytes |", JOB_BODY_MAX);
    ROW("| `model` | str | at most %d bytes |", JOB_MODEL_MAX);
    ROW("| `class` | int | 0..%d |", JOB_CLASSES - 1);
    ROW("| `at` | int | 0..253402300799999 |");
    ROW("| `deadline` | int | 1..253402300799999 |");
    ROW("| `ttl` | int | 1..%lld |", JOB_TTL_MAX_MS);
    ROW("| `attempts` | int | 1..%d |", JOB_ATTEMPTS_MAX);
    ROW("| `stream` | bool | |");
    ROW("| `custom_id` | str | at most %d bytes |", JOB_CUSTOM_ID_MAX);
    ROW("| `batch` | str | at most %d bytes |", JOB_BATCH_MAX);
    ROW("| `meta` | map of str to str | at most %d pairs |", JOB_META_MAX);
#undef ROW
    for (int i = 0; i < n; i++) must_say(text, rows[i]);
    char line[100];
    snprintf(line, sizeof line, "at most %lld bytes", JOB_MESSAGE_MAX);
    must_say(text, line);
    snprintf(line, sizeof line, "%d strings of 1..%d bytes", STOP_STRINGS_MAX,
             STOP_STRING_BYTES_MAX);
    must_say(text, line);
    snprintf(line, sizeof line, "at most %d ids", STOP_IDS_MAX);
    must_say(text, line);
    snprintf(line, sizeof line, "at most %d values", JOB_BODY_VALUES_MAX);
    must_say(text, line);
    snprintf(line, sizeof line, "1..%d", CONTEXT_MAX);
    must_say(text, line);
    snprintf(line, sizeof line, "default %lld", RESULT_TTL_MS);
    must_say(text, line);
    snprintf(line, sizeof line, "default %d", JOB_ATTEMPTS_DEFAULT);
    must_say(text, line);
}

static void fields_of_bodies_are_described(void **state)
{
    (void) state;
    static const char *const fields[] = {
        "messages", "prompt", "tokens", "max_tokens", "max_completion_tokens", "temperature",
        "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
        "stop",
        "stop_token_ids", "seed", "logprobs", "top_logprobs", "ignore_eos", "n", "best_of", "tools",
        "functions", "response_format", "logit_bias", "suffix", "echo", "audio", "prompt_logprobs",
        "min_tokens", "bad_words", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
        "structured_outputs", "use_beam_search", "prompt_embeds",
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        char quoted[64];
        snprintf(quoted, sizeof quoted, "`%s`", fields[i]);
        must_say(text, quoted);
    }
}

static void rights_and_lives_are_described(void **state)
{
    (void) state;
    char rules[ACL_RULES_MAX], line[ACL_RULES_MAX + 64];
    acl_rules(ACL_PRODUCER, "default", "default", 0, rules);
    snprintf(line, sizeof line, "\n    ACL SETUSER producer-default-default %s\n", rules);
    must_say(text, line);
    snprintf(line, sizeof line, "%lld days", DEAD_TTL_MS / (24 * 3600 * 1000));
    must_say(text, line);
    snprintf(line, sizeof line, "names of queues and tenants are 1..%d of", QUEUE_NAME_MAX);
    must_say(text, line);
    assert_int_equal(QUEUE_NAME_MAX, TENANT_MAX);
}

static void results_and_codes_are_described(void **state)
{
    (void) state;
    static const char *const words[] = {
        // of a result
        "v", "id", "custom_id", "status", "finish_reason", "text", "tokens", "logprobs",
        "max_tokens", "usage", "timing", "attempts", "resumed", "engine", "error", "prompt",
        "cached", "completion", "queued", "prefill", "decode", "version", "model", "plan", "code",
        "message", "retryable",
        "logprob", "bytes", "top",
        // codes on the wire; those of jobs are the business of tests/style/codes
        "bad_frame", "bad_version", "unknown_command", "unknown_peer", "stale_term", "fleet_full",
        // events
        "done", "failed",
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        char quoted[64];
        snprintf(quoted, sizeof quoted, "`%s`", words[i]);
        must_say(text, quoted);
    }
    for (int s = RESULT_OK; s <= RESULT_EXPIRED; s++) {
        char quoted[64];
        snprintf(quoted, sizeof quoted, "`%s`", result_status_name((enum result_status) s));
        must_say(text, quoted);
    }
}

// --- steps

static void step_frames_are_described(void **state)
{
    (void) state;
    char line[100];
    struct step_limits none = {0};
    snprintf(line, sizeof line, "header, %zu bytes", step_frame_max(&none));
    must_say(text, line);
    snprintf(line, sizeof line, "OPEN, %zu bytes each", sizeof(struct step_open));
    must_say(text, line);
    snprintf(line, sizeof line, "ROWS, %zu bytes each", sizeof(struct step_run));
    must_say(text, line);
    must_say(text, "`PSP1`");
    must_say(text, "`PST1`");
}

static void print_row(void *arg, const char *row)
{
    (void) arg;
    puts(row);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "rows") == 0) {
        for (int c = 0; c < WIRE_N_COMMANDS; c++) {
            printf("#### %s\n", wire_grammars[c].name);
            each_row_of(&wire_grammars[c], print_row, NULL);
        }
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_command_and_field_is_described),
        cmocka_unit_test(frames_and_limits_are_described),
        cmocka_unit_test(jobs_and_their_limits_are_described),
        cmocka_unit_test(fields_of_bodies_are_described),
        cmocka_unit_test(rights_and_lives_are_described),
        cmocka_unit_test(results_and_codes_are_described),
        cmocka_unit_test(step_frames_are_described),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
