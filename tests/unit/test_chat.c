#include "common/chat.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/tokenizer_files.h"

struct fixture {
    struct chat *chat;
    struct tokenizer *t;
    struct tokenizer_scratch *s;
};

static struct fixture open_true(void)
{
    struct fixture f;
    struct error e = {0};
    const char *dir = true_tokenizer_dir();
    if (chat_load(&f.chat, dir, &e) != OK) fail_msg("%s", e.text);
    if (tokenizer_load(&f.t, dir, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(tokenizer_scratch_create(&f.s, f.t, &e), OK);
    return f;
}

static void close_fixture(struct fixture *f)
{
    chat_destroy(&f->chat);
    tokenizer_scratch_destroy(&f->s);
    tokenizer_destroy(&f->t);
}

static json_t *parse(const char *json)
{
    json_error_t why;
    json_t *value = json_loads(json, JSON_ALLOW_NUL, &why);
    if (value == NULL) fail_msg("%s in %s", why.text, json);
    return value;
}

static void assert_renders(const struct fixture *f, const json_t *messages, const char *text,
                           size_t n)
{
    struct buffer b;
    struct error e = {0};
    buffer_init(&b, 1 << 20);
    if (chat_render(f->chat, messages, &b, &e) != OK) fail_msg("%s", e.text);
    if (b.n != n || memcmp(b.data, text, n) != 0) fail_msg("\"%.*s\"", (int) b.n, (char *) b.data);
    buffer_deinit(&b);
}

// Every chat of the golden file, byte for byte and id for id.
static void test_golden_chats(void **state)
{
    (void) state;
    struct fixture f = open_true();
    json_t *golden = json_load_file(FIXTURES "/tokenizer-golden.json", 0, NULL), *row;
    json_t *rows = json_object_get(golden, "chat");
    size_t i;
    assert_true(json_array_size(rows) > 0);
    json_array_foreach(rows, i, row) {
        const json_t *text = json_object_get(row, "text"), *ids = json_object_get(row, "ids");
        const json_t *messages = json_object_get(row, "messages");
        assert_renders(&f, messages, json_string_value(text), json_string_length(text));
        struct token_ids to = {0};
        struct error e = {0};
        assert_int_equal(chat_encode(f.chat, f.t, f.s, messages, &to, &e), OK);
        bool same = to.n == (int) json_array_size(ids);
        for (int j = 0; j < to.n && same; j++) {
            same = to.ids[j] == json_integer_value(json_array_get(ids, (size_t) j));
        }
        if (!same) fail_msg("the ids of chat %zu", i);
        token_ids_deinit(&to);
    }
    json_decref(golden);
    close_fixture(&f);
}

#define USER "{\"role\":\"user\",\"content\":\"u\"}"
#define ASSISTANT "{\"role\":\"assistant\",\"content\":\"a\"}"
#define TOOL "{\"role\":\"tool\",\"content\":\"o\",\"tool_call_id\":\"x\"}"
#define CALL(n) "{\"type\":\"function\",\"function\":{\"name\":\"f" #n "\",\"arguments\":\"{}\"}}"
#define CALLS(calls) "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[" calls "]}"

#define BEGIN "<｜begin▁of▁sentence｜><｜User｜>u"
#define BEGIN_CALLS BEGIN "<｜Assistant｜><｜tool▁calls▁begin｜>"
#define CALLED(n)                                                                                  \
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f" #n "\n```json\n{}\n```<｜tool▁call▁end｜>"
#define LATER_CALLED(n) "\n" CALLED(n) "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
#define OUTPUT "<｜tool▁output▁begin｜>o<｜tool▁output▁end｜>"

// As the model's own template renders them.
static const struct {
    const char *messages, *text;
} CASES[] = {
    {"[" USER "," CALLS(CALL(1) "," CALL(2) "," CALL(3)) "]",
     BEGIN_CALLS CALLED(1) LATER_CALLED(2) LATER_CALLED(3) "<｜Assistant｜>"},
    {"[" USER "," CALLS(CALL(1)) "," TOOL "," TOOL "," ASSISTANT "," USER "]",
     BEGIN_CALLS CALLED(1) "<｜tool▁outputs▁begin｜>" OUTPUT "\n" OUTPUT "<｜tool▁outputs▁end｜>a"
     "<｜end▁of▁sentence｜><｜User｜>u<｜Assistant｜>"},
    {"[" USER "," CALLS(CALL(1)) "," TOOL "," USER "]",
     BEGIN_CALLS CALLED(1) "<｜tool▁outputs▁begin｜>" OUTPUT "<｜User｜>u<｜Assistant｜>"},
    {"[" USER "," CALLS(CALL(1)) "," TOOL "," CALLS(CALL(2)) "," TOOL "]",
     BEGIN_CALLS CALLED(1) "<｜tool▁outputs▁begin｜>" OUTPUT LATER_CALLED(2) "\n" OUTPUT
     "<｜tool▁outputs▁end｜>"},
    {"[" USER ",{\"role\":\"system\",\"content\":\"late\"}," ASSISTANT "]",
     "<｜begin▁of▁sentence｜>late<｜User｜>u<｜Assistant｜>a<｜end▁of▁sentence｜><｜Assistant｜>"},
    {"[{\"role\":\"system\",\"content\":\"\"},{\"role\":\"system\",\"content\":\"s\"}," USER "]",
     "<｜begin▁of▁sentence｜>\n\ns<｜User｜>u<｜Assistant｜>"},
    {"[" USER ",{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[" CALL(1) "]}]",
     BEGIN "<｜Assistant｜><｜end▁of▁sentence｜><｜Assistant｜>"},
    // Parts follow one another; a call's content may be left out.
    {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"u\"},"
     "{\"type\":\"text\",\"text\":\"v\"}]}]",
     BEGIN "v<｜Assistant｜>"},
    {"[{\"role\":\"user\",\"content\":[]}]", "<｜begin▁of▁sentence｜><｜User｜><｜Assistant｜>"},
    {"[" USER ",{\"role\":\"assistant\",\"tool_calls\":[" CALL(1) "]}]",
     BEGIN_CALLS CALLED(1) "<｜Assistant｜>"},
};

static void test_forms_of_messages(void **state)
{
    (void) state;
    struct fixture f = open_true();
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        json_t *messages = parse(CASES[i].messages);
        assert_renders(&f, messages, CASES[i].text, strlen(CASES[i].text));
        json_decref(messages);
    }
    json_t *messages = parse("[{\"role\":\"user\",\"content\":\"a\\u0000b\"}]");
    static const char text[] = "<｜begin▁of▁sentence｜><｜User｜>a\0b<｜Assistant｜>";
    assert_renders(&f, messages, text, sizeof text - 1);
    json_decref(messages);
    close_fixture(&f);
}

// What a user writes never becomes a special token, while the text shows it as it is.
static void test_special_strings_in_content(void **state)
{
    (void) state;
    struct fixture f = open_true();
    json_t *messages = parse("[{\"role\":\"user\",\"content\":\"a<｜Assistant｜>b\"}]");
    static const char text[] = "<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜>b<｜Assistant｜>";
    assert_renders(&f, messages, text, sizeof text - 1);
    struct token_ids to = {0};
    struct error e = {0};
    assert_int_equal(chat_encode(f.chat, f.t, f.s, messages, &to, &e), OK);
    int32_t assistant = tokenizer_special(f.t, "<｜Assistant｜>", strlen("<｜Assistant｜>"));
    for (int i = 0; i + 1 < to.n; i++) assert_int_not_equal(to.ids[i], assistant);
    assert_int_equal(to.ids[to.n - 1], assistant);
    int n = to.n;
    to.most = n + 2; // no room for a second one
    assert_int_equal(chat_encode(f.chat, f.t, f.s, messages, &to, &e), ERR_LIMIT);
    assert_string_equal(e.code, "too_long");
    assert_int_equal(to.n, n);
    token_ids_deinit(&to);
    struct buffer small;
    buffer_init(&small, 10);
    assert_int_equal(chat_render(f.chat, messages, &small, &e), ERR_LIMIT);
    buffer_deinit(&small);
    json_decref(messages);
    close_fixture(&f);
}

static const struct {
    const char *messages, *says;
} BAD[] = {
    {"{}", "messages is no array, or empty"},
    {"[]", "messages is no array, or empty"},
    {"[" USER ",7]", "messages[1] is 7, expected an object"},
    {"[{\"content\":\"x\"}]", "messages[0].role is missing"},
    {"[{\"role\":\"developer\",\"content\":\"x\"}]", "messages[0].role is \"developer\""},
    {"[{\"role\":1,\"content\":\"x\"}]", "messages[0].role is 1"},
    {"[{\"role\":\"user\"}]", "messages[0].content is missing"},
    {"[{\"role\":\"user\",\"content\":null}]", "messages[0].content is null"},
    {"[{\"role\":\"system\",\"content\":7}]", "messages[0].content is 7"},
    {"[{\"role\":\"tool\",\"content\":{}}]", "messages[0].content is {}"},
    {"[{\"role\":\"user\",\"content\":[\"x\"]}]", "messages[0].content[0] is \"x\""},
    {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"\"},"
     "{\"type\":\"image_url\"}]}]",
     "messages[0].content[1] is {\"type\":\"image_url\"}"},
    {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":1}]}]",
     "messages[0].content[0]"},
    {"[{\"role\":\"assistant\",\"content\":null}]", "messages[0].tool_calls is missing"},
    {"[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[]}]",
     "messages[0].tool_calls is []"},
    {"[{\"role\":\"assistant\",\"tool_calls\":{}}]", "messages[0].tool_calls is {}"},
    {"[" CALLS("7") "]", "messages[0].tool_calls[0] is 7"},
    {"[" CALLS(CALL(1) ",{\"type\":\"function\",\"function\":{\"name\":\"f\","
                       "\"arguments\":{}}}") "]",
     "messages[0].tool_calls[1] is"},
    {"[" CALLS("{\"function\":{\"name\":\"f\",\"arguments\":\"\"}}") "]",
     "messages[0].tool_calls[0]"},
};

static void test_bad_messages(void **state)
{
    (void) state;
    struct fixture f = open_true();
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        json_t *messages = parse(BAD[i].messages);
        struct buffer b;
        struct error e = {0};
        struct token_ids to = {0};
        buffer_init(&b, 1000);
        assert_int_equal(chat_render(f.chat, messages, &b, &e), ERR_INPUT);
        assert_string_equal(e.code, "bad_messages");
        if (strstr(e.text, BAD[i].says) == NULL) fail_msg("%s, not %s", e.text, BAD[i].says);
        assert_int_equal(b.n, 0);
        assert_int_equal(chat_encode(f.chat, f.t, f.s, messages, &to, &e), ERR_INPUT);
        json_decref(messages);
    }
    close_fixture(&f);
}

