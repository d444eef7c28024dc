// Long texts as chunks: bounds, sizes, overlap, and what holds of any text.
#include "common/split.h"

#include "common/limits.h"
#include "tests/support/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/tokenizer_files.h"

static struct tokenizer *tokenizer;
static struct tokenizer_scratch *scratch;

static int start(void **state)
{
    (void) state;
    static const char *const merges[] = {"a b", "ab c", "ä ¸", "Ġ Ġ"};
    struct error e;
    assert_int_equal(load_json(&tokenizer, small_tokenizer(merges, 4), &e), OK);
    assert_int_equal(tokenizer_scratch_create(&scratch, tokenizer, &e), OK);
    return 0;
}

static int stop(void **state)
{
    (void) state;
    tokenizer_scratch_destroy(&scratch);
    tokenizer_destroy(&tokenizer);
    return 0;
}

// Counts a chunk `times` over, as a prompt that holds it so often.
struct counter {
    int times;
    size_t n_bytes; // counted in all
};

static enum status count(void *arg, const char *text, size_t n, int *n_tokens, struct error *e)
{
    struct counter *c = arg;
    struct token_ids ids = {0};
    c->n_bytes += n;
    enum status status = tokenizer_encode(tokenizer, scratch, text, n, false, &ids, e);
    *n_tokens = ids.n * c->times;
    token_ids_deinit(&ids);
    return status;
}

static enum status split(struct split_chunks *to, struct counter *c, const char *text, size_t n,
                         int chunk_tokens, int overlap_tokens, struct error *e)
{
    const struct split_options o = {.tokenizer = tokenizer,
                                    .scratch = scratch,
                                    .chunk_tokens = chunk_tokens,
                                    .overlap_tokens = overlap_tokens,
                                    .most = 100000,
                                    .count = count,
                                    .arg = c};
    *to = (struct split_chunks){0};
    *e = (struct error){0};
    return split_text(to, &o, text, n, e);
}

static void expect(const char *text, int chunk_tokens, int overlap_tokens, int n,
                   const char *const *wanted)
{
    struct split_chunks c;
    struct error e;
    struct counter counter = {.times = 1};
    if (split(&c, &counter, text, strlen(text), chunk_tokens, overlap_tokens, &e) != OK) {
        fail_msg("%s", e.text);
    }
    for (int i = 0; i < c.n && i < n; i++) {
        size_t bytes = c.at[i].end - c.at[i].begin;
        if (strlen(wanted[i]) != bytes || memcmp(text + c.at[i].begin, wanted[i], bytes) != 0) {
            fail_msg("chunk %d is \"%.*s\", not \"%s\"", i, (int) bytes, text + c.at[i].begin,
                     wanted[i]);
        }
    }
    assert_int_equal(c.n, n);
    split_chunks_deinit(&c);
}

#define expect(text, chunk, overlap, ...)                                                          \
    expect(text, chunk, overlap,                                                                   \
           sizeof((const char *const[]){__VA_ARGS__}) / sizeof(const char *),                      \
           (const char *const[]){__VA_ARGS__})

static void splits_behind_sentences(void **state)
{
    (void) state;
    expect("One two. Three four! Five six? Seven.", 22, 0, "One two. Three four! ",
           "Five six? Seven.");
    expect("short", 22, 0, "short");
}

static void the_best_bound_wins(void **state)
{
    (void) state;
    // A paragraph before a later sentence, a sentence before a later word, a word before a letter.
    expect("Aa bb cc dd.\n\nEe. Ff gg hh ii jj", 20, 0, "Aa bb cc dd.\n\n", "Ee. Ff gg hh ii jj");
    expect("Aa bb cc dd. Ee ff gg hh ii.", 18, 0, "Aa bb cc dd. ", "Ee ff gg hh ii.");
    expect("Aaaaa bbbbb ccccc", 14, 0, "Aaaaa bbbbb ", "ccccc");
    expect("aaaaaaaaaaaaaaaaaaaa", 8, 0, "aaaaaaaa", "aaaaaaaa", "aaaa");
    expect("line one\nline two\nline three\n", 20, 0, "line one\nline two\n", "line three\n");
    // Not in the first half, unless there is nothing else.
    expect("A b. Cccccccccc dddddddd", 20, 0, "A b. Cccccccccc ", "dddddddd");
}

static void overlaps_begin_at_sentences(void **state)
{
    (void) state;
    expect("One two three. Four. Five six seven. Eight.", 22, 8, "One two three. Four. ",
           "Four. Five six seven. ", "seven. Eight.");
    expect("Aaa bbb ccc ddd eee fff", 16, 6, "Aaa bbb ccc ddd ", "ddd eee fff");
    expect("一二三四五六", 12, 3, "一二三四", "四五六"); // no words
    expect("aaaaaaaaaaaa", 8, 2, "aaaaaaaa", "aaaa");   // not within one
}

