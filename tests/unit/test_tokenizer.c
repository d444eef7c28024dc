#include "common/tokenizer.h"

#include "common/utf8.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/tokenizer_files.h"

// Every row of the golden file, text to ids and ids to text.
static void test_golden_rows(void **state)
{
    (void) state;
    struct tokenizer *t;
    struct tokenizer_scratch *s;
    struct error e = {0};
    assert_int_equal(tokenizer_load(&t, true_tokenizer_dir(), &e), OK);
    assert_int_equal(tokenizer_scratch_create(&s, t, &e), OK);
    json_t *golden = json_load_file(FIXTURES "/tokenizer-golden.json", 0, NULL), *row;
    json_t *rows = json_object_get(golden, "tokenizer");
    size_t i;
    assert_true(json_array_size(rows) > 0);
    json_array_foreach(rows, i, row) {
        const json_t *text = json_object_get(row, "text"), *ids = json_object_get(row, "ids");
        const json_t *decoded = json_object_get(row, "decoded");
        struct token_ids to = {0};
        struct buffer bytes, back;
        buffer_init(&bytes, 1 << 20);
        buffer_init(&back, 1 << 20);
        assert_int_equal(tokenizer_encode(t, s, json_string_value(text), json_string_length(text),
                                          true, &to, &e), OK);
        bool same = to.n == (int) json_array_size(ids);
        for (int j = 0; j < to.n; j++) {
            size_t n;
            bool special;
            same = same && to.ids[j] == json_integer_value(json_array_get(ids, (size_t) j));
            const char *token = tokenizer_bytes(t, to.ids[j], &n, &special);
            buffer_append(&bytes, token, n);
        }
        utf8_repair(&back, bytes.data, bytes.n);
        same = same && back.n == json_string_length(decoded) &&
               (back.n == 0 || memcmp(back.data, json_string_value(decoded), back.n) == 0);
        if (!same) print_message("# row %zu: \"%.60s\"\n", i, json_string_value(text));
        assert_true(same);
        token_ids_deinit(&to);
        buffer_deinit(&bytes);
        buffer_deinit(&back);
    }
    json_decref(golden);
    tokenizer_scratch_destroy(&s);
    tokenizer_destroy(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden_rows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