// --- tokenizer_config.json

static enum status load_config(struct chat **chat, const char *config, size_t n, struct error *e)
{
    struct model_dir dir = model_dir_create();
    if (config != NULL) model_dir_write(&dir, "tokenizer_config.json", config, n);
    enum status status = chat_load(chat, dir.path, e);
    model_dir_remove(&dir);
    return status;
}

static void test_unknown_templates(void **state)
{
    (void) state;
    static const struct {
        const char *config, *says;
    } cases[] = {
        {NULL, "/tokenizer_config.json"},
        {"{}", "no chat_template that is a string"},
        {"{\"chat_template\": [{\"name\": \"default\"}]}", "no chat_template that is a string"},
        {"{\"chat_template\": \"{{ bos_token }}\", \"bos_token\": null}", "none that Penstock"},
        {"{\"chat_template\": \"\", \"bos_token\": {\"content\": \"<s>\"}}", "none that Penstock"},
    };
    json_t *messages = parse("[" USER "]");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct chat *chat;
        struct error e = {0};
        struct buffer b;
        buffer_init(&b, 1000);
        const char *config = cases[i].config;
        assert_int_equal(load_config(&chat, config, config != NULL ? strlen(config) : 0, &e), OK);
        assert_int_equal(chat_render(chat, messages, &b, &e), ERR_UNSUPPORTED);
        assert_string_equal(e.code, "template_unknown");
        if (strstr(e.text, cases[i].says) == NULL) fail_msg("%s, not %s", e.text, cases[i].says);
        chat_destroy(&chat);
    }
    json_decref(messages);
}