static void bounds(void **state)
{
    (void) state;
    static const struct {
        const char *before, *after;
        enum split_bound bound;
    } cases[] = {
        {"The end. ", "Next", SPLIT_SENTENCE},
        {"Really?! ", "Next", SPLIT_SENTENCE},
        {"He said \"no.\" ", "Next", SPLIT_SENTENCE},
        {"(It ended.) ", "Next", SPLIT_SENTENCE},
        {"to be ... ", "Continued", SPLIT_SENTENCE},
        {"a line\n", "b", SPLIT_SENTENCE},
        {"你好。", "世界", SPLIT_SENTENCE},
        {"真的？！", "世界", SPLIT_SENTENCE},
        {"他说「好。」", "世界", SPLIT_SENTENCE},
        {"paragraph.\n\n", "Next", SPLIT_PARAGRAPH},
        {"paragraph\r\n\r\n", "Next", SPLIT_PARAGRAPH},
        {"Dr. ", "Who", SPLIT_WORD},
        {"e.g. ", "This", SPLIT_WORD},
        {"the U.S. ", "Army", SPLIT_WORD},
        {"J. ", "Doe", SPLIT_WORD},
        {"etc. ", "and so on", SPLIT_WORD}, // goes on in small letters
        {"1. ", "First", SPLIT_WORD},
        {"in 1984. ", "Then", SPLIT_SENTENCE},
        {"two ", "words", SPLIT_WORD},
        {"3.", "14", SPLIT_CHARACTER},
        {"www.", "example", SPLIT_CHARACTER},
        {"The end.", " Next", SPLIT_CHARACTER}, // blanks stay with what they follow
        {"wor", "d", SPLIT_CHARACTER},
        {"\xe4\xb8", "\xad", SPLIT_NONE},
        {". ", "A", SPLIT_SENTENCE},
        {"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"", "A",
         SPLIT_CHARACTER},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[128];
        int n = snprintf(text, sizeof text, "%s%s", cases[i].before, cases[i].after);
        enum split_bound got = split_bound_at(text, (size_t) n, strlen(cases[i].before));
        if (got != cases[i].bound) fail_msg("\"%s\": %d, not %d", text, got, cases[i].bound);
    }
}

// --- any text

static void check_chunks(const struct split_chunks *c, const char *text, size_t n,
                         int chunk_tokens, int overlap_tokens, int times)
{
    struct error e;
    assert_true(c->n > 0);
    assert_int_equal(c->at[0].begin, 0);
    assert_int_equal(c->at[c->n - 1].end, n);
    for (int i = 0; i < c->n; i++) {
        size_t begin = c->at[i].begin, end = c->at[i].end;
        struct counter counter = {.times = times};
        int got = 0;
        assert_true(begin < end && end <= n);
        assert_true(end == n || split_bound_at(text, n, end) != SPLIT_NONE);
        assert_true(begin == 0 || split_bound_at(text, n, begin) != SPLIT_NONE);
        assert_int_equal(count(&counter, text + begin, end - begin, &got, &e), OK);
        assert_true(got <= chunk_tokens);
        if (i == 0) continue;
        size_t before = c->at[i - 1].begin, until = c->at[i - 1].end;
        assert_true(begin <= until);                                  // nothing is left out
        assert_true(end > until);                                     // and something is new
        assert_true(begin >= before + (until - before) / 2);          // at least half stays behind
        assert_true(overlap_tokens > 0 || begin == until);
        if (begin == until) continue;
        assert_int_equal(count(&counter, text + begin, until - begin, &got, &e), OK);
        // Cut within a token, bytes that were merged count alone.
        assert_true(got <= (overlap_tokens + 3) * times * 2);
    }
}

// A text of words, sentences, paragraphs, wide characters and blanks, by chance.
static size_t random_text(char *to, size_t room, uint64_t *seed)
{
    static const char *const parts[] = {
        "a", "abc ", "abab", " ", "  ", ". ", "! ", "? ", "\n", "\n\n", ".\n\n", "中文", "。",
        "！", "😀", "é", "\"", "3.14", "e.g. ", "Zz ", "1", "，", "\t", "\r\n", "」", "word ",
        "abcabcabcabcabcabcabcabcabcabcabcabcabc",
    };
    size_t n = 0;
    uint32_t kinds = 1 + bytes_random(seed) % (sizeof parts / sizeof *parts);
    uint32_t first = bytes_random(seed) % (sizeof parts / sizeof *parts);
    size_t most = 1 + bytes_random(seed) % (room - 64);
    while (n < most) {
        uint32_t i = (first + bytes_random(seed) % kinds) % (sizeof parts / sizeof *parts);
        memcpy(to + n, parts[i], strlen(parts[i]));
        n += strlen(parts[i]);
    }
    return n;
}

