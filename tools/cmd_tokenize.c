// penstock tokenize: text to ids, ids to text, and chats to both; one JSON object a line in, one
// out.
#include "common/chat.h"
#include "common/limits.h"
#include "common/options.h"
#include "common/utf8.h"
#include "tools/commands.h"
#include "tools/outcome.h"

#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tokenize {
    struct tokenizer *t;
    struct tokenizer_scratch *scratch;
    struct chat *chat;     // NULL until it is needed
    const char *chat_dir;  // where tokenizer_config.json is
    const char *expects;   // the key that each line must have; NULL: any one of KEYS
    struct token_ids ids;  // of this line
    struct buffer line, bytes, text;
};

static const char *const KEYS[] = {"text", "ids", "messages"};
enum { N_KEYS = sizeof KEYS / sizeof *KEYS };

// --- one line

// The value that says what the line wants, and under which key.
static enum status choose(const struct tokenize *z, const json_t *object, const char **key,
                          struct error *e)
{
    *key = z->expects;
    if (z->expects != NULL) {
        if (json_object_get(object, z->expects) != NULL) return OK;
        return error_set(e, ERR_INPUT, "bad_line", "the object has no \"%s\"", z->expects);
    }
    for (int i = 0; i < N_KEYS; i++) {
        if (json_object_get(object, KEYS[i]) == NULL) continue;
        if (*key != NULL) {
            return error_set(e, ERR_INPUT, "bad_line",
                             "the object has both \"%s\" and \"%s\"; --decode and --chat choose",
                             *key, KEYS[i]);
        }
        *key = KEYS[i];
    }
    if (*key != NULL) return OK;
    return error_set(e, ERR_INPUT, "bad_line",
                     "the object has no \"text\", \"ids\" or \"messages\"");
}

static enum status encode(struct tokenize *z, const json_t *text, struct error *e)
{
    if (!json_is_string(text)) {
        return error_set(e, ERR_INPUT, "bad_line", "\"text\" is no string");
    }
    return tokenizer_encode(z->t, z->scratch, json_string_value(text), json_string_length(text),
                            true, &z->ids, e);
}

static enum status decode(struct tokenize *z, const json_t *ids, struct error *e)
{
    if (!json_is_array(ids)) return error_set(e, ERR_INPUT, "bad_line", "\"ids\" is no array");
    size_t i;
    const json_t *id;
    json_array_foreach(ids, i, id) {
        json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value > INT32_MAX) {
            return error_set(e, ERR_INPUT, "bad_line", "ids[%zu] is no token id", i);
        }
        size_t n;
        bool special;
        const char *bytes = tokenizer_bytes(z->t, (int32_t) value, &n, &special);
        buffer_append(&z->bytes, bytes, n);
    }
    try(buffer_check(&z->bytes, "the text", e));
    utf8_repair(&z->text, z->bytes.data, z->bytes.n);
    return buffer_check(&z->text, "the text", e);
}

static enum status render(struct tokenize *z, const json_t *messages, struct error *e)
{
    if (z->chat == NULL) try(chat_load(&z->chat, z->chat_dir, e));
    try(chat_render(z->chat, messages, &z->text, e));
    return chat_encode(z->chat, z->t, z->scratch, messages, &z->ids, e);
}

