#include "common/chat.h"

#include "common/limits.h"

#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

// Where a template's output goes: the text, or, with a tokenizer, ids. Then `text` holds the
// ordinary text behind the last special string, which is encoded as one, as a tokenizer would find
// it in the whole. The first failure sticks.
struct sink {
    struct buffer *text;
    const struct tokenizer *t; // NULL: text only
    struct tokenizer_scratch *scratch;
    struct token_ids *to;
    struct error *e;
    enum status status;
};

typedef void render_template(struct sink *s, const struct chat *chat, const json_t *messages);

struct chat {
    render_template *render; // NULL: unknown
    char why_unknown[ERROR_TEXT_SIZE / 2];
    char *bos; // or NULL: none
};

// --- output

static void put(struct sink *s, const char *text)
{
    buffer_append(s->text, text, strlen(text));
}

static void put_string(struct sink *s, const json_t *string)
{
    buffer_append(s->text, json_string_value(string), json_string_length(string));
}

// A string, or an array of parts, whose texts follow one another.
static void put_content(struct sink *s, const json_t *message)
{
    const json_t *content = json_object_get(message, "content"), *part;
    size_t i;
    if (json_is_string(content)) put_string(s, content);
    json_array_foreach(content, i, part) put_string(s, json_object_get(part, "text"));
}

static void flush(struct sink *s)
{
    if (s->status == OK) s->status = buffer_check(s->text, "the chat", s->e);
    if (s->status != OK || s->t == NULL) return;
    s->status = tokenizer_encode(s->t, s->scratch, (const char *) s->text->data, s->text->n, false,
                                 s->to, s->e);
    buffer_clear(s->text);
}

// A special string of the template's own.
static void put_special(struct sink *s, const char *text)
{
    if (s->t == NULL) {
        put(s, text);
        return;
    }
    flush(s);
    if (s->status != OK) return;
    int32_t id = tokenizer_special(s->t, text, strlen(text));
    if (id < 0) {
        s->status = error_set(s->e, ERR_UNSUPPORTED, "template_unknown",
                              "the chat template needs the token \"%s\", which tokenizer.json "
                              "does not have", text);
        return;
    }
    s->status = token_ids_append(s->to, &id, 1, s->e);
}

// --- the templates

static bool has_role(const json_t *message, const char *role)
{
    return strcmp(json_string_value(json_object_get(message, "role")), role) == 0;
}

static bool has_content(const json_t *message)
{
    const json_t *content = json_object_get(message, "content");
    return content != NULL && !json_is_null(content);
}

struct deepseek_v3 {
    bool any_call, any_output; // of the whole chat, as the template has it
    bool in_outputs;
};

static void put_tool_call(struct sink *s, const json_t *call)
{
    const json_t *function = json_object_get(call, "function");
    put_special(s, "<｜tool▁call▁begin｜>");
    put_string(s, json_object_get(call, "type"));
    put_special(s, "<｜tool▁sep｜>");
    put_string(s, json_object_get(function, "name"));
    put(s, "\n```json\n");
    put_string(s, json_object_get(function, "arguments"));
    put(s, "\n```");
    put_special(s, "<｜tool▁call▁end｜>");
}

// The template closes the list of calls after each call but the chat's first one.
static void put_tool_calls(struct sink *s, struct deepseek_v3 *state, const json_t *calls)
{
    size_t i;
    const json_t *call;
    state->in_outputs = false;
    json_array_foreach(calls, i, call) {
        if (!state->any_call) {
            put_special(s, "<｜Assistant｜>");
            put_special(s, "<｜tool▁calls▁begin｜>");
            put_tool_call(s, call);
        } else {
            put(s, "\n");
            put_tool_call(s, call);
            put_special(s, "<｜tool▁calls▁end｜>");
            put_special(s, "<｜end▁of▁sentence｜>");
        }
        state->any_call = true;
    }
}

static void put_message(struct sink *s, struct deepseek_v3 *state, const json_t *message)
{
    if (has_role(message, "user")) {
        state->in_outputs = false;
        put_special(s, "<｜User｜>");
        put_content(s, message);
    } else if (has_role(message, "assistant") && !has_content(message)) {
        put_tool_calls(s, state, json_object_get(message, "tool_calls"));
    } else if (has_role(message, "assistant")) {
        put_special(s, state->in_outputs ? "<｜tool▁outputs▁end｜>" : "<｜Assistant｜>");
        put_content(s, message);
        put_special(s, "<｜end▁of▁sentence｜>");
        state->in_outputs = false;
    } else if (has_role(message, "tool")) {
        if (state->any_output) put(s, "\n");
        else put_special(s, "<｜tool▁outputs▁begin｜>");
        put_special(s, "<｜tool▁output▁begin｜>");
        put_content(s, message);
        put_special(s, "<｜tool▁output▁end｜>");
        state->any_output = state->in_outputs = true;
    }
}