static void holds_of_any_text(void **state)
{
    (void) state;
    char text[4096];
    for (uint64_t round = 1; round <= 3000; round++) {
        uint64_t seed = round;
        size_t n = random_text(text, sizeof text, &seed);
        int times = 1 + (int) (bytes_random(&seed) % 3);
        int chunk_tokens = 12 + (int) (bytes_random(&seed) % 200);
        int overlap = (int) (bytes_random(&seed) % (uint32_t) (chunk_tokens / 2));
        struct counter counter = {.times = times};
        struct split_chunks c;
        struct error e;
        // It ends where its allocation ends.
        char *copy = (char *) bytes_copy(text, n);
        if (split(&c, &counter, copy, n, chunk_tokens, overlap, &e) != OK) {
            fail_msg("seed %d: %s", (int) round, e.text);
        }
        check_chunks(&c, copy, n, chunk_tokens, overlap, times);
        split_chunks_deinit(&c);
        free(copy);
    }
}

// Whatever the text is made of, its bytes are counted a few times over and not more.
static void time_is_linear(void **state)
{
    (void) state;
    static const char *const units[] = {"Words and words. ", "a", " ", "\n", "\"", ".", "中。",
                                        "abc", "😀", "no end of it, "};
    size_t n = 64 * 1024;
    char *text = malloc(n);
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        size_t unit = strlen(units[u]), bytes = n / unit * unit;
        for (size_t i = 0; i < bytes; i++) text[i] = units[u][i % unit];
        for (int times = 1; times <= 3; times++) {
            struct counter counter = {.times = times};
            struct split_chunks c;
            struct error e;
            assert_int_equal(split(&c, &counter, text, bytes, 400, 190, &e), OK);
            check_chunks(&c, text, bytes, 400, 190, times);
            if (counter.n_bytes > 10 * bytes) {
                fail_msg("\"%s\" x %d: %zu bytes of %zu were counted", units[u], times,
                         counter.n_bytes, bytes);
            }
            split_chunks_deinit(&c);
        }
    }
    free(text);
}

static void refusals(void **state)
{
    (void) state;
    struct counter counter = {.times = 1};
    struct split_chunks c;
    struct error e;
    assert_int_equal(split(&c, &counter, "ab\xff", 3, 10, 0, &e), ERR_INPUT);
    assert_string_equal(e.code, "bad_utf8");
    split_chunks_deinit(&c);
    assert_int_equal(split(&c, &counter, "a😀", strlen("a😀"), 3, 0, &e), ERR_INPUT);
    assert_string_equal(e.code, "bad_chunk");
    assert_non_null(strstr(e.text, "byte 1 takes 4 tokens, but a chunk may have 3"));
    split_chunks_deinit(&c);
    const struct split_options o = {.tokenizer = tokenizer, .scratch = scratch, .chunk_tokens = 4,
                                    .most = 3, .count = count, .arg = &counter};
    c = (struct split_chunks){0};
    assert_int_equal(split_text(&c, &o, "aaaaaaaaaaaa", 12, &e), OK);
    assert_int_equal(c.n, 3);
    c.n = 0;
    assert_int_equal(split_text(&c, &o, "aaaaaaaaaaaaa", 13, &e), ERR_LIMIT);
    assert_string_equal(e.code, "too_many_chunks");
    split_chunks_deinit(&c);
}

// With the tokenizer that DeepSeek-V3 has, where it is at hand.
static void with_the_true_tokenizer(void **state)
{
    (void) state;
    struct tokenizer *own = tokenizer;
    struct tokenizer_scratch *own_scratch = scratch;
    struct error e;
    struct split_chunks c;
    struct counter counter = {.times = 1};
    size_t n;
    char *text = bytes_file(SOURCE_DIR "/common/PROTOCOL.md", &n);
    const char *dir = true_tokenizer_dir();
    assert_int_equal(tokenizer_load(&tokenizer, dir, &e), OK);
    assert_int_equal(tokenizer_scratch_create(&scratch, tokenizer, &e), OK);
    assert_int_equal(split(&c, &counter, text, n, 500, 64, &e), OK);
    check_chunks(&c, text, n, 500, 64, 1);
    assert_true(counter.n_bytes < 3 * n);
    split_chunks_deinit(&c);
    free(text);
    stop(state);
    tokenizer = own;
    scratch = own_scratch;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(splits_behind_sentences),
        cmocka_unit_test(the_best_bound_wins),
        cmocka_unit_test(overlaps_begin_at_sentences),
        cmocka_unit_test(bounds),
        cmocka_unit_test(holds_of_any_text),
        cmocka_unit_test(time_is_linear),
        cmocka_unit_test(refusals),
        cmocka_unit_test(with_the_true_tokenizer),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