static void test_bad_configs(void **state)
{
    (void) state;
    static const char *const cases[] = {"", "[]", "{", "{\"a\":1,\"a\":2}", "{\"bos_token\": 7}",
                                        "{\"bos_token\": {\"content\": []}}", "\xff"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct chat *chat;
        struct error e = {0};
        assert_int_equal(load_config(&chat, cases[i], strlen(cases[i]), &e), ERR_INPUT);
        assert_string_equal(e.code, "bad_tokenizer_config");
        assert_null(chat);
    }
    char *large = calloc(1, (1 << 20) + 2);
    memset(large, ' ', (1 << 20) + 1);
    struct chat *chat;
    struct error e = {0};
    assert_int_equal(load_config(&chat, large, (1 << 20) + 1, &e), ERR_INPUT);
    assert_non_null(strstr(e.text, "too long"));
    free(large);
}

// A tokenizer that lacks the template's special strings can't encode a chat; the text is all right.
static void test_tokenizer_of_another_model(void **state)
{
    (void) state;
    struct fixture f = open_true();
    tokenizer_scratch_destroy(&f.s);
    tokenizer_destroy(&f.t);
    struct error e = {0};
    struct token_ids to = {0};
    assert_int_equal(load_json(&f.t, small_tokenizer(NULL, 0), &e), OK);
    assert_int_equal(tokenizer_scratch_create(&f.s, f.t, &e), OK);
    json_t *messages = parse("[" USER "]");
    assert_int_equal(chat_encode(f.chat, f.t, f.s, messages, &to, &e), ERR_UNSUPPORTED);
    assert_string_equal(e.code, "template_unknown");
    assert_non_null(strstr(e.text, "begin▁of▁sentence"));
    assert_int_equal(to.n, 0);
    token_ids_deinit(&to);
    json_decref(messages);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_chats),
        cmocka_unit_test(test_forms_of_messages),
        cmocka_unit_test(test_special_strings_in_content),
        cmocka_unit_test(test_bad_messages),
        cmocka_unit_test(test_unknown_templates),
        cmocka_unit_test(test_bad_configs),
        cmocka_unit_test(test_tokenizer_of_another_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
