#include "common/tokenizer.h"

#include "common/limits.h"
#include "common/sampling.h"
#include "common/utf8.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/tokenizer_files.h"

struct fixture {
    struct tokenizer *t;
    struct tokenizer_scratch *s;
};

static struct fixture open_json(json_t *root)
{
    struct fixture f;
    struct error e = {0};
    if (load_json(&f.t, root, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(tokenizer_scratch_create(&f.s, f.t, &e), OK);
    return f;
}

static struct fixture open_true(void)
{
    struct fixture f;
    struct error e = {0};
    if (tokenizer_load(&f.t, true_tokenizer_dir(), &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(tokenizer_scratch_create(&f.s, f.t, &e), OK);
    return f;
}

static void close_fixture(struct fixture *f)
{
    tokenizer_scratch_destroy(&f->s);
    tokenizer_destroy(&f->t);
    assert_null(f->t);
}

static struct token_ids encode(const struct fixture *f, const char *text, size_t n, bool special)
{
    struct token_ids to = {0};
    struct error e = {0};
    if (tokenizer_encode(f->t, f->s, text, n, special, &to, &e) != OK) fail_msg("%s", e.text);
    return to;
}

// The bytes of all ids.
static struct buffer bytes_of(const struct fixture *f, const struct token_ids *ids)
{
    struct buffer b;
    buffer_init(&b, 64 << 20);
    for (int i = 0; i < ids->n; i++) {
        size_t n;
        bool special;
        const char *bytes = tokenizer_bytes(f->t, ids->ids[i], &n, &special);
        buffer_append(&b, bytes, n);
    }
    return b;
}

static void assert_ids(const struct token_ids *to, const int32_t *ids, int n)
{
    assert_int_equal(to->n, n);
    if (n > 0) assert_memory_equal(to->ids, ids, (size_t) n * sizeof *ids);
}

// --- use

static const char *const MERGES[] = {"a b", "ab c", "Ġ a", "Ġa b"};
enum { AB = 256, ABC, SPACE_A, SPACE_AB, BEGIN, END, PLAIN };

static void test_text_to_ids_and_back(void **state)
{
    (void) state;
    struct fixture f = open_json(small_tokenizer(MERGES, 4));
    struct token_ids to = {0};
    struct error e = {0};
    const char text[] = "<s>abcab xab";
    assert_int_equal(tokenizer_encode(f.t, f.s, text, strlen(text), true, &to, &e), OK);
    assert_ids(&to, (int32_t[]){BEGIN, ABC, AB, ' ', 'x', AB}, 6);
    struct buffer back = bytes_of(&f, &to);
    assert_true(back.n == strlen(text) && memcmp(back.data, text, back.n) == 0);
    buffer_deinit(&back);

    to.n = 1; // more may be appended to what is there
    assert_int_equal(tokenizer_encode(f.t, f.s, "<s>", 3, false, &to, &e), OK);
    assert_ids(&to, (int32_t[]){BEGIN, '<', 's', '>'}, 4);
    token_ids_deinit(&to);

    size_t n;
    bool special;
    assert_int_equal(tokenizer_n_ids(f.t), PLAIN + 1);
    assert_int_equal(tokenizer_special(f.t, "<e>", 3), END);
    assert_int_equal(tokenizer_special(f.t, "[x]", 3), PLAIN);
    assert_int_equal(tokenizer_special(f.t, "ab", 2), -1);
    assert_true(memcmp(tokenizer_bytes(f.t, SPACE_AB, &n, &special), " ab", 3) == 0);
    assert_true(n == 3 && !special);
    assert_non_null(tokenizer_bytes(f.t, END, &n, &special));
    assert_true(n == 3 && special);
    assert_non_null(tokenizer_bytes(f.t, PLAIN, &n, &special));
    assert_true(n == 3 && !special);
    assert_null(tokenizer_bytes(f.t, PLAIN + 1, &n, &special));
    assert_true(n == 0 && !special);
    assert_null(tokenizer_bytes(f.t, -1, &n, &special));
    close_fixture(&f);
}

// --- the true tokenizer

// Every row of the golden file, text to ids and ids to text.
static void test_golden_rows(void **state)
{
    (void) state;
    struct fixture f = open_true();
    json_t *golden = json_load_file(FIXTURES "/tokenizer-golden.json", 0, NULL), *row;
    json_t *rows = json_object_get(golden, "tokenizer");
    size_t i;
    assert_true(json_array_size(rows) > 0);
    json_array_foreach(rows, i, row) {
        const json_t *text = json_object_get(row, "text"), *ids = json_object_get(row, "ids");
        const json_t *decoded = json_object_get(row, "decoded");
        struct token_ids to = encode(&f, json_string_value(text), json_string_length(text), true);
        struct buffer bytes = bytes_of(&f, &to), back;
        bool same = to.n == (int) json_array_size(ids);
        for (int j = 0; j < to.n && same; j++) {
            same = to.ids[j] == json_integer_value(json_array_get(ids, (size_t) j));
        }
        buffer_init(&back, 1 << 20);
        utf8_repair(&back, bytes.data, bytes.n);
        same = same && back.n == json_string_length(decoded) &&
               (back.n == 0 || memcmp(back.data, json_string_value(decoded), back.n) == 0);
        if (!same) fail_msg("row %zu: \"%.60s\"", i, json_string_value(text));
        token_ids_deinit(&to);
        buffer_deinit(&bytes);
        buffer_deinit(&back);
    }
    json_decref(golden);
    close_fixture(&f);
}

// A character of random length; now and then a special string, whole or begun.
static size_t random_text(char *to, size_t most, uint64_t seed)
{
    static const char *const odd[] = {"<｜User｜>", "<｜", "<s>", "<", "[x]", "\r\n", "  ", "🇺🇳", "é"};
    static const uint32_t ends[] = {0x7f, 0x7ff, 0xd7ff, 0x10ffff};
    size_t n = 0;
    for (uint64_t i = 0; n + 16 < most; i += 2) {
        uint64_t r = sampling_random(seed, i), kind = sampling_random(seed, i + 1) % 16;
        if (kind >= 14) {
            const char *text = odd[r % (sizeof odd / sizeof *odd)];
            memcpy(to + n, text, strlen(text));
            n += strlen(text);
            continue;
        }
        uint32_t c = (uint32_t) (r % ends[kind < 8 ? 0 : kind % 4]) + 1;
        if (c >= 0xd800 && c < 0xe000) c = 'x';
        if (c < 0x80) {
            to[n++] = (char) c;
        } else if (c < 0x800) {
            to[n++] = (char) (0xc0 | c >> 6);
        } else if (c < 0x10000) {
            to[n++] = (char) (0xe0 | c >> 12);
        } else {
            to[n++] = (char) (0xf0 | c >> 18);
            to[n++] = (char) (0x80 | (c >> 12 & 0x3f));
        }
        if (c >= 0x800) to[n++] = (char) (0x80 | (c >> 6 & 0x3f));
        if (c >= 0x80) to[n++] = (char) (0x80 | (c & 0x3f));
    }
    return n;
}

// Any text comes back, and special strings cut it: what stands before and behind is encoded as
// alone.
static void check_random_texts(const struct fixture *f, const char *special, int n_texts)
{
    for (int i = 0; i < n_texts; i++) {
        char text[512], joined[1200];
        size_t n = random_text(text, sizeof text, (uint64_t) i), n_special = strlen(special);
        for (int with = 0; with < 2; with++) {
            struct token_ids to = encode(f, text, n, with);
            struct buffer back = bytes_of(f, &to);
            assert_true(back.n == n && memcmp(back.data, text, n) == 0);
            memcpy(joined, text, n);
            memcpy(joined + n, special, n_special);
            memcpy(joined + n + n_special, text, n);
            struct token_ids both = encode(f, joined, 2 * n + n_special, true);
            if (with) {
                assert_int_equal(both.n, 2 * to.n + 1);
                assert_int_equal(both.ids[to.n], tokenizer_special(f->t, special, n_special));
                assert_memory_equal(both.ids, to.ids, (size_t) to.n * sizeof *to.ids);
                assert_memory_equal(both.ids + to.n + 1, to.ids, (size_t) to.n * sizeof *to.ids);
            }
            token_ids_deinit(&both);
            token_ids_deinit(&to);
            buffer_deinit(&back);
        }
    }
}

static void test_random_texts(void **state)
{
    (void) state;
    struct fixture f = open_json(small_tokenizer(MERGES, 4));
    check_random_texts(&f, "<e>", 2000);
    close_fixture(&f);
}

static void test_random_texts_of_the_true_one(void **state)
{
    (void) state;
    struct fixture f = open_true();
    check_random_texts(&f, "<｜end▁of▁sentence｜>", 2000);
    close_fixture(&f);
}

// --- merges, against their definition

struct definition {
    int32_t left[40], right[40], merged[40];
    int n;
};

// Merges the lowest rank, and of equal ones the leftmost, until none is left.
static int by_definition(const struct definition *d, int32_t *ids, int n)
{
    for (;;) {
        int best = d->n, at = -1;
        for (int i = 0; i + 1 < n; i++) {
            for (int rank = 0; rank < best; rank++) {
                if (d->left[rank] != ids[i] || d->right[rank] != ids[i + 1]) continue;
                best = rank;
                at = i;
            }
        }
        if (at < 0) return n;
        ids[at] = d->merged[best];
        memmove(ids + at + 1, ids + at + 2, (size_t) (n - at - 2) * sizeof *ids);
        n--;
    }
}

static void check_definition(const struct fixture *f, const struct definition *d, const char *text,
                             int n)
{
    int32_t *ids = malloc((size_t) n * sizeof *ids);
    assert_non_null(ids);
    for (int i = 0; i < n; i++) ids[i] = text[i];
    int n_ids = by_definition(d, ids, n);
    struct token_ids to = encode(f, text, (size_t) n, true);
    assert_ids(&to, ids, n_ids);
    token_ids_deinit(&to);
    free(ids);
}

// Up to 40 random merges over three letters, in random order; as text for the file and as ids.
static int random_merges(uint64_t seed, char texts[40][128], struct definition *d)
{
    static char tokens[43][64];
    int n_tokens = 3, n = 0;
    for (int i = 0; i < 3; i++) snprintf(tokens[i], sizeof *tokens, "%c", 'a' + i);
    for (uint64_t i = 0; n < 40 && i < 200; i++) {
        int l = (int) (sampling_random(seed, 2 * i) % (uint64_t) n_tokens);
        int r = (int) (sampling_random(seed, 2 * i + 1) % (uint64_t) n_tokens);
        char merged[128];
        snprintf(merged, sizeof merged, "%s%s", tokens[l], tokens[r]);
        if (strlen(merged) > 40) continue;
        int same = 0;
        while (same < n_tokens && strcmp(tokens[same], merged) != 0) same++;
        bool again = false;
        for (int j = 0; j < n; j++) {
            again = again || (d->left[j] == l && d->right[j] == r);
        }
        if (again) continue;
        if (same == n_tokens) memcpy(tokens[n_tokens++], merged, strlen(merged) + 1);
        snprintf(texts[n], sizeof *texts, "%s %s", tokens[l], tokens[r]);
        d->left[n] = l;
        d->right[n] = r;
        d->merged[n++] = same;
    }
    d->n = n;
    return n;
}

static int32_t token_id(const struct fixture *f, const char *text, size_t n)
{
    for (int32_t id = 0; id < tokenizer_n_ids(f->t); id++) {
        size_t length;
        bool special;
        const char *bytes = tokenizer_bytes(f->t, id, &length, &special);
        if (length == n && memcmp(bytes, text, n) == 0) return id;
    }
    return -1;
}

// The ids of the merges that the file's texts say.
static void resolve(const struct fixture *f, struct definition *d, const char *const *texts)
{
    for (int i = 0; i < d->n; i++) {
        const char *space = strchr(texts[i], ' ');
        char merged[128];
        snprintf(merged, sizeof merged, "%.*s%s", (int) (space - texts[i]), texts[i], space + 1);
        d->left[i] = token_id(f, texts[i], (size_t) (space - texts[i]));
        d->right[i] = token_id(f, space + 1, strlen(space + 1));
        d->merged[i] = token_id(f, merged, strlen(merged));
    }
}

static void test_merges_by_definition(void **state)
{
    (void) state;
    static char texts[40][128], text[4000];
    static const int lengths[] = {1, 2, 3, 7, 16, 38, 39, 64, 127, 128, 129, 300, 1023, 1025, 4000};
    for (uint64_t seed = 0; seed < 60; seed++) {
        struct definition d;
        const char *pointers[40];
        int n = random_merges(seed, texts, &d);
        for (int i = 0; i < n; i++) {
            int other = (int) (sampling_random(seed, 1000 + (uint64_t) i) % (uint64_t) n);
            pointers[i] = texts[i];
            if (seed % 2 == 0 || other > i) continue;
            pointers[i] = pointers[other]; // ranks in an order that no training gives
            pointers[other] = texts[i];
        }
        struct fixture f = open_json(small_tokenizer(pointers, n));
        resolve(&f, &d, pointers);
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
            if (lengths[l] > 1500 && seed % 10 != 0) continue;
            for (int i = 0; i < lengths[l]; i++) {
                uint64_t r = sampling_random(seed, 5000 + (uint64_t) i);
                text[i] = (char) ('a' + r % (seed % 3 + 1));
            }
            check_definition(&f, &d, text, lengths[l]);
        }
        close_fixture(&f);
    }
}

// Runs of 25 letters whose pairs are formed from the end backwards: one letter more or less at the
// end moves all of them. So a long piece may not be cut just anywhere.
static void test_pairs_that_the_end_decides(void **state)
{
    (void) state;
    static char texts[25][16], text[6000];
    const char *pointers[25];
    struct definition d = {.n = 24};
    for (int i = 0; i < 24; i++) {
        snprintf(texts[i], sizeof *texts, "%c %c", 'a' + 23 - i, 'a' + 24 - i);
        pointers[i] = texts[i];
    }
    struct fixture f = open_json(small_tokenizer(pointers, 24));
    resolve(&f, &d, pointers);
    for (int run = 23; run <= 25; run++) {
        for (int i = 0; i < (int) sizeof text; i++) text[i] = (char) ('a' + i % run);
        check_definition(&f, &d, text, sizeof text);
    }
    close_fixture(&f);
}

static void test_long_pieces(void **state)
{
    (void) state;
    static const char *const merges[] = {"x x", "xx xx", "xxxx xxxx"};
    enum { N = 1 << 20 };
    struct fixture f = open_json(small_tokenizer(merges, 3));
    char *text = malloc(N);
    assert_non_null(text);
    memset(text, 'x', N);
    struct token_ids to = encode(&f, text, N - 1, true);
    assert_int_equal(to.n, N / 8 - 1 + 3); // 4 + 2 + 1 at the end
    for (int i = 0; i < N / 8 - 1; i++) assert_int_equal(to.ids[i], 258);
    assert_memory_equal(to.ids + to.n - 3, ((int32_t[]){257, 256, 'x'}), 3 * sizeof(int32_t));
    token_ids_deinit(&to);
    free(text);
    close_fixture(&f);
}

// "ignore_merges": a piece that is a token is that token, whatever its merges say. Merges may be
// pairs of strings as well.
static void test_forms_of_the_model(void **state)
{
    (void) state;
    json_t *root = small_tokenizer(MERGES, 4), *model = json_object_get(root, "model");
    json_t *merges = json_array();
    json_array_append_new(merges, json_pack("[ss]", "b", "c"));
    json_array_append_new(merges, json_pack("[ss]", "a", "b"));
    json_object_set_new(json_object_get(model, "vocab"), "bc", json_integer(300));
    json_object_set_new(model, "merges", merges);
    struct fixture f = open_json(json_deep_copy(root));
    struct token_ids to = encode(&f, "abc abcx", 8, true);
    assert_ids(&to, (int32_t[]){'a', 300, ' ', 'a', 300, 'x'}, 6);
    token_ids_deinit(&to);
    close_fixture(&f);
    json_object_set_new(model, "ignore_merges", json_true());
    f = open_json(root);
    to = encode(&f, "abc abcx", 8, true);
    assert_ids(&to, (int32_t[]){ABC, ' ', 'a', 300, 'x'}, 5);
    token_ids_deinit(&to);
    close_fixture(&f);
}

// --- special strings

// The first place counts, there the longest; strings with "normalized": false before the others.
static void test_special_strings(void **state)
{
    (void) state;
    json_t *root = small_tokenizer(NULL, 0), *added = json_object_get(root, "added_tokens");
    static const struct {
        const char *content;
        bool normalized;
    } more[] = {{"<s>x", false}, {"<s>xy", false}, {"xyz<", true}, {"y<s", true}, {"e>", false}};
    for (int i = 0; i < 5; i++) {
        json_array_append_new(added, json_pack("{si ss sb sb}", "id", 300 + i, "content",
                                               more[i].content, "normalized", more[i].normalized,
                                               "special", 1));
    }
    json_array_append_new(added, json_pack("{si ss sb}", "id", 'q', "content", "q", "special", 1));
    struct fixture f = open_json(root);
    static const struct {
        const char *text;
        int32_t ids[8];
        int n;
    } cases[] = {
        {"<s>", {256}, 1},
        {"<s>x", {300}, 1},
        {"<s>xyz<", {301, 'z', '<'}, 3},
        {"xyz<s>x", {'x', 'y', 'z', 300}, 4}, // not "xyz<", which comes later
        {"xyz<", {302}, 1},
        {"y<s", {303}, 1},
        {"<<s>", {'<', 256}, 2},
        {"<<e>>", {'<', 257, '>'}, 3}, // not "e>", which begins later
        {"[x][x", {258, '[', 'x'}, 3},
        {"q1", {'q', '1'}, 2},
        {"", {0}, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct token_ids to = encode(&f, cases[i].text, strlen(cases[i].text), true);
        assert_ids(&to, cases[i].ids, cases[i].n);
        token_ids_deinit(&to);
    }
    size_t n;
    bool special;
    assert_non_null(tokenizer_bytes(f.t, 'q', &n, &special));
    assert_true(special); // the vocabulary's own token, made special
    close_fixture(&f);
}

// --- refusals

static void test_bad_text(void **state)
{
    (void) state;
    struct fixture f = open_json(small_tokenizer(MERGES, 4));
    struct token_ids to = {.most = 4};
    static const struct {
        const char *text;
        enum status status;
        const char *code, *says;
    } cases[] = {
        {"ab\xff", ERR_INPUT, "bad_utf8", "byte 2"},
        {"abab\xc3", ERR_INPUT, "bad_utf8", "byte 4"},
        {"\xed\xa0\x80", ERR_INPUT, "bad_utf8", "byte 0"},
        {"xyxy", ERR_LIMIT, "too_long", "more than 4"},
        {"abxy<s>", ERR_LIMIT, "too_long", "more than 4"},
    };
    assert_int_equal(tokenizer_encode(f.t, f.s, "x", 1, true, &to, NULL), OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error e = {0};
        assert_int_equal(tokenizer_encode(f.t, f.s, cases[i].text, strlen(cases[i].text), true, &to,
                                          &e), cases[i].status);
        assert_string_equal(e.code, cases[i].code);
        assert_non_null(strstr(e.text, cases[i].says));
        assert_ids(&to, (int32_t[]){'x'}, 1);
    }
    assert_int_equal(tokenizer_encode(f.t, f.s, "xyz", 3, true, &to, NULL), OK); // just fits
    token_ids_deinit(&to);
    close_fixture(&f);
}

struct damage {
    const char *path; // keys and indices, "a/b/0"
    const char *value; // JSON; NULL: removed
    enum status status;
    const char *says;
};

static const struct damage DAMAGES[] = {
    {"model", NULL, ERR_INPUT, "model is no object"},
    {"model/type", "\"WordPiece\"", ERR_UNSUPPORTED, "model.type is \"WordPiece\""},
    {"model/dropout", "0.1", ERR_UNSUPPORTED, "model.dropout is 0.1"},
    {"model/continuing_subword_prefix", "\"##\"", ERR_UNSUPPORTED, "continuing_subword_prefix"},
    {"model/end_of_word_suffix", "\"</w>\"", ERR_UNSUPPORTED, "end_of_word_suffix"},
    {"model/byte_fallback", "true", ERR_UNSUPPORTED, "model.byte_fallback is true"},
    {"model/vocab", NULL, ERR_INPUT, "model.vocab is no object"},
    {"model/vocab", "[]", ERR_INPUT, "model.vocab is no object"},
    {"model/vocab", "{\"a\": 1}", ERR_INPUT, "no token for the byte 0x00"},
    {"model/vocab/ab", "-1", ERR_INPUT, "the id of \"ab\""},
    {"model/vocab/ab", "1048576", ERR_INPUT, "the id of \"ab\""},
    {"model/vocab/ab", "1.5", ERR_INPUT, "the id of \"ab\""},
    {"model/vocab/ab", "\"1\"", ERR_INPUT, "the id of \"ab\""},
    {"model/vocab/ab", "65", ERR_INPUT, "the id 65 twice"},
    {"model/vocab/ab", NULL, ERR_INPUT, "model.merges[0]"},
    {"model/vocab/a", NULL, ERR_INPUT, "no token for the byte 0x61"},
    {"model/merges", NULL, ERR_INPUT, "model.merges is no array"},
    {"model/merges", "{}", ERR_INPUT, "model.merges is no array"},
    {"model/merges/1", "7", ERR_INPUT, "model.merges[1] is no pair"},
    {"model/merges/1", "\"abc\"", ERR_INPUT, "model.merges[1] is no pair"},
    {"model/merges/1", "\" abc\"", ERR_INPUT, "model.merges[1] is no pair"},
    {"model/merges/1", "\"ab \"", ERR_INPUT, "model.merges[1] is no pair"},
    {"model/merges/1", "[\"a\"]", ERR_INPUT, "model.merges[1] is no pair"},
    {"model/merges/1", "[\"a\", 1]", ERR_INPUT, "model.merges[1] is no pair"},
    {"model/merges/1", "\"一 a\"", ERR_INPUT, "not in model.vocab"},
    {"model/merges/1", "\"a c\"", ERR_INPUT, "not in model.vocab"},
    {"model/merges/1", "\"aaaaaaaaaaaaaaaaaaaaaaaaa aaaaaaaaaaaaaaaaaaa\"", ERR_INPUT, "not in"},
    {"added_tokens", "{}", ERR_INPUT, "added_tokens is no array"},
    {"added_tokens/0", "7", ERR_INPUT, "added_tokens[0].content"},
    {"added_tokens/0/content", "\"\"", ERR_INPUT, "added_tokens[0].content is empty"},
    {"added_tokens/0/id", NULL, ERR_INPUT, "the id of \"<s>\""},
    {"added_tokens/0/id", "65", ERR_INPUT, "id 65, which another token has"},
    {"added_tokens/0/content", "\"a\"", ERR_INPUT, "but 97 in model.vocab"},
    {"added_tokens/1/content", "\"<s>\"", ERR_INPUT, "\"<s>\" twice"},
    {"added_tokens/0/lstrip", "true", ERR_UNSUPPORTED, "\"<s>\".lstrip is true"},
    {"added_tokens/0/rstrip", "true", ERR_UNSUPPORTED, "\"<s>\".rstrip is true"},
    {"added_tokens/0/single_word", "1", ERR_UNSUPPORTED, "\"<s>\".single_word is 1"},
    {"normalizer", "{\"type\": \"NFC\"}", ERR_UNSUPPORTED, "normalizer is {\"type\":\"NFC\"}"},
    {"truncation", "{\"max_length\": 5}", ERR_UNSUPPORTED, "truncation is"},
    {"padding", "{}", ERR_UNSUPPORTED, "padding is {}"},
    {"decoder", NULL, ERR_UNSUPPORTED, "decoder.type is missing"},
    {"decoder/type", "\"Metaspace\"", ERR_UNSUPPORTED, "decoder.type is \"Metaspace\""},
    {"pre_tokenizer", NULL, ERR_UNSUPPORTED, "pre_tokenizer.type is missing"},
    {"pre_tokenizer/type", "\"ByteLevel\"", ERR_UNSUPPORTED, "pre_tokenizer.type"},
    {"pre_tokenizer/pretokenizers", "[]", ERR_INPUT, "pretokenizers is no list, or empty"},
    {"pre_tokenizer/pretokenizers/0/type", "\"Digits\"", ERR_UNSUPPORTED, "[0].type is \"Digits\""},
    {"pre_tokenizer/pretokenizers/0/behavior", "\"Removed\"", ERR_UNSUPPORTED, "[0].behavior is"},
    {"pre_tokenizer/pretokenizers/0/invert", "true", ERR_UNSUPPORTED, "[0].invert is true"},
    {"pre_tokenizer/pretokenizers/0/pattern", "{\"String\": \" \"}", ERR_UNSUPPORTED, "a Regex"},
    {"pre_tokenizer/pretokenizers/0/pattern/Regex", "\"(a\"", ERR_INPUT, "is malformed"},
    {"pre_tokenizer/pretokenizers/0/pattern/Regex", "\"\"", ERR_INPUT, "is empty"},
    {"pre_tokenizer/pretokenizers/0/pattern/Regex", "\"\\\\w+\"", ERR_UNSUPPORTED, "escape \\w"},
    {"pre_tokenizer/pretokenizers/0/pattern/Regex", "\"a\\\\\"", ERR_UNSUPPORTED, "backslash"},
    {"pre_tokenizer/pretokenizers/0/pattern/Regex", "\"[a&&b]\"", ERR_UNSUPPORTED, "&&"},
    {"pre_tokenizer/pretokenizers/0/pattern/Regex", "\"[a[b]]\"", ERR_UNSUPPORTED, "[ at byte 2"},
    {"pre_tokenizer/pretokenizers/0/pattern/Regex", "\"[\\\\S]\"", ERR_UNSUPPORTED, "escape \\S"},
    {"pre_tokenizer/pretokenizers/0/pattern/Regex", "\"^a\"", ERR_UNSUPPORTED, "^ at byte 0"},
    {"pre_tokenizer/pretokenizers/0/pattern/Regex", "\"a{2}+\"", ERR_UNSUPPORTED, "}+ at byte 3"},
    {"pre_tokenizer/pretokenizers/0/pattern/Regex", "\"\\\\p{L\"", ERR_UNSUPPORTED, "{ without"},
    {"pre_tokenizer/pretokenizers/0/pattern/Regex", "\"(?m:a)\"", ERR_UNSUPPORTED, "kind of group"},
    {"pre_tokenizer/pretokenizers/1/type", "\"Split\"", ERR_UNSUPPORTED, "[1].type is \"Split\""},
    {"pre_tokenizer/pretokenizers/1/add_prefix_space", "true", ERR_UNSUPPORTED, "add_prefix_space"},
    {"pre_tokenizer/pretokenizers/1/use_regex", NULL, ERR_UNSUPPORTED, "[1].use_regex is missing"},
};

static void damage(json_t *root, const struct damage *d)
{
    char path[128], *rest = path;
    snprintf(path, sizeof path, "%s", d->path);
    json_t *at = root;
    for (char *key; (key = strsep(&rest, "/")) != NULL;) {
        size_t index = strtoul(key, NULL, 10);
        json_t *value = d->value != NULL ? json_loads(d->value, JSON_DECODE_ANY, NULL) : NULL;
        if (rest != NULL) {
            json_decref(value);
            at = json_is_array(at) ? json_array_get(at, index) : json_object_get(at, key);
        } else if (json_is_array(at)) {
            json_array_set_new(at, index, value);
        } else if (d->value == NULL) {
            json_object_del(at, key);
        } else {
            json_object_set_new(at, key, value);
        }
    }
}

static void test_damaged_files(void **state)
{
    (void) state;
    for (size_t i = 0; i < sizeof DAMAGES / sizeof *DAMAGES; i++) {
        const struct damage *d = &DAMAGES[i];
        struct tokenizer *t;
        struct error e = {0};
        json_t *root = small_tokenizer(MERGES, 4);
        damage(root, d);
        enum status status = load_json(&t, root, &e);
        const char *code = d->status == ERR_INPUT ? "bad_tokenizer" : "unsupported_tokenizer";
        if (status != d->status || strcmp(e.code, code) != 0 || strstr(e.text, d->says) == NULL ||
            strstr(e.text, "/tokenizer.json: ") == NULL || t != NULL) {
            fail_msg("%s = %s: status %d, %s: %s", d->path, d->value, status, e.code, e.text);
        }
    }
}

// Every beginning of a file is refused, and so are bytes that are no JSON.
static void test_truncated_files(void **state)
{
    (void) state;
    struct model_dir dir = model_dir_create();
    json_t *root = small_tokenizer(MERGES, 4);
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    size_t n = strlen(text);
    for (size_t length = 0; length < n; length += 1 + length / 40) {
        struct tokenizer *t;
        struct error e = {0};
        model_dir_write(&dir, "tokenizer.json", text, length);
        assert_int_equal(tokenizer_load(&t, dir.path, &e), ERR_INPUT);
        assert_string_equal(e.code, "bad_tokenizer");
        assert_non_null(strstr(e.text, "no JSON at line 1"));
    }
    static const char *const others[] = {"[]", "7", "null", "{}", "\xff", "{\"a\":1,\"a\":2}"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        struct tokenizer *t;
        struct error e = {0};
        model_dir_write(&dir, "tokenizer.json", others[i], strlen(others[i]));
        assert_int_not_equal(tokenizer_load(&t, dir.path, &e), OK);
        assert_int_equal(utf8_valid_prefix(e.text, strlen(e.text)), strlen(e.text));
    }
    free(text);
    model_dir_remove(&dir);
}

static void test_files_that_are_not_there(void **state)
{
    (void) state;
    struct model_dir dir = model_dir_create();
    struct tokenizer *t;
    struct error e = {0};
    assert_int_equal(tokenizer_load(&t, "/nonexistent/tokenizer.json", &e), ERR_IO);
    assert_string_equal(e.code, "no_tokenizer");
    assert_int_equal(tokenizer_load(&t, dir.path, &e), ERR_IO);
    assert_string_equal(e.code, "no_tokenizer");
    char path[128];
    snprintf(path, sizeof path, "%s/tokenizer.json", dir.path);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(ftruncate(fileno(f), TOKENIZER_JSON_MAX + 1), 0);
    fclose(f);
    assert_int_equal(tokenizer_load(&t, path, &e), ERR_LIMIT);
    assert_non_null(strstr(e.text, "has over 67108864 bytes"));
    model_dir_remove(&dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_to_ids_and_back),
        cmocka_unit_test(test_golden_rows),
        cmocka_unit_test(test_random_texts),
        cmocka_unit_test(test_random_texts_of_the_true_one),
        cmocka_unit_test(test_merges_by_definition),
        cmocka_unit_test(test_pairs_that_the_end_decides),
        cmocka_unit_test(test_long_pieces),
        cmocka_unit_test(test_forms_of_the_model),
        cmocka_unit_test(test_special_strings),
        cmocka_unit_test(test_bad_text),
        cmocka_unit_test(test_damaged_files),
        cmocka_unit_test(test_truncated_files),
        cmocka_unit_test(test_files_that_are_not_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
