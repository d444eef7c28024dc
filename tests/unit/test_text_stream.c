#include "common/text_stream.h"

#include "common/sampling.h"
#include "common/utf8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/tokenizer_files.h"

// Tokens are single bytes, but for these: "ab", "abc" and two bytes of "中" (e4 b8 ad).
static const char *const MERGES[] = {"a b", "ab c", "ä ¸"};
enum { AB = 256, ABC, CUT, SPECIAL, SPECIAL_E, PLAIN };

static struct tokenizer *tokenizer;

static int load(void **state)
{
    (void) state;
    struct error e = {0};
    return load_json(&tokenizer, small_tokenizer(MERGES, 3), &e) == OK ? 0 : -1;
}

static int unload(void **state)
{
    (void) state;
    tokenizer_destroy(&tokenizer);
    return 0;
}

static void test_text_as_tokens_come(void **state)
{
    (void) state;
    struct text_stream s;
    struct error e = {0};
    text_stream_init(&s, tokenizer, (const char *[]){"stop"}, (size_t[]){4}, 1);
    assert_int_equal(text_stream_token(&s, ABC, &e), OK);
    assert_true(s.text.n == 3 && s.ready == 3 && memcmp(s.text.data, "abc", 3) == 0);
    assert_int_equal(text_stream_token(&s, CUT, &e), OK); // two bytes of three
    assert_true(s.ready == 3);
    assert_int_equal(text_stream_token(&s, 0xad, &e), OK);
    assert_true(s.ready == 6 && memcmp(s.text.data, "abc中", 6) == 0);
    assert_int_equal(text_stream_token(&s, 's', &e), OK); // "stop" may begin here
    assert_true(s.ready == 6 && s.text.n == 7);
    assert_int_equal(text_stream_token(&s, SPECIAL, &e), OK); // no text
    assert_int_equal(text_stream_token(&s, 't', &e), OK);
    assert_int_equal(text_stream_token(&s, 'a', &e), OK); // it did not
    assert_true(s.ready == 9 && !s.stopped);
    for (const char *c = "stop"; *c != 0; c++) {
        assert_false(s.stopped);
        assert_int_equal(text_stream_token(&s, *c, &e), OK);
    }
    assert_true(s.stopped && s.ready == 9 && s.text.n == 9);
    assert_true(memcmp(s.text.data, "abc中sta", 9) == 0);
    text_stream_deinit(&s);
}

struct stream_case {
    const char *name;
    const char *stops[3];
    const char *bytes; // fed byte by byte
    const char *text;  // at the end
    size_t ready;      // before the end
    bool stopped;
};

static const struct stream_case CASES[] = {
    {"no stop", {NULL}, "plain", "plain", 5, false},
    {"stop at once", {"x"}, "x", "", 0, true},
    {"held back", {"END"}, "the EN", "the EN", 4, false},
    {"held back is minimal", {"aab"}, "aaa", "aaa", 1, false},
    {"a prefix of itself", {"aab"}, "aaab", "a", 1, true},
    {"longest prefix of several", {"abcd", "cx"}, "zabc", "zabc", 1, false},
    {"the first to be complete", {"abcd", "bc"}, "zabcd", "za", 2, true},
    {"of those that end together the longest", {"c", "abc", "bc"}, "zabc", "z", 1, true},
    {"stop of several bytes a character", {"。"}, "好。", "好", 3, true},
    {"a prefix of a stop's character", {"。"}, "好\xe3\x80", "好\xef\xbf\xbd", 3, false},
    {"lone continuation bytes", {NULL}, "a\x80\xbf" "b", "a\xef\xbf\xbd\xef\xbf\xbd" "b", 8, false},
    {"maximal part", {NULL}, "\xe4\xb8" "a", "\xef\xbf\xbd" "a", 4, false},
    {"overlong", {NULL}, "\xe0\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd", 9, false},
    {"surrogate", {NULL}, "\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd", 9, false},
    {"beyond U+10FFFF", {NULL}, "\xf4\x90" "a", "\xef\xbf\xbd\xef\xbf\xbd" "a", 7, false},
    {"a part, then a character", {NULL}, "\xf0\x9f\x98\xe4\xb8\xad", "\xef\xbf\xbd中", 6, false},
    {"cut at the end", {NULL}, "a\xf0\x9f\x98", "a\xef\xbf\xbd", 1, false},
    {"stop after broken bytes", {"b"}, "\xf0\x9f" "b", "\xef\xbf\xbd", 3, true},
    {"U+FFFD itself may stop", {"\xef\xbf\xbd"}, "a\xff", "a", 1, true},
};