// DeepSeek-V3, December 2024. All system messages come first, wherever they stand. After a tool's
// output the model speaks at once, without a mark of its own.
static void render_deepseek_v3(struct sink *s, const struct chat *chat, const json_t *messages)
{
    struct deepseek_v3 state = {0};
    size_t i;
    const json_t *message;
    bool any_system = false;
    if (chat->bos != NULL) put_special(s, chat->bos);
    json_array_foreach(messages, i, message) {
        if (!has_role(message, "system")) continue;
        if (any_system) put(s, "\n\n");
        put_content(s, message);
        any_system = true;
    }
    json_array_foreach(messages, i, message) put_message(s, &state, message);
    put_special(s, state.in_outputs ? "<｜tool▁outputs▁end｜>" : "<｜Assistant｜>");
}

// By the XXH3-128 of chat_template.
static const struct {
    const char *hash;
    render_template *render;
} TEMPLATES[] = {
    {"4539344e06ec0b776878d9ac13b3ef51", render_deepseek_v3},
};

// --- load

static enum status parse_config(struct chat *chat, const json_t *root, struct error *e)
{
    const json_t *template = json_object_get(root, "chat_template");
    const json_t *bos = json_object_get(root, "bos_token");
    if (json_is_object(bos)) bos = json_object_get(bos, "content");
    if (bos != NULL && !json_is_null(bos) && !json_is_string(bos)) {
        return error_set(e, ERR_INPUT, "bad_tokenizer_config", "bos_token is no string");
    }
    if (json_is_string(bos) && json_string_length(bos) > 0) {
        chat->bos = strdup(json_string_value(bos));
        if (chat->bos == NULL) return error_set(e, ERR_NOMEM, "no_memory", "no memory");
    }
    if (!json_is_string(template)) {
        snprintf(chat->why_unknown, sizeof chat->why_unknown,
                 "tokenizer_config.json has no chat_template that is a string");
        return OK;
    }
    XXH128_hash_t hash = XXH3_128bits(json_string_value(template), json_string_length(template));
    char hex[33];
    snprintf(hex, sizeof hex, "%016llx%016llx", (unsigned long long) hash.high64,
             (unsigned long long) hash.low64);
    for (size_t i = 0; i < sizeof TEMPLATES / sizeof *TEMPLATES; i++) {
        if (strcmp(hex, TEMPLATES[i].hash) == 0) chat->render = TEMPLATES[i].render;
    }
    snprintf(chat->why_unknown, sizeof chat->why_unknown,
             "the chat_template of tokenizer_config.json (XXH3-128 %s) is none that Penstock knows",
             hex);
    return OK;
}

static enum status read_config(struct chat *chat, const char *path, struct error *e)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL && (errno == ENOENT || errno == ENOTDIR)) {
        snprintf(chat->why_unknown, sizeof chat->why_unknown, "there is no %.150s", path);
        return OK;
    }
    if (f == NULL) return error_set(e, ERR_IO, NULL, "cannot open %s: %m", path);
    char *text = malloc(CONFIG_JSON_MAX + 1);
    size_t n = text != NULL ? fread(text, 1, CONFIG_JSON_MAX + 1, f) : 0;
    bool failed = text == NULL || ferror(f) != 0;
    fclose(f);
    json_error_t why = {.text = "too long"};
    json_t *root = !failed && n <= CONFIG_JSON_MAX
                       ? json_loadb(text, n, JSON_REJECT_DUPLICATES, &why)
                       : NULL;
    free(text);
    enum status status;
    if (failed) {
        status = error_set(e, ERR_IO, NULL, "cannot read %s", path);
    } else if (!json_is_object(root)) {
        status = error_set(e, ERR_INPUT, "bad_tokenizer_config",
                           "%s is no JSON object: line %d: %s", path, why.line,
                           root != NULL ? "it is something else" : why.text);
    } else {
        status = parse_config(chat, root, e);
        if (status != OK) error_prefix(e, "%s", path);
    }
    json_decref(root);
    return status;
}

enum status chat_load(struct chat **chat, const char *dir, struct error *e)
{
    char path[PATH_MAX];
    *chat = calloc(1, sizeof **chat);
    if (*chat == NULL) return error_set(e, ERR_NOMEM, "no_memory", "no memory");
    if (snprintf(path, sizeof path, "%s/tokenizer_config.json", dir) >= (int) sizeof path) {
        chat_destroy(chat);
        return error_set(e, ERR_IO, NULL, "the path %.100s... is too long", dir);
    }
    enum status status = read_config(*chat, path, e);
    if (status != OK) chat_destroy(chat);
    return status;
}