static enum status read_object(const struct buffer *line, json_t **object, struct error *e)
{
    json_error_t why;
    try(buffer_check(line, "a line", e));
    *object = json_loadb((const char *) line->data, line->n,
                         JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
    if (json_is_object(*object)) return OK;
    bool other = *object != NULL;
    json_decref(*object);
    *object = NULL;
    char *near = strstr(why.text, " near "); // the line's own bytes, cut anywhere
    if (!other && near != NULL) *near = 0;
    return error_set(e, ERR_INPUT, "bad_line", "the line is no JSON object: %s",
                     other ? "it is something else" : why.text);
}

static enum status do_line(struct tokenize *z, const char **key, struct error *e)
{
    json_t *object = NULL;
    z->ids.n = 0;
    buffer_clear(&z->bytes);
    buffer_clear(&z->text);
    enum status status = read_object(&z->line, &object, e);
    if (status == OK) status = choose(z, object, key, e);
    if (status == OK) {
        const json_t *value = json_object_get(object, *key);
        status = *key == KEYS[0]   ? encode(z, value, e)
                 : *key == KEYS[1] ? decode(z, value, e)
                                   : render(z, value, e);
    }
    json_decref(object);
    return status;
}

// --- all lines

// The next line without its end; false at the end of the input. One that is too long is read to its
// end all the same, and z->line says so.
static bool read_line(struct tokenize *z)
{
    buffer_clear(&z->line);
    int c = getc_unlocked(stdin);
    if (c == EOF) return false;
    for (; c != EOF && c != '\n'; c = getc_unlocked(stdin)) {
        uint8_t byte = (uint8_t) c;
        buffer_append(&z->line, &byte, 1);
    }
    return true;
}

static void write_text(const struct tokenize *z)
{
    const char *bytes = z->text.n > 0 ? (const char *) z->text.data : "";
    json_t *text = json_stringn_nocheck(bytes, z->text.n);
    fputs("\"text\":", stdout);
    json_dumpf(text, stdout, JSON_ENCODE_ANY);
    json_decref(text);
}

static void write_ids(const struct tokenize *z)
{
    fputs("\"ids\":[", stdout);
    for (int i = 0; i < z->ids.n; i++) printf(i > 0 ? ",%d" : "%d", (int) z->ids.ids[i]);
    putchar(']');
}

static int run(struct tokenize *z, const char *program)
{
    int status = EXIT_DONE;
    while (read_line(z)) {
        struct error e = {0};
        const char *key = NULL;
        if (do_line(z, &key, &e) != OK) {
            status = EXIT_FAILED;
            json_t *error = json_pack("{s:o}", "error", outcome_error(&e));
            if (outcome_json(error, EXIT_DONE) != EXIT_DONE) return EXIT_FAILED;
            continue;
        }
        putchar('{');
        if (key != KEYS[0]) write_text(z);
        if (key == KEYS[2]) putchar(',');
        if (key != KEYS[1]) write_ids(z);
        fputs("}\n", stdout);
        if (fflush(stdout) != 0) {
            fprintf(stderr, "%s: stdout cannot be written\n", program);
            return EXIT_FAILED;
        }
    }
    return status;
}

static enum status open_files(struct tokenize *z, const char *path, struct error *e)
{
    buffer_init(&z->line, WIRE_BODY_MAX);
    buffer_init(&z->bytes, WIRE_BODY_MAX);
    buffer_init(&z->text, WIRE_BODY_MAX);
    try(tokenizer_load(&z->t, path, e));
    try(tokenizer_scratch_create(&z->scratch, z->t, e));
    if (z->expects == KEYS[2]) return chat_load(&z->chat, z->chat_dir, e);
    return OK;
}

static void close_files(struct tokenize *z)
{
    buffer_deinit(&z->line);
    buffer_deinit(&z->bytes);
    buffer_deinit(&z->text);
    token_ids_deinit(&z->ids);
    chat_destroy(&z->chat);
    tokenizer_scratch_destroy(&z->scratch);
    tokenizer_destroy(&z->t);
}

// The folder of a file, in `to`.
static const char *folder_of(const char *file, char to[PATH_MAX])
{
    const char *slash = strrchr(file, '/');
    if (slash == NULL) return ".";
    snprintf(to, PATH_MAX, "%.*s", (int) (slash - file) + 1, file);
    return to;
}

static const char ABOUT[] =
    "Reads one JSON object a line from stdin and writes one for each to stdout, in order:\n"
    "  {\"text\": T}     -> {\"ids\": [...]}  special strings become their ids; no BOS\n"
    "  {\"ids\": [...]}  -> {\"text\": T}     special tokens kept; U+FFFD for invalid UTF-8\n"
    "  {\"messages\": M} -> {\"text\": T, \"ids\": [...]}  the prompt of a chat; needs\n"
    "                    tokenizer_config.json beside tokenizer.json\n"
    "The key says which; where a line has several, --decode and --chat do. A line that can't be\n"
    "done gives {\"error\": {\"code\", \"message\"}} in its place, and exit status 1 at the end.";

int cmd_tokenize(int argc, char **argv)
{
    const char *model = NULL, *file = NULL;
    bool only_decode = false, only_chat = false;
    struct option_spec specs[] = {
        {.name = "model", .kind = OPTION_STRING, .value = &model, .argument = "DIR",
         .help = "Checkpoint directory with tokenizer.json."},
        {.name = "tokenizer", .kind = OPTION_STRING, .value = &file, .argument = "FILE",
         .help = "A tokenizer.json, instead of --model."},
        {.name = "decode", .kind = OPTION_FLAG, .value = &only_decode,
         .help = "Each line must have \"ids\"; other keys don't count."},
        {.name = "chat", .kind = OPTION_FLAG, .value = &only_chat,
         .help = "Each line must have \"messages\"; other keys don't count."},
    };
    struct options o = {.program = "penstock tokenize",
                        .usage = "--model DIR|--tokenizer FILE [--decode|--chat]",
                        .about = ABOUT,
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if ((model == NULL) == (file == NULL) || (only_decode && only_chat)) {
        error_set(&e, ERR_INPUT, "bad_usage", "%s",
                  only_decode && only_chat ? "--decode and --chat exclude each other"
                                           : "one of --model and --tokenizer is needed");
        return outcome_usage(o.program, &e);
    }
    char folder[PATH_MAX];
    struct tokenize z = {.chat_dir = model != NULL ? model : folder_of(file, folder),
                         .expects = only_decode ? KEYS[1] : only_chat ? KEYS[2] : NULL};
    int status;
    if (open_files(&z, model != NULL ? model : file, &e) != OK) {
        status = outcome_failed(o.program, &e, false);
    } else {
        status = run(&z, o.program);
    }
    close_files(&z);
    return status;
}