static void test_cases(void **state)
{
    (void) state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        const struct stream_case *c = &CASES[i];
        struct text_stream s;
        struct error e = {0};
        size_t bytes[3];
        int n = 0;
        for (; n < 3 && c->stops[n] != NULL; n++) bytes[n] = strlen(c->stops[n]);
        text_stream_init(&s, tokenizer, c->stops, bytes, n);
        for (const char *b = c->bytes; *b != 0 && !s.stopped; b++) {
            assert_int_equal(text_stream_token(&s, (uint8_t) *b, &e), OK);
        }
        size_t ready = s.ready;
        assert_int_equal(text_stream_finish(&s, &e), OK);
        bool same = s.text.n == strlen(c->text) && memcmp(s.text.data, c->text, s.text.n) == 0;
        if (!same || ready != c->ready || s.stopped != c->stopped || s.ready != s.text.n) {
            print_message("# %s: \"%.*s\", %zu ready\n", c->name, (int) s.text.n,
                          (const char *) s.text.data, ready);
            fail();
        }
        text_stream_deinit(&s);
    }
}

// A stop string that only the end reveals: the incomplete character before it becomes U+FFFD.
static void test_finish_completes_a_stop(void **state)
{
    (void) state;
    struct text_stream s;
    struct error e = {0};
    text_stream_init(&s, tokenizer, (const char *[]){"b\xef\xbf\xbd"}, (size_t[]){4}, 1);
    assert_int_equal(text_stream_token(&s, AB, &e), OK);
    assert_int_equal(text_stream_token(&s, 0xe4, &e), OK);
    assert_true(!s.stopped && s.ready == 1);
    assert_int_equal(text_stream_finish(&s, &e), OK);
    assert_true(s.stopped && s.text.n == 1 && s.ready == 1);
    text_stream_deinit(&s);
}

static void test_tokens_without_text(void **state)
{
    (void) state;
    struct text_stream s;
    struct error e = {0};
    text_stream_init(&s, NULL, NULL, NULL, 0); // no tokenizer
    assert_int_equal(text_stream_token(&s, 7, &e), OK);
    assert_int_equal(text_stream_finish(&s, &e), OK);
    assert_true(s.text.n == 0 && s.ready == 0 && !s.stopped);
    text_stream_deinit(&s);
    text_stream_init(&s, tokenizer, NULL, NULL, 0);
    static const int32_t ids[] = {-1, 100000, SPECIAL, SPECIAL_E};
    for (int i = 0; i < 4; i++) assert_int_equal(text_stream_token(&s, ids[i], &e), OK);
    assert_true(s.text.n == 0);
    assert_int_equal(text_stream_token(&s, PLAIN, &e), OK); // added, but ordinary to decoders
    assert_true(s.text.n == 3 && memcmp(s.text.data, "[x]", 3) == 0);
    text_stream_deinit(&s);
}

// Against the definition: the repaired bytes, cut before the stop string that is complete first.
// What is ready never grows past that, is never taken back, and holds back nothing that it need
// not.
static void test_random_bytes(void **state)
{
    (void) state;
    static const char alphabet[] = "aab\xe4\xb8\xad\xf0\x9f\x98\x80";
    static const char *const stops[] = {"abaab", "a中", "bb", "中😀"};
    static const size_t stop_bytes[] = {5, 4, 2, 7};
    for (uint64_t seed = 0; seed < 3000; seed++) {
        uint8_t bytes[24];
        int n_stops = (int) (seed % 5), n = (int) (sampling_random(seed, 0) % sizeof bytes);
        struct text_stream s;
        struct buffer whole;
        buffer_init(&whole, 1000);
        text_stream_init(&s, tokenizer, stops, stop_bytes, n_stops);
        size_t ready = 0;
        for (int i = 0; i < n; i++) {
            uint64_t r = sampling_random(seed, (uint64_t) i + 1);
            bytes[i] = (uint8_t) alphabet[r % (sizeof alphabet - 1)];
        }
        for (int i = 0; i < n && !s.stopped; i++) {
            assert_int_equal(text_stream_token(&s, bytes[i], NULL), OK);
            assert_true(s.ready >= ready && s.ready <= s.text.n);
            assert_int_equal(utf8_valid_prefix(s.text.data, s.ready), s.ready);
            ready = s.ready;
        }
        assert_int_equal(text_stream_finish(&s, NULL), OK);
        utf8_repair(&whole, bytes, (size_t) n);
        size_t cut = whole.n, end = whole.n + 1;
        for (int i = 0; i < n_stops && whole.n > 0; i++) {
            uint8_t *at = memmem(whole.data, whole.n, stops[i], stop_bytes[i]);
            if (at == NULL) continue;
            size_t stop_end = (size_t) (at - whole.data) + stop_bytes[i];
            if (stop_end > end || (stop_end == end && stop_end - stop_bytes[i] > cut)) continue;
            end = stop_end;
            cut = end - stop_bytes[i];
        }
        assert_int_equal(s.text.n, cut);
        assert_int_equal(s.stopped, end <= whole.n);
        if (cut > 0) assert_memory_equal(s.text.data, whole.data, cut);
        buffer_deinit(&whole);
        text_stream_deinit(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_as_tokens_come), cmocka_unit_test(test_cases),
        cmocka_unit_test(test_finish_completes_a_stop), cmocka_unit_test(test_tokens_without_text),
        cmocka_unit_test(test_random_bytes),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