void chat_destroy(struct chat **chat)
{
    if (*chat == NULL) return;
    free((*chat)->bos);
    free(*chat);
    *chat = NULL;
}

// --- messages

// "messages[3].content is 7, expected ...". `field` may be "".
static enum status refuse(struct error *e, size_t i, const char *field, const json_t *value,
                          const char *wants)
{
    char *text = value != NULL ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    enum status status =
        error_set(e, ERR_INPUT, "bad_messages", "messages[%zu]%s is %.60s, expected %s", i, field,
                  text != NULL ? text : "missing", wants);
    free(text);
    return status;
}

static enum status check_content(const json_t *content, size_t i, struct error *e)
{
    static const char wants[] = "a string or an array of {\"type\":\"text\",\"text\":...}";
    if (json_is_string(content)) return OK;
    if (!json_is_array(content)) return refuse(e, i, ".content", content, wants);
    size_t j;
    const json_t *part;
    json_array_foreach(content, j, part) {
        const char *type = json_string_value(json_object_get(part, "type"));
        bool text = type != NULL && strcmp(type, "text") == 0;
        char field[48];
        snprintf(field, sizeof field, ".content[%zu]", j);
        if (!text || !json_is_string(json_object_get(part, "text"))) {
            return refuse(e, i, field, part, "{\"type\":\"text\",\"text\":...}");
        }
    }
    return OK;
}

static enum status check_tool_calls(const json_t *calls, size_t i, struct error *e)
{
    if (json_array_size(calls) == 0) {
        return refuse(e, i, ".tool_calls", calls, "a non-empty array, as content is null");
    }
    size_t j;
    const json_t *call;
    json_array_foreach(calls, j, call) {
        const json_t *function = json_object_get(call, "function");
        char field[48];
        snprintf(field, sizeof field, ".tool_calls[%zu]", j);
        if (!json_is_string(json_object_get(call, "type")) ||
            !json_is_string(json_object_get(function, "name")) ||
            !json_is_string(json_object_get(function, "arguments"))) {
            return refuse(e, i, field, call,
                          "{\"type\":\"function\",\"function\":{\"name\":...,"
                          "\"arguments\":...}} of strings");
        }
    }
    return OK;
}

static enum status check_message(const json_t *message, size_t i, struct error *e)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    if (!json_is_object(message)) return refuse(e, i, "", message, "an object");
    const json_t *role = json_object_get(message, "role");
    bool known = false;
    for (size_t r = 0; r < sizeof roles / sizeof *roles; r++) {
        known = known || (json_is_string(role) && strcmp(json_string_value(role), roles[r]) == 0);
    }
    if (!known) {
        return refuse(e, i, ".role", role, "\"system\", \"user\", \"assistant\" or \"tool\"");
    }
    if (has_role(message, "assistant") && !has_content(message)) {
        return check_tool_calls(json_object_get(message, "tool_calls"), i, e);
    }
    return check_content(json_object_get(message, "content"), i, e);
}

static enum status check_messages(const struct chat *chat, const json_t *messages, struct error *e)
{
    if (chat->render == NULL) {
        return error_set(e, ERR_UNSUPPORTED, "template_unknown", "%s", chat->why_unknown);
    }
    if (json_array_size(messages) == 0) {
        return error_set(e, ERR_INPUT, "bad_messages", "messages is no array, or empty");
    }
    size_t i;
    const json_t *message;
    json_array_foreach(messages, i, message) try(check_message(message, i, e));
    return OK;
}

enum status chat_render(const struct chat *chat, const json_t *messages, struct buffer *text,
                        struct error *e)
{
    try(check_messages(chat, messages, e));
    struct sink s = {.text = text, .e = e};
    chat->render(&s, chat, messages);
    flush(&s);
    return s.status;
}

enum status chat_encode(const struct chat *chat, const struct tokenizer *t,
                        struct tokenizer_scratch *scratch, const json_t *messages,
                        struct token_ids *to, struct error *e)
{
    try(check_messages(chat, messages, e));
    struct buffer text;
    buffer_init(&text, WIRE_BODY_MAX);
    int before = to->n;
    struct sink s = {.text = &text, .t = t, .scratch = scratch, .to = to, .e = e};
    chat->render(&s, chat, messages);
    flush(&s);
    buffer_deinit(&text);
    if (s.status != OK) to->n = before;
    return s.status;
}
